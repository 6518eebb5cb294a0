"""How training and evaluation treat splits that overlap or do not match their manifest."""

import json

import numpy as np
import pytest
from conftest import SPLITS, TRAIN_FLAGS, call, write_jsonl

import evaluate_models
import train_encoder
from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.evaluation.sections import Scored, model_row
from prefilter_common.runinfo import file_fingerprint
from prefilter_common.splits import __main__ as splits_command
from prefilter_common.splits.cleaning import to_record
from prefilter_common.splits.guard import manifest_record, require_disjoint

NAMES = ("train", "val", "test")


@pytest.fixture
def built(tmp_path):
    """Splits with a manifest, built from the first hand-written articles."""
    records = [to_record(a) for name in NAMES for a in load_articles(SPLITS / f"{name}.jsonl")[:48]]
    write_jsonl(tmp_path / "scored.jsonl", records)
    assert call(splits_command, ["build", tmp_path / "scored.jsonl", "--output", tmp_path / "data"]) == 0
    return tmp_path / "data"


def leak(folder, source):
    """Append the first article of ``source`` to train."""
    first = (folder / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()[0]
    with (folder / "train.jsonl").open("a", encoding="utf-8") as train:
        train.write(json.dumps({**json.loads(first), "id": "leaked"}) + "\n")


@pytest.mark.parametrize("source", ["val", "test"])
def test_training_refuses_overlapping_splits_before_it_writes_anything(built, tmp_path, source, capsys):
    leak(built, source)
    flags = ["--model", tmp_path, "--output", tmp_path / "models" / "m", "--data-dir", built]
    assert call(train_encoder, flags) == 2
    message = capsys.readouterr().err
    assert f"train and {source} overlap" in message and "--allow-overlap" in message
    assert not (tmp_path / "models").exists()
    with pytest.raises(InputError):
        require_disjoint(built)
    require_disjoint(built, allow_overlap=True)


def test_clean_splits_pass_with_and_without_a_manifest(built):
    require_disjoint(built)
    require_disjoint(SPLITS)


def test_the_record_names_the_files_that_changed(built):
    digest = file_fingerprint(built / "manifest.json")["sha256"]
    files = [built / f"{name}.jsonl" for name in ("train", "val")]
    assert manifest_record(files) == {"sha256": digest, "differs": []}
    leak(built, "test")
    assert manifest_record(files) == {"sha256": digest, "differs": ["train"]}
    assert manifest_record([built / "test.jsonl"]) == {"sha256": digest, "differs": []}
    assert manifest_record([SPLITS / "test.jsonl"]) is None
    assert manifest_record([built / "other.jsonl"]) is None


@pytest.mark.slow
def test_training_and_evaluation_record_the_manifest(built, tiny_encoder, tmp_path, caplog):
    models = tmp_path / "models"
    flags = ["--model", tiny_encoder, "--output", models / "m", "--data-dir", built, *TRAIN_FLAGS]
    assert call(train_encoder, flags) == 0
    digest = file_fingerprint(built / "manifest.json")["sha256"]
    run = json.loads((models / "m" / "run.json").read_text(encoding="utf-8"))
    assert run["manifest"] == {"sha256": digest, "differs": []}
    with (built / "test.jsonl").open("a", encoding="utf-8") as test:
        test.write(json.dumps({"title": "New", "content": "from elsewhere", "label": 1, "source": "new"}) + "\n")
    flags = ["--models-dir", models, "--test-data", built / "test.jsonl", "--output", tmp_path / "results"]
    assert call(evaluate_models, flags) == 0
    results = json.loads((tmp_path / "results" / "evaluation_results.json").read_text(encoding="utf-8"))
    assert results["_manifest"] == {"sha256": digest, "differs": ["test"]}
    assert any("manifest.json" in text for text in results["_warnings"])
    assert ("sources", "held out", 1) in [(row["by"], row["value"], row["n"]) for row in results["m"]["slices"]]


def test_held_out_sources_get_their_own_f1():
    test = [Article(f"t{i}", "text", i % 2, str(i), "en", "new" if i < 10 else "old") for i in range(40)]
    train = [Article("t", "text", 0, "x", "en", "old")]
    scores = np.array([0.9 if a.label and a.source == "old" else 0.1 for a in test])
    model = Scored(scores, np.full(40, 5), 64, 1.0, {"default": 0.5})
    rows = {row["value"]: row for row in model_row(test, model, 0, train)["slices"] if row["by"] == "sources"}
    assert (rows["held out"]["f1"], rows["seen"]["f1"]) == (0, 1)
    for same in (test, None, [Article("t", "text", 0)]):
        assert not [row for row in model_row(test, model, 0, same)["slices"] if row["by"] == "sources"]


DAMAGED = {
    "not JSON": "{",
    "no object": "[]",
    "too deep": '{"splits": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "no splits": "{}",
    "splits of another type": '{"splits": {"train": 5}}',
    "merges of another type": '{"splits": {}, "merges": 5}',
    "settings of another type": '{"splits": {}, "settings": {"group_by": null, "test_after": "soon"}}',
    "a key twice": '{"splits": {}, "splits": {}}',
    "UTF-16": '{"splits": {}}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_named_in_one_line(built, tmp_path, refused, trained, content):
    content = content if isinstance(content, bytes) else content.encode()
    (built / "manifest.json").write_bytes(content)
    labelled = write_jsonl(tmp_path / "labelled.jsonl", [{"title": "New", "content": "A new text", "label": 1}])
    output = ["--output", tmp_path / "new"]
    for script, flags in (
        (splits_command, ["merge", labelled, "--splits", built, *output]),
        (splits_command, ["audit", built, *output]),
        (train_encoder, ["--model", tmp_path, "--data-dir", built, *output]),
        (evaluate_models, ["--models-dir", trained, "--test-data", built / "test.jsonl", *output]),
    ):
        refused(script, flags, tmp_path, words="manifest.json: ")


@pytest.mark.parametrize("line", ["{", "5", '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_damaged_report_on_rows_is_named_in_one_line(built, tmp_path, refused, line):
    (built / "cleaning.jsonl").write_text(line + "\n", encoding="utf-8")
    labelled = write_jsonl(tmp_path / "labelled.jsonl", [{"title": "New", "content": "A new text", "label": 1}])
    refused(splits_command, ["merge", labelled, "--splits", built, "--overwrite"], tmp_path, words="cleaning.jsonl: ")
