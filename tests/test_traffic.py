import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, f1_score

from prefilter_common.articles import Article
from prefilter_common.comparison import compare_with_best
from prefilter_common.slices import article_slices, slice_metrics, uncovered, worst_slice
from prefilter_common.traffic import compare_flags, compare_traffic, flag_rates, review_queue, traffic_slices


def articles_of(languages, lengths):
    return [
        Article("", "x" * n, id=f"a{i}", language=language)
        for i, (language, n) in enumerate(zip(languages, lengths, strict=True))
    ]


@pytest.fixture(scope="module")
def simulated():
    """What happened in production: a test set of long English articles, traffic of short ones in many languages.

    ``old`` is right in 97 of 100 everywhere; ``new`` too, but misses most short commerce that is not English.
    """
    rng = np.random.default_rng(5)

    def score(labels, weak, share_missed):
        wrong = rng.random(len(labels)) < 0.03
        missed = weak & (labels == 1) & (rng.random(len(labels)) < share_missed)
        return expit(np.where((labels == 1) ^ wrong, 4, -4) - 8 * (missed & ~wrong) + rng.normal(0, 0.5, len(labels)))

    def draw(n, commerce, english, short):
        labels = (rng.random(n) < commerce).astype(int)
        languages = np.where(rng.random(n) < english, "en", rng.choice(["el", "nl", "de", "pt"], n))
        lengths = np.where(rng.random(n) < short, rng.integers(60, 250, n), rng.integers(300, 3_000, n))
        weak = (languages != "en") & (lengths < 250)
        return articles_of(languages, lengths), labels, score(labels, weak, 0), score(labels, weak, 0.8), weak

    return {"test": draw(190, 0.47, 0.84, 0.02), "traffic": draw(1_000, 0.2, 0.5, 0.7)}


def test_what_the_test_set_cannot_tell_the_traffic_does(simulated):
    articles, labels, old, *_ = simulated["test"]
    # equal in F1: as many errors, though not on the same articles
    new = old.copy()
    wrong, right = np.flatnonzero((old >= 0.5) != labels), np.flatnonzero((old >= 0.5) == labels)
    for error in wrong:
        new[error] = 1 - new[error]
        twin = next(i for i in right if labels[i] == labels[error] and new[i] == old[i])
        new[twin] = 1 - new[twin]
        right = right[right != twin]
    decisions = {"old": old >= 0.5, "new": new >= 0.5}
    f1 = {name: f1_score(labels, decided) for name, decided in decisions.items()}
    assert f1["old"] == f1["new"] > 0.94
    (row,) = compare_with_best(labels, decisions, f1, seed=0)["models"].values()
    assert "not distinguishable on these 190 articles" in row["verdict"]

    articles, _, old, new, weak = simulated["traffic"]
    thresholds = {"old": {"default": 0.5}, "new": {"default": 0.5}}
    result = compare_traffic(articles, {"old": old, "new": new}, thresholds, traffic_slices(articles))
    point = result["points"]["default"]
    assert point["differ"] and point["worst_slice"] == "language and length not en, short"
    assert "old and new DIFFER" in point["verdict"] and "not en, short" in point["verdict"]
    rows = {f"{row['by']} {row['value']}": row for row in point["slices"]}
    assert (
        rows["language and length en, short"]["p_adjusted"] > 0.05 < rows["language and length en, long"]["p_adjusted"]
    )
    named = rows["language and length not en, short"]
    assert named["n"] == weak.sum() and named["rates"] == pytest.approx(
        [old[weak].round().mean(), new[weak].round().mean()]
    )
    told = point["disagreements"]["old"]
    assert told and all(d["scores"][0] >= 0.5 > d["scores"][1] for d in told)
    assert sum(d["language"] != "en" and d["characters"] < 250 for d in told) > len(told) / 2


def test_models_that_flag_alike_are_said_to(simulated):
    articles, labels, *_ = simulated["traffic"]
    rng = np.random.default_rng(1)
    false_verdicts = 0
    for _ in range(60):
        a, b = (np.where(rng.random(1_000) < 0.03, 1 - labels, labels) == 1 for _ in range(2))
        false_verdicts += compare_flags(("a", "b"), a, b, traffic_slices(articles))["differ"]
    assert false_verdicts / 60 <= 0.1


def test_the_languages_and_lengths_that_the_test_set_lacks(simulated):
    found = {f"{row['by']} {row['value']}" for row in uncovered(simulated["traffic"][0], simulated["test"][0])}
    assert {"characters <100", "characters 100-249", "language el"} <= found
    assert "language en" not in found and "characters 1000-1999" not in found


def test_agreement_kappa_and_rank_correlation_are_the_libraries():
    rng = np.random.default_rng(2)
    a, b = rng.random(300), rng.random(300)
    articles = articles_of(["en"] * 300, [50] * 300)
    thresholds = {"a": {"default": 0.5, "only_a": 0.3}, "b": {"default": 0.6}}
    result = compare_traffic(articles, {"a": a, "b": b}, thresholds, traffic_slices(articles))
    assert set(result["points"]) == {"default"}
    point = result["points"]["default"]
    assert point["agreement"] == np.mean((a >= 0.5) == (b >= 0.6))
    assert point["kappa"] == pytest.approx(cohen_kappa_score(a >= 0.5, b >= 0.6))
    assert result["rank_correlation"] == pytest.approx(spearmanr(a, b).statistic)
    assert flag_rates(a, thresholds["a"])["only_a"]["rate"] == np.mean(a >= 0.3)


def test_constant_scores_have_no_correlation():
    articles = articles_of(["en"] * 30, [50] * 30)
    scores, thresholds = np.full(30, 0.2), {"a": {"default": 0.5}, "b": {"default": 0.5}}
    result = compare_traffic(articles, {"a": scores, "b": scores}, thresholds, traffic_slices(articles))
    assert result["rank_correlation"] is None and result["points"]["default"]["kappa"] is None
    assert not result["points"]["default"]["differ"]


def test_the_review_queue_is_disputed_then_uncertain_and_asks_once():
    articles = [Article("t", text, id=text) for text in ("sure", "close", "near", "disputed", "near")]
    scores = np.array([0.99, 0.5, 0.8, 0.97, 0.8])
    queue = review_queue(articles, scores, np.array([False, False, False, True, False]))
    assert [(row["id"], row["why"]) for row in queue] == [
        ("disputed", "models disagree"), ("close", "uncertain"), ("near", "uncertain"),
    ]  # fmt: skip
    assert queue[0]["label"] is None and queue[0]["content"] == "disputed"


def test_the_worst_slice_is_named_and_small_ones_are_not_judged():
    labels = np.array([0, 1] * 100)
    scores = labels.astype(float)
    scores[:20] = 1 - scores[:20]
    scores[-1] = 0
    articles = articles_of(["fi"] * 40 + ["sv"] * 155 + ["zh"] * 5, [400] * 200)
    rows = slice_metrics(labels, scores, 0.5, article_slices(articles))
    worst = worst_slice(rows)
    assert (worst["by"], worst["value"], worst["errors"]) == ("language", "fi", 20) and worst["beyond_chance"]
    small = next(row for row in rows if row["value"] == "zh")
    assert not small["enough"] and small["p_adjusted"] is None and small["n"] == 5 and small["n_commerce"] == 3
    assert worst_slice(slice_metrics(labels, labels.astype(float), 0.5, article_slices(articles))) is None
