"""The simulated disaster, from made-up scores through everything but the models, and the panel of production."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefilter_common.articles import Article, labels_of
from prefilter_common.evaluation.latency_update import refresh_latency
from prefilter_common.evaluation.production import best_saving_threshold, blocked_by_slice, production_section
from prefilter_common.evaluation.results import compare_models, evaluation_warnings, write_results
from prefilter_common.evaluation.run import Data, Options
from prefilter_common.evaluation.sections import Scored, model_row
from prefilter_common.models.directory import fingerprints
from prefilter_common.scoring.engines.interface import REFERENCE

COSTS = {"per_article": 0.01, "of_blocking": 0.5}
ROW = {"avg_inference_ms": 12.0, "device": "cpu", "latency_articles": 5}


def articles(n, rng, short, english):
    return [
        Article(f"title {i}", " ".join(rng.choice(list("abcdefgh"), 60 if is_short else 300)), i % 2, f"a{i}",
                "en" if is_english else "el")
        for i, (is_short, is_english) in enumerate(zip(rng.random(n) < short, rng.random(n) < english, strict=True))
    ]  # fmt: skip


def scored(labels, missed, seed, points=("default",)):
    """Right about 98 of 100, but for the commerce that it misses."""
    rng = np.random.default_rng(seed)
    called = ((labels == 1) ^ (rng.random(len(labels)) < 0.005)) & ~missed
    return np.where(called, 0.97, 0.002) + rng.random(len(labels)) * 0.01


@pytest.fixture(params=[1_000, 300])
def disaster(request, tmp_path):
    """Long English test articles, on which two models are equally good, and traffic on which the faster misses most."""
    rng = np.random.default_rng(7)
    test, traffic = articles(190, rng, 0.02, 0.84), articles(request.param, rng, 0.7, 0.46)
    truth = (rng.random(len(traffic)) < 0.055).astype(int)
    weak = np.array([a.language == "el" and len(a.content) < 250 for a in traffic])
    none = np.zeros(190, bool)
    models = {
        name: Scored(scored(labels_of(test), none, 1), np.full(190, 50), 256, 1.0, {"default": 0.5},
                     scored(truth, (truth == 1) & misses, 2))
        for name, misses in (("old", np.zeros(len(traffic), bool)), ("new", weak | (rng.random(len(traffic)) < 0.3)))
    }  # fmt: skip
    rows = {name: {**model_row(test, model, 0), **ROW} for name, model in models.items()}
    rows["old"]["cpu_benchmark_ms"], rows["new"]["cpu_benchmark_ms"] = 40.0, 10.0
    data = Data(test, None, None, [replace(a, label=None) for a in traffic])
    options = Options(tmp_path, REFERENCE, 32, 5, 0.95, None, 0, (0.05,), COSTS, (20, 40))
    return {"_run": {}, "_manifest": None, **compare_models(data, models, rows, options)}, tmp_path


def test_the_disaster_cannot_be_shipped(disaster):
    results, output = disaster
    rates = [results["_traffic"]["flag_rates"][name]["default"]["rate"] for name in ("old", "new")]
    assert rates[1] < 0.6 * rates[0] and results["models"]["old"]["f1"] == results["models"]["new"]["f1"]
    choice = results["_choice"]
    assert choice["selected"] is None and choice["reason"].startswith("None yet")
    assert any("DIFFER" in row["suspect"] or "do not cover" in row["suspect"] for row in choice["objections"])
    named = [row for row in choice["objections"] if row["file"]]
    assert named and all(row["to_label"] > 0 and (output / row["file"].rsplit("/", 1)[1]).is_file() for row in named)
    queue = [json.loads(line) for line in (output / "review_queue_new.jsonl").read_text(encoding="utf-8").splitlines()]
    misses = [row for row in queue if row["why"] == "models disagree" and row["score"] < 0.02]
    assert len(misses) >= 3 and {row["language"] for row in misses} >= {"el"}
    assert (output / "audit_new.jsonl").read_text(encoding="utf-8").count("\n") >= 40


def test_the_panel_and_the_estimate_of_commerce(disaster):
    production = disaster[0]["_production"]
    old = production["models"]["old"]
    low, high = old["prevalence_estimate"]["interval"]
    assert low < 0.055 < high
    assumed, estimated = old["panel"]
    assert (assumed["prevalence"], assumed["source"]) == (0.05, "assumed")
    assert estimated["prevalence"] == old["prevalence_estimate"]["share"]
    on_test = disaster[0]["models"]["old"]["intervals"]["precision"]
    assert assumed["intervals"]["precision"][0] < on_test[0] - 0.2 and assumed["saving_per_1000"] is not None
    assert production["journalism_needed"] == {"0.05": 1456}
    # At an estimated share, the limits are those that the ends of its interval give.
    dropped = estimated["per_1000"]["commerce_dropped"]
    assert dropped["interval"][0] < dropped["value"] < dropped["interval"][1]
    recall = estimated["intervals"]["recall"]
    assert dropped["interval"] == pytest.approx([1_000 * low * recall[0], 1_000 * high * recall[1]], abs=0.1)
    assert estimated["saving_interval"][0] < estimated["saving_per_1000"] < estimated["saving_interval"][1]


@pytest.mark.parametrize(
    ("share", "interval", "words"),
    [
        (0.02, [0.01, 0.03], "flags 2.0% of the traffic, less than"),
        (0.11, [0.079, 0.15], "flags 11.0% of the traffic, less than"),
        (1.0, [0.98, 1.0], "flags 100.0% of the traffic, more than"),
    ],
)
def test_a_flag_rate_that_no_share_of_commerce_gives_is_a_warning(share, interval, words):
    """The second flag rate and the false-positive rate differ beyond chance, though their intervals overlap."""
    rng = np.random.default_rng(0)
    test = articles(190, rng, 0.5, 0.5)
    labels, tenth = labels_of(test), np.arange(190) % 10
    scores = np.where(labels & (tenth != 1) | (tenth == 0), 0.9, 0.1)  # 20 % false alarms, 20 % misses
    model = Scored(scores, np.ones(190), 64, 1.0, {"default": 0.5})
    rates = {"flag_rates": {"m": {"default": {"rate": share, "interval": interval}}}}
    section = production_section(test, {"m": model}, rates, np.ones(300), None, [0.05], 0.95, None)
    estimate = section["models"]["m"]["prevalence_estimate"]
    assert estimate["share"] is None and "the traffic is of another kind" in estimate["warning"]
    assert words in estimate["warning"]


def test_a_flag_rate_near_zero_on_much_traffic_is_that_of_little_commerce():
    """The upper limit, 0.004 %, is 0 when it is rounded as it is stored."""
    labels = np.repeat([0, 1], [100, 90])
    test = [Article("", f"text {i}", int(label), str(i), "en") for i, label in enumerate(labels)]
    model = Scored(np.where(labels, 0.9, 0.1), np.ones(190), 64, 1.0, {"default": 0.5})
    rates = {"flag_rates": {"m": {"default": {"rate": 0.0, "interval": [0.0, 0.0]}}}}
    section = production_section(test, {"m": model}, rates, np.ones(100_000), None, [0.05], 0.95, None)
    assert section["models"]["m"]["prevalence_estimate"] == {"share": 0.0, "interval": [0.0, 0.0], "warning": None}


def test_validation_articles_of_one_label_are_the_reason_for_a_lack_of_thresholds():
    model = Scored(np.zeros(3), np.ones(3), 64, 1.0, {"default": 0.5}, validation=(np.ones(3, int), np.full(3, 0.9)))
    warnings = evaluation_warnings(None, None, {"m": model}, Options(Path(), REFERENCE, 8, 1, 0.95, None, 0))
    assert warnings == ["only the default threshold for m: all validation articles have one label"]


def test_the_threshold_that_saves_the_most():
    labels = np.repeat([0, 1], [500, 100])
    scores = np.concatenate([np.linspace(0, 0.7, 500), np.linspace(0.4, 1, 100)])
    cheap = best_saving_threshold(labels, scores, 0.05, {"per_article": 1, "of_blocking": 1.001})
    dear = best_saving_threshold(labels, scores, 0.05, {"per_article": 1, "of_blocking": 10})
    assert cheap < 0.69 < dear
    assert best_saving_threshold(labels, scores, 0.05, {"per_article": 1, "of_blocking": 1e9}) is None
    close = np.where(labels == 1, 0.999962, np.where(np.arange(600) < 50, 0.999961, 0.1))
    assert 0.999961 < best_saving_threshold(labels, close, 0.05, {"per_article": 1, "of_blocking": 1.001}) < 0.999962


def test_no_saving_is_worth_blocking_more_than_5_percent_of_the_journalism():
    """Where blocking costs next to nothing, or most is commerce, the best saving would be to drop nearly everything."""
    labels = np.repeat([0, 1], [500, 100])
    scores = np.concatenate([np.linspace(0, 0.7, 500), np.linspace(0.4, 1, 100)])
    for prevalence in (0.05, 0.9):
        found = best_saving_threshold(labels, scores, prevalence, {"per_article": 1, "of_blocking": 1.001})
        assert 0.04 < (scores[labels == 0] >= found).mean() <= 0.05


def test_the_best_saving_is_that_of_each_share_of_commerce():
    rng = np.random.default_rng(0)
    test = articles(190, rng, 0.5, 0.5)
    labels = np.repeat([0, 1], [1_000, 500])
    validation = labels, np.clip(rng.normal(0.3 + 0.4 * labels, 0.15), 0, 1)
    scores = np.clip(rng.normal(0.3 + 0.4 * labels_of(test), 0.15), 0, 1)
    model = Scored(scores, np.ones(190), 64, 1.0, {"default": 0.5}, validation=validation)
    section = production_section(test, {"m": model}, None, None, None, [0.2, 0.5], 0.95, COSTS)
    found = {
        row["prevalence"]: row["threshold"] for row in section["models"]["m"]["panel"] if row["point"] == "best_saving"
    }
    assert found == {share: best_saving_threshold(*validation, share, COSTS) for share in (0.2, 0.5)}
    assert found[0.2] > found[0.5]
    own = replace(model, thresholds={"default": 0.5, "best_saving": 0.9})
    panel = production_section(test, {"m": own}, None, None, None, [0.2], 0.95, COSTS)["models"]["m"]["panel"]
    assert [(row["point"], row["threshold"]) for row in panel] == [("default", 0.5), ("best_saving", 0.9)]


def test_who_is_blocked_the_worst_first():
    test = [Article("", "x" * (100 if i % 2 else 600), 0, str(i), "el" if i < 60 else "en") for i in range(200)]
    scores = np.array([0.9 if i < 60 and i % 2 else 0.1 for i in range(200)])
    rows = blocked_by_slice(test, Scored(scores, np.ones(200), 64, 1.0, {"default": 0.5}))
    assert (rows[0]["value"], rows[0]["n_blocked"], rows[0]["n_journalism"]) == ("el, short", 30, 30)
    assert rows[0]["interval"][0] > 0.8 and rows[-1]["rate"] == 0
    test.append(Article("", "x" * 100, 0, "alone", "xx"))  # a slice of one, after all that tell something
    scores = np.append(scores, 0.9)
    rows = blocked_by_slice(test, Scored(scores, np.ones(201), 64, 1.0, {"default": 0.5}))
    assert [row["enough"] for row in rows] == sorted((row["enough"] for row in rows), reverse=True)
    assert rows[0]["value"] == "el, short" and rows[-1]["rate"] == 1


def test_a_latency_measured_later_reaches_the_choice_and_the_page(disaster, monkeypatch):
    results, output = disaster
    monkeypatch.setattr("prefilter_common.evaluation.results.write_page", lambda path, found: path.write_text("page"))
    old = output / "models" / "old"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}", encoding="utf-8")
    results["models"]["old"] |= {"cpu_benchmark_ms": None, "files": fingerprints(old)}
    write_results(output, results)
    timed = {"avg_ms": 33.0, "median_characters": 125, "threads": 2, "run": {"hardware": {"cpu": "x"}}, "f1": 0.9,
             "engine": "onnxruntime-int8", "stages": ["first stage"]}  # fmt: skip
    assert refresh_latency(output, old, timed) and not refresh_latency(output, old.with_name("unknown"), timed)
    again = json.loads((output / "evaluation_results.json").read_text(encoding="utf-8"))
    assert again["_choice"]["models"]["old"]["cpu_ms"] == 33.0
    assert again["old"]["cpu_benchmark_on"] == "articles of 125 characters, 2 threads, x"
    assert again["old"]["cpu_benchmark_with"] == "onnxruntime-int8 after first stage"
    assert not refresh_latency(output / "nowhere", old, timed)
    (old / "config.json").write_text("{ }", encoding="utf-8")  # another model of the same name
    assert not refresh_latency(output, old, {**timed, "avg_ms": 1.0})
    assert json.loads((output / "evaluation_results.json").read_text(encoding="utf-8"))["old"]["cpu_benchmark_ms"] == 33


def test_the_limits_at_an_estimated_share_are_the_widest_and_those_of_the_audit_are_shown():
    rng = np.random.default_rng(0)
    test = articles(190, rng, 0.5, 0.5)
    scores = np.where(labels_of(test) & (np.arange(190) % 20 > 1) | (np.arange(190) % 20 == 0), 0.9, 0.1)
    model = Scored(scores, np.ones(190), 64, 1.0, {"default": 0.5})
    rates = {"flag_rates": {"m": {"default": {"rate": 0.25, "interval": [0.2, 0.3]}}}}
    audit = {"models": {"m": {"prevalence": 0.2, "intervals": {"prevalence": [0.1, 0.4], "recall": [0.5, 0.9]}}}}

    def panel(traffic, copies, audit, assumed=()):
        section = production_section(test, {"m": model}, traffic, copies, audit, assumed, 0.95, COSTS)
        return section["models"]["m"]["panel"]

    estimated, audited = panel(rates, np.ones(300), audit)
    assert (audited["source"], audited["prevalence"]) == ("found by the audit", 0.2)
    assert audited["prevalence_interval"] == [0.1, 0.4]
    for row in (estimated, audited):
        at_low, at_high = panel(None, None, None, row["prevalence_interval"])
        for limits in (lambda r: r["intervals"]["precision"], lambda r: r["saving_interval"]):
            ends = [*limits(at_low), *limits(at_high)]
            assert limits(row) == pytest.approx([min(ends), max(ends)], abs=2e-3)


def test_repeated_texts_widen_the_interval_of_the_share_of_commerce():
    test = articles(190, np.random.default_rng(0), 0.5, 0.5)
    model = Scored(np.where(labels_of(test), 0.9, 0.1), np.ones(190), 64, 1.0, {"default": 0.5})
    rates = {"flag_rates": {"m": {"default": {"rate": 0.2, "interval": [0.1, 0.3]}}}}
    widths = []
    for copies in (np.ones(1_000), np.full(1_000, 5), np.append(np.ones(999), 999)):
        section = production_section(test, {"m": model}, rates, copies, None, [0.05], 0.95, None)
        low, high = section["models"]["m"]["prevalence_estimate"]["interval"]
        widths.append(high - low)
    assert widths[0] == widths[1] < widths[2] / 2  # one text is half of the third
