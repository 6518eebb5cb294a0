"""The audit finds known faults in splits, and merging adds labelled articles to train only."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, SPLITS, call, write_jsonl
from test_page import VOID, Checker

from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.models import packaged_encoder
from prefilter_common.splits import __main__ as splits_command
from prefilter_common.splits.audit.probes import (
    Labelled,
    distance,
    label_suspects,
    predicted,
    text_features,
    total_variation,
)
from prefilter_common.splits.audit.report import audit_text, write_audit_page
from prefilter_common.splits.audit.run import distances
from prefilter_common.splits.audit.sections import describe_split, duplicates, gather, labels_against_scores
from prefilter_common.splits.audit.shortcuts import shortcuts, telling_phrases
from prefilter_common.splits.cleaning import ScoreRule, to_record
from prefilter_common.splits.grouping import population

pytestmark = pytest.mark.slow

NAMES = ("train", "val", "test")
DATA = ROOT.parent / "shared" / "data"
EVIL = "<script>alert(1)</script>\"onload='x' \x00\u202e</svg></style>"


@pytest.fixture
def splits(tmp_path):
    """The hand-written splits as lists that a test may change, and a function that writes and audits them."""
    articles = {name: load_articles(SPLITS / f"{name}.jsonl") for name in NAMES}

    def run(*flags, folder="data"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, part in articles.items():
            write_jsonl(tmp_path / folder / f"{name}.jsonl", [to_record(a) for a in part])
        code = call(splits_command, ["audit", tmp_path / folder, "--output", tmp_path / "results", *flags])
        return code, json.loads((tmp_path / "results" / "split_audit.json").read_text(encoding="utf-8"))

    return articles, run


@pytest.fixture
def model(classifiers):
    """A model directory with a tokenizer, so that the packaged encoder is not needed."""
    return classifiers["minilm"]


def test_the_hand_written_splits_do_not_overlap(splits, model, capsys):
    code, report = splits[1]("--model", model)
    assert code == 0 and not report["overlap"]
    assert all(row["articles"] == 0 for row in report["duplicates"]["across"])
    assert report["labels"] == {"scored": 400, "against": 0, "in_the_middle": 0, "examples": []}
    assert report["reading"]["max_length"] == 64 and 0 < report["reading"]["splits"]["test"]["share_cut"] <= 1
    assert report["splits"]["train"]["labels"] == {"journalism": 148, "commerce": 132}
    assert "test in train" in capsys.readouterr().out


def test_without_the_packaged_encoder_only_truncation_is_not_measured(splits, monkeypatch):
    def absent():
        raise InputError("the packaged encoder is not installed here")

    monkeypatch.setattr(packaged_encoder, "packaged_encoder", absent)
    code, report = splits[1]()
    assert code == 0 and report["reading"]["model"] is None and "not installed" in report["reading"]["reason"]
    assert splits[1]("--model", "nowhere")[0] == 2


def test_leaks_flipped_labels_and_a_missing_manifest_are_found(splits, model):
    articles, run = splits
    copied = articles["test"][:6]
    articles["train"] += [
        replace(copied[0], id="same text"),
        replace(copied[1], id="louder", content=copied[1].content.upper() + "!!!"),
        replace(max(copied, key=lambda a: len(a.content)), id="cut", title="Other", content=max(
            (a.content for a in copied), key=len)[:200]),
        replace(copied[3], title="Anything", content="Else"),  # the same id
        replace(copied[4], id="contradiction", label=1 - copied[4].label, commerce_score=None),
    ]  # fmt: skip
    articles["val"][0] = replace(articles["val"][0], label=1 - articles["val"][0].label)
    code, report = run("--model", model)
    assert code == 1 and report["overlap"]
    (row,) = [row for row in report["duplicates"]["across"] if row["splits"] == ["train", "test"]]
    kinds = {example["other"]["id"]: example["kind"] for example in row["examples"]}
    assert kinds["same text"] == kinds["louder"] == kinds["contradiction"] == "exact"
    assert kinds["cut"] == "contained" and kinds[copied[3].id] == "same id"
    assert report["duplicates"]["both_labels"] == 1
    assert [example["id"] for example in report["labels"]["examples"]] == [articles["val"][0].id]
    assert report["manifest"] is None


def test_a_source_that_gives_the_label_away_is_a_shortcut(splits):
    articles = [a for part in splits[0].values() for a in part]
    labels, nobody = np.array([a.label for a in articles]), np.arange(len(articles))
    assert not [row for row in shortcuts(Labelled(articles, labels, nobody)) if row["is_shortcut"]]
    # Nine in ten articles of a source have one label.
    told = [replace(a, source=f"feed{2 * (i % 7) + (a.label ^ (i % 10 == 0))}") for i, a in enumerate(articles)]
    rows = shortcuts(Labelled(told, labels, nobody))
    assert [row["property"] for row in rows if row["is_shortcut"]] == ["source"]
    assert 0.85 < rows[0]["accuracy"] < 0.95


def test_a_phrase_that_gives_the_label_away_is_a_shortcut(splits):
    articles = [a for part in splits[0].values() for a in part]
    marked = [replace(a, content=f"Black Friday {a.content}") if a.label else a for a in articles]
    data = Labelled(marked, np.array([a.label for a in marked]), np.arange(len(marked)))
    assert [row["property"] for row in shortcuts(data) if row["is_shortcut"]] == ["phrase"]


def test_traffic_is_compared_and_languages_missing_from_test_are_named(splits, model, tmp_path):
    traffic = write_jsonl(
        tmp_path / "traffic.jsonl",
        [{"title": f"Nyhet {i}", "content": f"text nummer {i} " * 3, "language": "no"} for i in range(50)],
    )
    report = splits[1]("--model", model, "--traffic", traffic)[1]
    far = {tuple(row["sets"]): row for row in report["distances"]}
    assert far["test", "traffic"]["language"] == pytest.approx(1) and far["test", "traffic"]["text"]["roc_auc"] > 0.95
    assert far["train", "test"]["language"] < 0.2 and far["train", "test"]["text"]["roc_auc"] < 0.65
    assert "languages in the traffic but not in test: no (100%)" in report["warnings"]


def test_languages_that_are_not_named_are_identified():
    greek = "Η κυβέρνηση ανακοίνωσε σήμερα νέα μέτρα για την οικονομία"
    english = "The government announced new measures for the economy today"
    articles = [Article(f"{text} {i}", "", int(text == greek)) for text in (greek, english) for i in range(4)]
    assert describe_split(articles)["languages"] == {"el": 4, "en": 4}
    strata = population(articles, np.arange(8), np.arange(8), 0).strata
    assert [stratum.split("\t")[0] for stratum in strata] == ["el"] * 4 + ["en"] * 4
    row = distances({"train": articles[:4], "test": articles[4:]}, None, 0)[0]
    assert row["sets"] == ["train", "test"] and row["language"] == 1
    found = shortcuts(Labelled(articles, np.repeat([1, 0], 4), np.arange(8)))
    assert {row["property"]: row["accuracy"] for row in found}["language"] == 1


def test_repeated_texts_are_no_distance(splits):
    train = splits[0]["train"]
    half = [*train[::2], *train[::2], *train[::2]]
    assert distance(train[1::2], half)["roc_auc"] < 0.65


def test_every_fold_has_articles_however_few_texts_there_are():
    labels, clusters = np.array([0, 1] * 8), np.arange(16) // 4 * 2 + np.arange(16) % 2
    data = Labelled([Article("", str(i)) for i in range(16)], labels, clusters)
    for train, test in data.folds(10):
        assert len(np.unique(labels[train])) == 2 and len(test)
    with pytest.raises(InputError, match="fewer than two different texts of one label"):
        Labelled(data.articles, labels, np.where(labels, 0, clusters + 1)).folds()
    assert distance([Article("", "the same")] * 40, data.articles) is None


def flipped_among_suspects(articles, n, seed):
    labels = np.array([a.label for a in articles])
    flipped = np.random.default_rng(seed).choice(len(labels), n, replace=False)
    labels[flipped] = 1 - labels[flipped]
    data = Labelled(articles, labels, np.arange(len(labels)))
    suspects = label_suspects(data, predicted(text_features(articles), labels, data.folds()))
    assert len(suspects) <= 60
    return len({row["place"] for row in suspects} & set(flipped.tolist()))


def test_many_more_flipped_labels_are_suspected_than_by_chance(splits):
    articles = [a for part in splits[0].values() for a in part]
    # 60 of the 400 at random would contain 3 of the 20.
    assert flipped_among_suspects(articles, 20, seed=0) >= 7


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the register corpora")
@pytest.mark.parametrize("seed", range(3))
def test_half_of_the_flipped_labels_are_suspected_in_the_register_corpora(seed):
    articles = [a for name in NAMES for a in load_articles(DATA / "registers" / f"{name}.jsonl")]
    assert flipped_among_suspects(articles, 20, seed) >= 10


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the register corpora")
def test_the_register_corpora_are_split_cleanly(tmp_path, model):
    rows = [to_record(a) for name in NAMES for a in load_articles(DATA / "registers" / f"{name}.jsonl")]
    write_jsonl(tmp_path / "in.jsonl", [{**row, "commerce_score": 9.0 if row["label"] else 1.0} for row in rows])
    assert call(splits_command, ["build", tmp_path / "in.jsonl", "--output", tmp_path / "out"]) == 0
    flags = ["--model", model, "--output", tmp_path / "results"]
    assert call(splits_command, ["audit", tmp_path / "out", *flags]) == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the sample of real news")
def test_real_news_is_repaired_and_its_source_is_a_shortcut(tmp_path, model):
    rows = [to_record(a) for a in load_articles(DATA / "news_sample.jsonl")]
    garbled = 0
    for row in rows:
        as_mac = row["content"].encode("utf-8").decode("mac_roman")
        garbled += as_mac != row["content"]
        row["content"] = as_mac
    write_jsonl(tmp_path / "in.jsonl", rows)
    assert call(splits_command, ["build", tmp_path / "in.jsonl", "--output", tmp_path / "out"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["repaired_rows"]["mojibake"] == garbled >= 20
    flags = ["--model", model, "--output", tmp_path / "results"]
    assert call(splits_command, ["audit", tmp_path / "out", *flags]) == 0
    report = json.loads((tmp_path / "results" / "split_audit.json").read_text(encoding="utf-8"))
    assert [row["property"] for row in report["shortcuts"] if row["is_shortcut"]] == ["source"]


def test_the_page_is_valid_and_escapes_hostile_texts(splits, model, tmp_path):
    articles, run = splits
    copy = replace(articles["test"][0], label=1 - articles["test"][0].label)
    articles["train"].append(replace(copy, id=EVIL, title=EVIL + copy.title, source=EVIL, language=EVIL))
    report = run("--model", model)[1]
    report["suspects"][0]["title"] += "\ud800"  # half of a UTF-16 pair cannot be written as UTF-8
    write_audit_page(tmp_path / "page.html", report)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Checker()
    seen.feed(html)
    assert seen.open == [] and seen.headings.count(1) == 1
    assert not ({"script", "img", "link", "iframe"} & set(seen.tags)) and set(seen.tags) & VOID == {"meta"}
    assert not {"src", "style", "onload"} & {key for key, _ in seen.attributes}
    assert "default-src 'none'" in html and "url(" not in html
    ids = [value for key, value in seen.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for key, value in seen.attributes if key in ("href", "aria-labelledby")]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert "Train and test overlap" in seen.text


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split_is_named_with_exit_code_2(splits, missing, capsys, tmp_path):
    splits[0].pop(missing)
    for name, part in splits[0].items():
        write_jsonl(tmp_path / f"{name}.jsonl", [to_record(a) for a in part])
    assert call(splits_command, ["audit", tmp_path, "--output", tmp_path / "results"]) == 2
    assert f"{missing}.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", ["", "?!…"], ids=["empty", "punctuation"])
def test_splits_without_text_are_refused(tmp_path, refused, text):
    rows = [{"title": text, "content": text, "label": i % 2} for i in range(8)]
    for name in NAMES:
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    flags = [tmp_path, "--output", tmp_path / "results"]
    refused(splits_command, ["audit", *flags], tmp_path, words=f"{tmp_path}: an audit needs at least two articles")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 5}'])
def test_a_damaged_tokenizer_is_named(tmp_path, refused, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    flags = [SPLITS, "--model", tmp_path, "--output", tmp_path / "results"]
    refused(splits_command, ["audit", *flags], tmp_path, words=f"{path}: cannot be read (")


# --- merge -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path):
    """Splits that ``build`` made from the hand-written articles."""
    records = [to_record(a) for name in NAMES for a in load_articles(SPLITS / f"{name}.jsonl")]
    write_jsonl(tmp_path / "scored.jsonl", records)
    assert call(splits_command, ["build", tmp_path / "scored.jsonl", "--output", tmp_path / "out"]) == 0
    return tmp_path / "out"


def merge(built, rows, *flags):
    path = write_jsonl(built.parent / "labelled.jsonl", rows)
    return call(splits_command, ["merge", path, "--splits", built, *flags])


def test_answers_are_added_to_train_only(built):
    files = {path.name: path.read_bytes() for path in built.iterdir()}
    train, test = (load_articles(built / f"{name}.jsonl") for name in ("train", "test"))
    long_one = max(test, key=lambda a: len(a.content))
    rows = [
        {"id": "q1", "title": "New", "content": "A wholly new text", "label": 1, "score": 0.4, "why": "uncertain"},
        {"id": "q2", "title": "Open", "content": "Nobody has answered this", "label": None},
        {"id": "q3", "title": "Read", "content": long_one.content[:180], "label": 0},
        {**to_record(test[1]), "content": "rewritten since"},
        to_record(train[0]),
        {"id": train[1].id, "title": train[1].title, "content": train[1].content, "label": 1 - train[1].label},
        {"id": "q4", "title": "Twice", "content": "answered both ways", "label": 0},
        {"id": "q4", "title": "Twice", "content": "answered both ways", "label": 1},
    ]
    assert merge(built, rows) == 2  # not without --overwrite
    assert {path.name: path.read_bytes() for path in built.iterdir()} == files
    assert merge(built, rows, "--overwrite") == 0
    manifest = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    record = manifest["merges"][-1]
    assert record["discarded_rows"] == {
        "already in train": 1, "conflicting labels": 2, "no label": 1, "shared with val or test": 2,
    }  # fmt: skip
    assert (record["added_rows"], record["corrected_rows"], record["input_rows"]) == (1, 1, 8)
    assert manifest["input_rows"] == 400
    for name in ("val.jsonl", "test.jsonl"):
        assert (built / name).read_bytes() == files[name]
    lines, earlier = ((data.splitlines()) for data in ((built / "train.jsonl").read_bytes(), files["train.jsonl"]))
    assert lines[0] == earlier[0] and lines[2 : len(earlier)] == earlier[2:]
    corrected, added = json.loads(lines[1]), json.loads(lines[-1])
    assert corrected["label"] == 1 - train[1].label and "commerce_score" not in corrected
    assert added == rows[0] | {"label": 1}
    assert manifest["splits"]["train"]["rows"] == len(earlier) + 1


def test_merging_the_same_answers_again_changes_nothing(built):
    row = {"id": "q1", "title": "New", "content": "A wholly new text", "label": 1}
    assert merge(built, [row], "--overwrite") == 0
    train = (built / "train.jsonl").read_bytes()
    assert merge(built, [row], "--overwrite") == 0
    assert (built / "train.jsonl").read_bytes() == train
    assert len((built / "cleaning.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_merging_into_splits_without_a_manifest(tmp_path):
    path = write_jsonl(tmp_path / "labelled.jsonl", [{"title": "New", "content": "A wholly new text", "label": 1}])
    flags = ["--splits", SPLITS, "--output", tmp_path / "out"]
    assert call(splits_command, ["merge", path, *flags]) == 0
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == (SPLITS / "test.jsonl").read_bytes()
    assert Article.from_record(json.loads((tmp_path / "out" / "train.jsonl").read_bytes().splitlines()[-1])).label == 1


def test_line_numbers_and_equal_ids_correct_no_label(built):
    """Two weeks' review queues number their articles alike; an id counts only if the text is similar, too."""
    train = load_articles(built / "train.jsonl")
    labels = {a.id: a.label for a in train}
    other = next(a for a in train if a.label == 0)
    first = {"id": "line-7", "title": "Week 1", "content": "A wholly new text", "label": 1}
    second = {"id": "line-7", "title": "Week 2", "content": "Something else altogether", "label": 0}
    edited = {**to_record(other), "content": other.content + " (updated)", "label": 1}
    assert merge(built, [first], "--overwrite") == 0
    same_id = {"id": other.id, "title": "Another", "content": "story that has nothing to do with it", "label": 1}
    assert merge(built, [second, same_id], "--overwrite") == 0
    found = {a.id: a for a in load_articles(built / "train.jsonl", require_labels=True)}
    assert {key: found[key].label for key in labels} == labels
    added = {a.title: a for key, a in found.items() if key not in labels}
    assert [(title, a.label) for title, a in added.items()] == [("Week 1", 1), ("Week 2", 0), ("Another", 1)]
    assert added["Another"].id.startswith(f"{other.id}-")
    manifest = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["merges"][-1]["repaired_rows"] == {"id": 1}
    assert merge(built, [edited], "--overwrite") == 0
    corrected = {a.id: a.label for a in load_articles(built / "train.jsonl")}
    assert corrected[other.id] == 1 and len(corrected) == len(found)


