import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from prefilter_common.metrics import wilson
from prefilter_common.operating_points import SWEEP, choose_thresholds, curve, judge_points


@pytest.fixture(scope="module")
def validation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    return labels, np.clip(rng.normal(0.25 + 0.5 * labels, 0.15), 0, 1)


def test_the_best_f1_is_the_best_of_all_thresholds(validation):
    labels, scores = validation
    best = max(f1_score(labels, scores >= t) for t in scores)
    assert f1_score(labels, scores >= choose_thresholds(labels, scores, 0.95)["best_f1"]) == pytest.approx(best)


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95])
def test_high_precision_is_the_lowest_threshold_whose_bound_reaches_the_target(validation, target):
    labels, scores = validation
    threshold = choose_thresholds(labels, scores, target)["high_precision"]

    def bound(t):
        flagged = labels[scores >= t]
        return wilson(flagged.sum(), len(flagged))[0]

    assert bound(threshold) >= target
    assert all(bound(t) < target for t in scores[scores < threshold])


def test_no_threshold_where_too_few_articles_could_ever_reach_the_target():
    for n, reached in ((72, False), (73, True)):
        labels = np.array([1] * n + [0] * 100)
        assert ("high_precision" in choose_thresholds(labels, labels * 0.9, 0.95)) == reached


def test_one_score_for_all_articles():
    assert choose_thresholds(np.array([0, 1]), np.array([0.5, 0.5]), 0.95) == {"best_f1": 0.0}


def test_the_sweep_and_the_curve(validation):
    labels, scores = validation
    assert SWEEP[0] == 0.5 and SWEEP[-1] == 0.99 and len(SWEEP) == 50
    points = curve(labels, scores)
    assert len(points) == 200 and [p[0] for p in points] == sorted(p[0] for p in points)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    assert points[0] == pytest.approx([thresholds[0], precision[0], recall[0]], abs=1e-4)
    assert judge_points(labels, scores, {"x": 0.7})["x"]["f1"] == pytest.approx(f1_score(labels, scores >= 0.7))
    assert curve(np.zeros(3, int), np.ones(3)) == []
