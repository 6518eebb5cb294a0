import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from prefilter_common.statistics.metrics import latency_summary, ranking_metrics, threshold_metrics, wilson


def test_known_answer():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    scores = np.array([0.9, 0.8, 0.5, 0.2, 0.7, 0.49, 0.1, 0.1, 0.1, 0.1])  # 3 of 4 found, 1 false alarm
    (metrics,) = threshold_metrics(labels, scores, [0.5])
    assert metrics["confusion_matrix"] == [[5, 1], [1, 3]]  # rows true, journalism first
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.75, 0.75, 0.75)
    assert metrics["accuracy"] == 0.8
    assert ranking_metrics(labels, scores, 0)["roc_auc"] == pytest.approx(21 / 24)  # pairs ranked rightly


def test_degenerate_inputs_give_numbers_not_warnings():
    (metrics,) = threshold_metrics(np.array([0, 0]), np.array([0.1, 0.2]), [0.5])
    assert metrics["f1"] == metrics["precision"] == 0
    assert metrics["confusion_matrix"] == [[2, 0], [0, 0]]


@pytest.mark.parametrize("scores", [[0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1]])
def test_areas_that_show_no_spread_have_no_interval(scores):
    found = ranking_metrics(np.array([0, 0, 1, 1]), np.array(scores), 0)
    assert found["roc_auc"] in (0, 0.5, 1) and found["intervals"] == {"roc_auc": None, "pr_auc": None}


def test_latency_is_in_milliseconds():
    summary = latency_summary([0.001, 0.002, 0.003, 0.010])
    expected = {"avg_ms": 4.0, "p50_ms": 2.5, "p95_ms": 8.95, "p99_ms": 9.79, "min_ms": 1.0, "max_ms": 10.0}
    assert summary == pytest.approx(expected)


def test_wilson_is_scipys():
    for k, n in ((0, 10), (10, 10), (87, 90), (1, 3)):
        theirs = binomtest(k, n).proportion_ci(method="wilson")
        assert np.ravel(wilson(k, n)) == pytest.approx([theirs.low, theirs.high])
    assert np.ravel(wilson(0, 0)).tolist() == [0, 1]


def test_wilson_published_example():
    # Newcombe 1998, table I, method 3: 81 of 263 and 15 of 148
    assert np.ravel(wilson(81, 263)) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert np.ravel(wilson(15, 148)) == pytest.approx([0.0624, 0.1605], abs=5e-5)


@pytest.mark.parametrize(
    ("n", "commerce", "recall", "false_alarms"),
    [(190, 0.47, 0.97, 0.03), (190, 0.47, 0.9, 0.1), (60, 0.47, 0.9, 0.1), (1_000, 0.05, 0.8, 0.05)],
)
def test_95_of_100_intervals_hold_the_truth(n, commerce, recall, false_alarms):
    """500 test sets drawn at random from a population in which the classifier's F1 and precision are known."""
    rng = np.random.default_rng(8)
    true_precision = commerce * recall / (commerce * recall + (1 - commerce) * false_alarms)
    true_f1 = 2 * true_precision * recall / (true_precision + recall)
    covered = {"f1": 0, "precision": 0}
    for _ in range(500):
        labels = (rng.random(n) < commerce).astype(int)
        scores = np.where(rng.random(n) < np.where(labels == 1, recall, false_alarms), 0.9, 0.1)
        (row,) = threshold_metrics(labels, scores, [0.5])
        for name, truth in (("f1", true_f1), ("precision", true_precision)):
            low, high = row["intervals"][name]
            covered[name] += low <= truth <= high
    assert 0.93 <= covered["f1"] / 500 <= 0.97 and 0.93 <= covered["precision"] / 500 <= 0.97, covered


def test_a_perfect_score_is_not_certainty():
    labels = np.array([1] * 20 + [0] * 20)
    (row,) = threshold_metrics(labels, labels * 0.8 + 0.1, [0.5])
    assert row["f1"] == 1 and row["intervals"]["f1"][0] < 0.95
    assert ranking_metrics(labels, labels * 0.8, 0) == {
        "roc_auc": 1.0,
        "pr_auc": 1.0,
        "intervals": {"roc_auc": None, "pr_auc": None},
    }


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=40), st.integers(0, 10))
def test_metrics_at_a_threshold_are_scikit_learns(pairs, step):
    labels = np.array([label for label, _ in pairs])
    scores, threshold = np.array([score / 4 for _, score in pairs]), step / 10
    (row,) = threshold_metrics(labels, scores, [threshold])
    flagged = scores >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(labels, flagged, average="binary", zero_division=0)
    expected = {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy_score(labels, flagged)}
    for key, value in expected.items():
        assert row[key] == pytest.approx(value)
        assert row["intervals"][key][0] - 1e-4 <= row[key] <= row["intervals"][key][1] + 1e-4 or not row[key]
    assert row["confusion_matrix"] == confusion_matrix(labels, flagged, labels=[0, 1]).tolist()


@pytest.mark.slow
def test_the_areas_are_scikit_learns_and_their_errors_a_bootstraps():
    rng = np.random.default_rng(0)
    labels = np.array([0, 1] * 30)
    scores = np.round(rng.random(60) * 0.6 + labels * 0.3, 1)  # with ties
    metrics = ranking_metrics(labels, scores, seed=1)
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, scores))
    drawn = {"roc_auc": [], "pr_auc": []}
    for _ in range(500):
        i = np.concatenate([rng.choice(np.flatnonzero(labels == k), 30) for k in (0, 1)])
        drawn["roc_auc"].append(roc_auc_score(labels[i], scores[i]))
        drawn["pr_auc"].append(average_precision_score(labels[i], scores[i]))
    for name, values in drawn.items():
        area, (low, high) = metrics[name], logit(metrics["intervals"][name])
        assert (high - low) / 2 / 1.96 * area * (1 - area) == pytest.approx(np.std(values), rel=0.1)
    assert ranking_metrics(labels, scores, seed=1) == metrics != ranking_metrics(labels, scores, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "pr_auc"), [(1.5, 0.839), (3.0, 0.9813), (4.0, 0.9974)])
def test_the_areas_intervals_hold_the_truth_near_one_too(distance, pr_auc, monkeypatch):
    """``pr_auc``: of two normal distributions ``distance`` apart, from 400,000 draws."""
    monkeypatch.setattr("prefilter_common.statistics.areas.AREA_RESAMPLES", 400)
    rng = np.random.default_rng(3)
    truth = {"roc_auc": norm.cdf(distance / np.sqrt(2)), "pr_auc": pr_auc}
    labels, held, judged = np.repeat([0, 1], [101, 89]), {"roc_auc": 0, "pr_auc": 0}, 0
    for seed in range(400):
        intervals = ranking_metrics(labels, rng.normal(distance * labels), seed)["intervals"]
        if intervals["roc_auc"]:
            judged += 1
            for name, (low, high) in intervals.items():
                held[name] += low <= truth[name] <= high
    assert all(0.92 <= n / judged <= 0.985 for n in held.values()), held


def test_an_error_is_never_hidden_by_100_to_100_percent():
    labels = np.repeat([0, 1], 500)
    scores = labels * 0.8 + 0.1
    scores[0] = 0.95  # one error among 1,000
    found = ranking_metrics(labels, scores, 0)
    for name in ("roc_auc", "pr_auc"):
        low, high = found["intervals"][name]
        assert low < found[name] < 1 and high <= 1 and low < 0.9995
