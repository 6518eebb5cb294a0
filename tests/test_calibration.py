import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from prefilter_common.statistics.calibration import (
    at_temperature,
    calibration_error,
    calibration_summary,
    fit_temperature,
)
from prefilter_common.statistics.calibration import reliability as bins_of
from prefilter_common.statistics.metrics import wilson


@pytest.fixture(scope="module")
def overconfident():
    """Scores whose logits are three times too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    return (rng.random(20_000) < expit(logits)).astype(int), expit(3 * logits)


def test_the_temperature_is_found(overconfident):
    assert fit_temperature(*overconfident) == pytest.approx(3, rel=0.05)


def test_perfect_scores_on_few_articles_do_not_make_the_model_sure():
    labels = np.array([0, 1] * 10)
    temperature = fit_temperature(labels, np.where(labels == 1, 0.9, 0.1))
    # the softened labels are 11/12 and 1/12, and logit(11/12) = logit(0.9) / T
    assert temperature == pytest.approx(np.log(9) / np.log(11), rel=1e-3)


def test_temperature_does_not_change_which_side_of_a_half():
    scores = np.array([0, 1e-9, 0.3, 0.5, 0.7, 1])
    assert at_temperature(scores, 1) == pytest.approx(scores, abs=1e-9)
    assert ((at_temperature(scores, 4) >= 0.5) == (scores >= 0.5)).all()
    assert at_temperature(np.array([0.9]), 2)[0] == pytest.approx(0.75)  # odds 9 -> 3


def test_calibration_is_better_after_and_as_scikit_learn_has_it(overconfident):
    labels, raw = overconfident
    scores = at_temperature(raw, 3)
    summary = calibration_summary(labels, scores, 3)
    assert summary["brier"] == pytest.approx(brier_score_loss(labels, scores))
    assert summary["brier_before"] == pytest.approx(brier_score_loss(labels, raw))
    assert summary["ece"] < 0.02 < 0.05 < summary["ece_before"]
    share, mean = calibration_curve(labels, scores, n_bins=10)
    assert [b["commerce_share"] for b in summary["bins"]] == pytest.approx(share)
    assert [b["mean_score"] for b in summary["bins"]] == pytest.approx(mean)


def test_calibration_error_by_hand():
    # 0.05 against 0 of 2, 0.85 against 1 of 1, 0.95 against 0 of 1
    bins = bins_of(np.array([1, 0, 0, 0]), np.array([0.85, 0.95, 0.05, 0.05]))
    assert [b["n"] for b in bins] == [2, 1, 1] and bins[-1]["high"] == 1
    assert calibration_error(bins) == pytest.approx((2 * 0.05 + 0.15 + 0.95) / 4)
    assert bins_of(np.array([1]), np.array([1.0]))[0]["low"] == 0.9


def test_the_interval_of_a_bin_is_that_of_its_share_of_commerce():
    (found,) = bins_of(np.array([1, 1, 1, 0]), np.full(4, 0.72))
    assert found["commerce_share"] == 0.75 and found["interval"] == pytest.approx(np.ravel(wilson(3, 4)), abs=1e-4)
