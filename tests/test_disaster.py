"""The disaster from one end of the command to the other: two models, equal on the test set and not on the traffic."""

import json
import shutil

import numpy as np
import pytest
from conftest import call, write_jsonl

import evaluate_models
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow


def article(i, label, language, short, rng):
    words = " ".join(rng.choice(["alpha", "beta", "gamma", "delta", "omega"], 15 if short else 90))
    return {"id": f"{language}{i}", "title": f"title {i}", "content": f"{words} {i}", "label": label,
            "language": language}  # fmt: skip


@pytest.fixture
def disaster(tmp_path, trained, monkeypatch):
    """Test articles that cover the traffic, 1,000 traffic articles of which 55 are commerce, and planted scores.

    ``old`` flags 5.2 % of the traffic; ``new``, four times as fast, misses the short Greek commerce and flags 2.1 %.
    """
    rng = np.random.default_rng(0)
    cells = [("en", True), ("en", False), ("el", True), ("el", False)]
    test = [article(i, i % 2, *cells[i % 8 // 2], rng) for i in range(192)]
    truth = {}
    traffic = []
    for i in range(1_000):
        cell = cells[2] if i < 34 else cells[(0, 0, 1, 2, 2, 3)[i % 6]]
        row = article(10_000 + i, None, *cell, rng)
        truth[row["id"]] = int(i < 55)
        traffic.append({key: value for key, value in row.items() if key != "label"})
    ids = [row["id"] for row in traffic]
    flagged = {"old": set(ids[:52]), "new": set(ids[31:52])}

    def planted(scorer, articles, role, options):
        if role == "test":  # both are wrong about the same four of 192
            return np.array([abs((0.97 if a.label else 0.02) - (i in (5, 6, 7, 8))) for i, a in enumerate(articles)])
        return np.array([0.97 if a.id in flagged[scorer.planted] else 0.02 for a in articles])

    def load(directory, **options):
        scorer = original(directory, **options)
        scorer.planted = directory.name
        return scorer

    original = Scorer.load
    monkeypatch.setattr("prefilter_common.evaluation.run.Scorer.load", load)
    monkeypatch.setattr("prefilter_common.evaluation.run._scores", planted)
    monkeypatch.setattr("prefilter_common.evaluation.run.time_single_articles", lambda *rest: np.ones(1))
    for name, ms in (("old", 40.0), ("new", 10.0)):
        shutil.copytree(trained / "tiny", tmp_path / "models" / name)
        (tmp_path / "models" / name / "cpu_benchmark.json").write_text(json.dumps({"avg_ms": ms}), encoding="utf-8")
    flags = ["--models-dir", tmp_path / "models", "--output", tmp_path / "results", "--audit", 100, 300]
    flags += ["--test-data", write_jsonl(tmp_path / "test.jsonl", test)]
    flags += ["--traffic", write_jsonl(tmp_path / "traffic.jsonl", traffic)]
    return tmp_path, flags, truth


def results_in(folder):
    return json.loads((folder / "evaluation_results.json").read_text(encoding="utf-8"))


def answered(path, target, truth, which=lambda row: True):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return write_jsonl(target, [{**row, "label": truth[row["id"]] if which(row) else None} for row in rows])


def test_it_is_seen_withheld_labelled_and_settled(disaster, capsys):
    folder, flags, truth = disaster
    results = folder / "results"
    assert call(evaluate_models, flags) == 0
    out = capsys.readouterr().out
    found = results_in(results)
    assert found["old"]["f1"] == found["new"]["f1"] > 0.95
    rates = {name: found["_traffic"]["flag_rates"][name]["default"]["rate"] for name in ("old", "new")}
    assert rates == {"old": 0.052, "new": 0.021}
    choice = found["_choice"]
    assert choice["selected"] is None and "fastest" not in choice["reason"]
    (objection,) = choice["objections"]
    assert "DIFFER" in objection["suspect"] and objection["part"] == "language and length el, short"
    assert "choice: None yet" in out and "what to do:" in out
    queue = results / f"review_queue_{choice['favourite']}.jsonl"
    assert objection["file"] == queue.as_posix() and objection["to_label"] == 20
    disputed = [row for row in map(json.loads, queue.read_text(encoding="utf-8").splitlines())
                if row["why"] == "models disagree"]  # fmt: skip
    assert len(disputed) == 31 and {truth[row["id"]] for row in disputed} == {1}

    # The page's remedy, taken by the word: labels of disputed articles only, all of them commerce.
    labelled = answered(queue, folder / queue.name, truth, lambda row: row["why"] == "models disagree")
    assert call(evaluate_models, [*flags, "--audited", labelled]) == 0
    settled = results_in(results)
    assert settled["_choice"]["selected"] == "old" and settled["_choice"]["models"]["old"]["source"] == "test"
    assert settled["_audit"]["models"] == {} and settled["_audit"]["pairs"][0]["better"] == "old"
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "Measured: the audit" not in page and "They are not a random sample of it" in page

    # An audit, labelled whole, measures production.
    audit = answered(results / "audit_old.jsonl", folder / "audit_old.jsonl", truth)
    assert call(evaluate_models, [*flags, "--audited", audit]) == 0
    measured = results_in(results)
    assert measured["_choice"]["selected"] == "old" and measured["_choice"]["models"]["old"]["source"] == "audit"
    assert "recall" in measured["_choice"]["models"]["new"]["misses"]["minimum"]
    low, high = measured["_audit"]["models"]["new"]["intervals"]["recall"]
    assert low < 21 / 55 < high
    assert "Measured: the audit" in (results / "report.html").read_text(encoding="utf-8")


def test_labels_in_the_results_folder_are_never_overwritten(disaster, capsys):
    folder, flags, truth = disaster
    results = folder / "results"
    assert call(evaluate_models, flags) == 0
    path = answered(results / "review_queue_old.jsonl", results / "review_queue_old.jsonl", truth)
    before = {file: file.read_bytes() for file in results.rglob("*") if file.is_file()}
    (folder / "link.jsonl").symlink_to(path)
    for more, words in (
        (["--audited", path], "this run would replace it; move or copy it out of"),
        (["--audited", folder / "link.jsonl"], "this run would replace it"),
        ([], f"{path}, line 1: has a label, or was changed by hand, and this run would overwrite it"),
    ):
        capsys.readouterr()
        assert call(evaluate_models, [*flags, *more]) == 2
        err = capsys.readouterr().err.splitlines()
        assert words in err[-1] and sum(line.startswith("error: ") for line in err) == 1
        assert {file: file.read_bytes() for file in results.rglob("*") if file.is_file()} == before
    path.rename(folder / "labels.jsonl")
    assert call(evaluate_models, [*flags, "--audited", folder / "labels.jsonl"]) == 0


def test_scores_of_traffic_that_are_not_numbers_end_in_an_error_row(disaster, monkeypatch):
    folder, flags, _ = disaster
    monkeypatch.undo()
    original = Scorer.score

    def broken(self, articles, *rest):
        scores = original(self, articles, *rest)
        return np.where([a.id == "el10000" for a in articles], np.nan, scores)

    monkeypatch.setattr(Scorer, "score", broken)
    assert call(evaluate_models, [*flags, "--models", "old", "--latency-samples", "1"]) == 1
    found = results_in(folder / "results")
    assert found["old"]["error"] == "InputError: 1 traffic articles have scores that are not numbers"


def test_a_full_disk_ends_the_run_and_leaves_the_earlier_results(disaster, monkeypatch, capsys):
    folder, flags, _ = disaster
    assert call(evaluate_models, flags) == 0
    before = (folder / "results" / "evaluation_results.json").read_bytes()

    def full(path, *rest):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("prefilter_common.evaluation.results.write_predictions", full)
    capsys.readouterr()
    assert call(evaluate_models, flags) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and err[-1].endswith(".jsonl: No space left on device")
    assert (folder / "results" / "evaluation_results.json").read_bytes() == before