def test_different_answers_for_one_article_change_nothing(built):
    train = load_articles(built / "train.jsonl")
    rows = [{"id": "q1", "title": "New", "content": "A wholly new text", "label": 1},
            {"id": "q2", "title": "New", "content": "A wholly new text", "label": 0},
            {**to_record(train[0]), "content": train[0].content + "!", "label": 0},
            {**to_record(train[0]), "content": train[0].content + "?", "label": 1}]  # fmt: skip
    assert merge(built, rows, "--overwrite") == 0
    assert load_articles(built / "train.jsonl") == train
    manifest = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["merges"][-1]["discarded_rows"] == {"conflicting labels": 4}


@pytest.mark.parametrize("name", ["val", "test"])
def test_merging_into_overlapping_splits_is_refused(built, tmp_path, refused, name):
    """Training trusts a manifest, so none may be written for splits that it would refuse."""
    row = json.loads((built / f"{name}.jsonl").read_bytes().splitlines()[0])
    with (built / "train.jsonl").open("a", encoding="utf-8") as train:
        train.write(json.dumps({**row, "id": "leaked"}) + "\n")
    new = {"title": "New", "content": "A wholly new text", "label": 1}
    flags = [write_jsonl(tmp_path / "labelled.jsonl", [new]), "--splits", built, "--overwrite"]
    refused(splits_command, ["merge", *flags], tmp_path, words=f"train and {name} overlap")


