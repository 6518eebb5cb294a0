import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score, precision_recall_curve

from prefilter_common.statistics.metrics import counts_at
from prefilter_common.statistics.operating_points import MAX_BLOCKED, SWEEP, choose_thresholds, curve, judge_points
from prefilter_common.statistics.prevalence import precision_interval


@pytest.fixture(scope="module")
def validation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    return labels, np.clip(rng.normal(0.25 + 0.5 * labels, 0.15), 0, 1)


def test_the_best_f1_is_the_best_of_all_thresholds_that_block_little_journalism(validation):
    labels, scores = validation
    allowed = [t for t in scores if (scores[labels == 0] >= t).mean() <= MAX_BLOCKED]
    best = max(f1_score(labels, scores >= t) for t in allowed)
    assert f1_score(labels, scores >= choose_thresholds(labels, scores, 0.95, 0.05)["best_f1"]) == pytest.approx(best)


@pytest.mark.parametrize("label", [0, 1])
def test_articles_of_one_label_give_no_point(label):
    assert choose_thresholds(np.full(50, label), np.linspace(0, 1, 50), 0.9, 0.05) == {}


def test_best_f1_never_means_drop_everything():
    assert choose_thresholds(np.array([0, 1]), np.array([0.5, 0.5]), 0.95, 0.05) == {}
    # scores that say nothing: F1 is highest where nearly everything is dropped
    labels = np.repeat([0, 1], 30)
    scores = np.concatenate([np.linspace(0.3, 0.6, 30), np.linspace(0.301, 0.601, 30)])
    best = max(scores, key=lambda t: f1_score(labels, scores >= t))
    assert (scores[labels == 0] >= best).mean() > 0.9
    points = choose_thresholds(labels, scores, 0.95, 0.05)
    assert (scores[labels == 0] >= points["best_f1"]).mean() <= MAX_BLOCKED


@pytest.mark.parametrize(("lowest", "nearest"), [(0.1, 0.275), (0.0, 0.85)])
def test_of_equally_good_thresholds_best_f1_is_the_nearest_to_a_half(lowest, nearest):
    # F1 is 0.8 where 4 of 6 are found without a false alarm, at 0.85, and where all are found with three.
    labels = np.array([1] * 4 + [0] * 3 + [1] * 2 + [0] * 57)
    scores = np.array([0.9] * 4 + [0.8] * 3 + [0.45 if lowest else 0.2] * 2 + [lowest] * 57)
    assert choose_thresholds(labels, scores, 0.95, 0.05)["best_f1"] == pytest.approx(nearest)


@pytest.mark.parametrize("gap", [1e-6, 1e-9])
def test_a_threshold_between_two_scores_stays_between_them(gap):
    """Validation scores have 6 decimals, those of articles scored now have more."""
    labels = np.repeat([0, 1], [20, 20])
    for below in np.linspace(0.99994, 0.99995, 11):
        scores = np.repeat([0.01, below, below + gap], [17, 3, 20])
        points = choose_thresholds(labels, scores, 0.5, 0.5)
        assert points.keys() == {"best_f1", "high_precision"}
        assert all(below < threshold < below + gap for threshold in points.values())


def test_high_precision_is_shown_where_commerce_is_rare():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [8_000, 500])
    scores = expit(rng.normal(np.where(labels, 2.5, -2.5), 1))
    thresholds = [choose_thresholds(labels, scores, 0.95, share)["high_precision"] for share in (0.02, 0.05, 0.47)]
    assert thresholds == sorted(thresholds, reverse=True) and thresholds[0] > thresholds[2]
    tp, fp, fn, tn = counts_at(labels, scores, np.array(thresholds[1:2]))
    assert precision_interval(0.05, tp, tp + fn, fp, fp + tn)[0] >= 0.95


@pytest.mark.parametrize(("n_journalism", "chosen"), [(101, False), (1_440, False), (1_480, True)])
def test_too_few_journalism_articles_give_no_high_precision(n_journalism, chosen):
    """A model without one error: about 1,456 for 95 % where 5 % is commerce."""
    labels = np.repeat([0, 1], [n_journalism, 5_000])
    scores = np.where(labels == 0, 0.1, np.where(np.arange(len(labels)) % 20, 0.9, 0.05))
    assert ("high_precision" in choose_thresholds(labels, scores, 0.95, 0.05)) == chosen


@pytest.mark.slow
@pytest.mark.parametrize(("n_commerce", "n_journalism"), [(200, 2_000), (90, 3_000)])
def test_a_precision_just_below_the_target_is_rarely_chosen(n_commerce, n_journalism):
    """The adversarial case: the true precision is just below the target at every threshold."""
    rng = np.random.default_rng(1)
    prevalence, target, wrong, runs = 0.05, 0.9, 0, 300
    false_alarms = prevalence * (1 - target) / ((1 - prevalence) * target) * 1.001
    labels = np.repeat([0, 1], [n_journalism, n_commerce])
    for _ in range(runs):
        flagged = (labels == 1) | (rng.random(len(labels)) < false_alarms)
        scores = (np.where(flagged, 1, 0) + rng.random(len(labels))) / 2
        wrong += "high_precision" in choose_thresholds(labels, scores, target, prevalence)
    assert wrong / runs <= 0.05  # 1.6 to 2.4 % of 2,000


def test_the_sweep_and_the_curve(validation):
    labels, scores = validation
    assert SWEEP[0] == 0.5 and SWEEP[-1] == 0.99 and len(SWEEP) == 50
    points = curve(labels, scores)
    assert len(points) == 200 and [p[0] for p in points] == sorted(p[0] for p in points)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    assert points[0] == pytest.approx([thresholds[0], precision[0], recall[0]], abs=1e-4)
    assert judge_points(labels, scores, {"x": 0.7})["x"]["f1"] == pytest.approx(f1_score(labels, scores >= 0.7))
    assert curve(np.zeros(3, int), np.ones(3)) == []
