"""Thresholds on P(commerce), by name: chosen on validation articles, judged on others."""

import numpy as np
from sklearn.metrics import precision_recall_curve

from prefilter_common.articles import COMMERCE
from prefilter_common.statistics.metrics import ThresholdMetrics, counts_at, threshold_metrics
from prefilter_common.statistics.prevalence import precision_interval

DEFAULT, BEST_F1, HIGH_PRECISION = "default", "best_f1", "high_precision"
SWEEP = [round(0.5 + 0.01 * i, 2) for i in range(50)]
MAX_CURVE_POINTS = 200
# Where a larger share of the journalism is blocked, precision is below 52 % at 5 % commerce whatever the recall.
MAX_BLOCKED = 0.05


def choose_thresholds(
    labels: np.ndarray, scores: np.ndarray, target_precision: float, prevalence: float
) -> dict[str, float]:
    """The named operating points, from (n,) validation labels and scores.

    ``best_f1`` has the highest F1 there of the thresholds that block at most 5 % of the journalism and, of equals, lies
    nearest to 0.5. ``high_precision`` is the lowest threshold shown to have ``target_precision`` where a share
    ``prevalence`` is commerce. A point that no threshold reaches is left out; where one label is missing, both are.
    """
    if len(np.unique(labels)) < 2:
        return {}
    present = np.unique(scores)
    # Halfway between two scores: on a score itself, rounding would decide.
    candidates = np.append(0.0, (present[1:] + present[:-1]) / 2)
    tp, fp, fn, tn = counts_at(labels, scores, candidates)
    allowed = fp <= MAX_BLOCKED * (fp + tn)
    points = {}
    if allowed.any():
        f1 = np.where(allowed, 2 * tp / np.maximum(2 * tp + fp + fn, 1), -1)
        best = candidates[f1 == f1.max()]
        points[BEST_F1] = float(best[np.argmin(np.abs(best - 0.5))])
    shown = _shown_precision(labels, scores, candidates, target_precision, prevalence)
    if shown is not None:
        points[HIGH_PRECISION] = shown
    # Only the noise of floating point goes: scores have 6 decimals, so that 6 would put a threshold onto one of them.
    return {name: round(threshold, 12) for name, threshold in points.items()}


def _shown_precision(
    labels: np.ndarray, scores: np.ndarray, candidates: np.ndarray, target: float, prevalence: float
) -> float | None:
    """The lowest threshold with the target precision at a prevalence, by fixed-sequence testing; None for none.

    Thresholds are tested from the highest down, and the first that fails ends it, so all tests together err as rarely
    as one (Angelopoulos et al. 2021, "Learn then test"). A threshold passes where the lower limit of the interval of
    its precision reaches the target. The sequence has one threshold below each commerce score, and begins where the
    target could be shown if no journalism were flagged; both depend on the commerce scores alone, hence not on the
    false alarms that are tested. Where the true precision is just below the target at every threshold, 1.6 to 2.4 % of
    simulated validation sets pass one: the limit is that of a two-sided 95 % interval, half of the 5 % allowed.
    """
    commerce = np.unique(scores[labels == COMMERCE])[::-1]
    sequence = candidates[np.searchsorted(candidates, commerce, side="right") - 1]
    tp, fp, fn, tn = counts_at(labels, scores, sequence)
    possible = precision_interval(prevalence, tp, tp + fn, 0 * fp, fp + tn)[0] >= target
    if not possible.any():
        return None
    start = int(possible.argmax())
    passed = precision_interval(prevalence, tp, tp + fn, fp, fp + tn)[0][start:] >= target
    n_passed = len(passed) if passed.all() else int(passed.argmin())
    return float(sequence[start + n_passed - 1]) if n_passed else None


def judge_points(labels: np.ndarray, scores: np.ndarray, thresholds: dict[str, float]) -> dict[str, ThresholdMetrics]:
    """The metrics with intervals at each named threshold, on articles that it was not chosen on."""
    return dict(zip(thresholds, threshold_metrics(labels, scores, list(thresholds.values())), strict=True))


def curve(labels: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """At most 200 points [threshold, precision, recall] of the precision-recall curve, by rising threshold."""
    if not labels.any():
        return []
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    every = np.linspace(0, len(thresholds) - 1, min(len(thresholds), MAX_CURVE_POINTS)).astype(int)
    return [[round(float(v), 4) for v in (thresholds[i], precision[i], recall[i])] for i in every]