def test_merging_nothing_that_can_be_used_is_refused(built, tmp_path, refused):
    rows = [{"headline": "x"}, {"title": "Open", "content": "Nobody has answered this", "label": None}, ["no article"]]
    flags = [write_jsonl(tmp_path / "labelled.jsonl", rows), "--splits", built, "--overwrite"]
    words = "no row has both text and a label: 1 × invalid line, 1 × missing text, 1 × no label"
    refused(splits_command, ["merge", *flags], tmp_path, words=words)


def test_two_merges_at_once_lose_no_answers(built, monkeypatch, capsys):
    module = "prefilter_common.splits.merge"
    overlaps = importlib.import_module(module).overlaps

    def and_meanwhile(splits):
        """What another process merges between the reading and the writing of this one."""
        monkeypatch.setattr(f"{module}.overlaps", overlaps)
        assert merge(built, [{"id": "q2", "title": "Newer", "content": "A later one", "label": 0}], "--overwrite") == 0
        return overlaps(splits)

    monkeypatch.setattr(f"{module}.overlaps", and_meanwhile)
    assert merge(built, [{"id": "q1", "title": "New", "content": "A wholly new text", "label": 1}], "--overwrite") == 2
    assert f"{built}: another process changed it meanwhile; run the same command again" in capsys.readouterr().err
    assert [a.id for a in load_articles(built / "train.jsonl")][-1] == "q2"


def test_a_build_during_which_articles_are_merged_loses_none(built, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("prefilter_common.splits.build")
    divide = module.divide

    def and_meanwhile(*args):
        assert merge(built, [{"id": "q", "title": "New", "content": "A new text", "label": 1}], "--overwrite") == 0
        return divide(*args)

    monkeypatch.setattr(module, "divide", and_meanwhile)
    command = ["build", tmp_path / "scored.jsonl", "--output", built, "--overwrite"]
    assert call(splits_command, command) == 2
    assert f"{built}: another process changed it meanwhile; run the same command again" in capsys.readouterr().err
    assert [a.id for a in load_articles(built / "train.jsonl")][-1] == "q"


def test_a_merge_that_changes_no_split_is_recorded_beside_another(built, monkeypatch, capsys):
    known = json.loads((built / "train.jsonl").read_bytes().splitlines()[0])
    module = importlib.import_module("prefilter_common.splits.merge")
    read_contents = module.read_contents

    def and_meanwhile(folder):
        monkeypatch.setattr(module, "read_contents", read_contents)
        assert merge(built, [known], "--overwrite") == 0
        return read_contents(folder)

    monkeypatch.setattr(module, "read_contents", and_meanwhile)
    assert merge(built, [known], "--overwrite") == 2
    assert "another process changed it meanwhile" in capsys.readouterr().err
    assert len(json.loads((built / "manifest.json").read_bytes())["merges"]) == 1


def test_merging_into_splits_that_training_would_refuse(built, tmp_path, refused):
    with (built / "train.jsonl").open("a", encoding="utf-8") as train:
        train.write('{"id": "twice", "title": "A", "content": "b", "label": 1}\n' * 2)
    flags = [write_jsonl(tmp_path / "labelled.jsonl", [{"title": "N", "content": "c", "label": 1}]), "--splits", built]
    refused(splits_command, ["merge", *flags, "--overwrite"], tmp_path, words="ids occur more than once: twice")


# --- the report ------------------------------------------------------------------------------------------------------


def test_duplicates_within_a_split_have_kinds_and_examples():
    a, b, c = sorted(load_articles(SPLITS / "train.jsonl"), key=lambda article: -len(article.content))[:3]
    copies = [
        replace(a, id="same"), replace(b, id="cut", title="Other", content=b.content[:200]),
        replace(c, id="edited", content=c.content.replace(" a ", " one ") + " Updated."),
    ]  # fmt: skip
    row = duplicates(gather({"train": [a, b, c, *copies], "test": load_articles(SPLITS / "test.jsonl")}))["within"]
    assert row["train"]["kinds"] == {"exact": 1, "near": 1, "contained": 1}
    pairs = {(e["article"]["id"], e["other"]["id"]): e["kind"] for e in row["train"]["examples"]}
    assert pairs == {("same", a.id): "exact", ("edited", c.id): "near", ("cut", b.id): "contained"}
    assert row["test"]["kinds"] == {} and row["test"]["examples"] == []


def test_nothing_hostile_reaches_the_terminal():
    evil = "\x1b[2J\nWarnings\u202e"
    shown = {"id": evil, "title": evil}
    match = {"kind": "exact", "similarity": 1.0, "article": shown, "other": shown}
    counted = {"articles": 1, "kinds": {"exact": 1}, "examples": [match]}
    report = {
        "duplicates": {"across": [{"splits": ["train", "test"], **counted}], "within": {"train": counted}},
        "suspects": [{**shown, "split": "train", "label": 1, "probability_of_label": 0.1, "is_issue": True}],
        "warnings": [evil], "splits": {}, "traffic": None, "distances": [],
        "shortcuts": [{"property": evil, "accuracy": 0.5, "interval": [0, 1], "errors_left": 1, "is_shortcut": False,
                       "majority": 0.5}],
        "fast_model": {"mixed": {"f1": 0.5}, "held_out": None},
    }  # fmt: skip
    text = audit_text(report)
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("\nWarnings") == 1 and text.count(r"\x1b[2J\nWarnings\u202e") == 8


def test_the_sizes_of_clusters_and_the_scores_in_the_middle_are_counted():
    articles = [Article("", f"{word} {word}er {word}ly stands alone {i}", i % 2, f"a{i}", commerce_score=9.0 * (i % 2))
                for i, word in enumerate(("apple", "bread", "cloud", "drone"))]  # fmt: skip
    copies = [replace(articles[0], id="b"), replace(articles[0], id="c"), replace(articles[1], id="d")]
    articles[2:] = [replace(articles[2], commerce_score=5.0), replace(articles[3], commerce_score=0.0)]
    whole = gather({"train": [*articles, *copies], "test": []})
    row = duplicates(whole)["within"]["train"]
    assert (row["clusters"], row["articles"], row["largest"], row["kinds"]) == (2, 5, 3, {"exact": 3})
    found = labels_against_scores(whole, ScoreRule())
    assert (found["scored"], found["against"], found["in_the_middle"]) == (7, 1, 1)
    assert [example["id"] for example in found["examples"]] == ["a3"]


def test_telling_phrases_have_the_articles_of_each_label_that_use_them():
    articles = [Article("", f"{'discount' if i < 12 or i in (30, 31, 32) else 'parliament'} number{i}", int(i < 20))
                for i in range(40)]  # fmt: skip
    found = telling_phrases(Labelled(articles, np.array([a.label for a in articles]), np.arange(40)))
    assert {"phrase": "discount", "commerce": 12, "journalism": 3} in found
    assert {"phrase": "parliament", "commerce": 8, "journalism": 17} in found


def test_the_share_that_would_have_to_change():
    assert total_variation(["en"] * 3 + ["el"], ["en"] * 2 + ["el"] * 2) == pytest.approx(0.25)
    assert total_variation(["en"], ["en", "el"]) == total_variation(["en", "el"], ["en"]) == pytest.approx(0.5)
