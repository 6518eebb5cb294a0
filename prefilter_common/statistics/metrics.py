"""Labels and scores in, metrics with their intervals out.

Precision, recall, accuracy and F1 get Wilson's interval for a proportion; the intervals of the areas under the curves
are in ``areas``. All intervals are 95 % and two-sided.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from prefilter_common.articles import COMMERCE, JOURNALISM
from prefilter_common.statistics.areas import pr_auc_interval, roc_auc_interval

CONFIDENCE = 0.95
Interval = tuple[np.ndarray, np.ndarray]


class MetricsRow(TypedDict):
    """Metrics of commerce; ``intervals`` by metric, [low, high]."""

    f1: float
    precision: float
    recall: float
    accuracy: float
    intervals: dict[str, list[float]]
    confusion_matrix: list[list[int]]


class ThresholdMetrics(MetricsRow):
    """Those at one threshold."""

    threshold: float


class RankingMetrics(TypedDict):
    """The areas under the curves."""

    roc_auc: float
    pr_auc: float
    intervals: dict[str, list[float] | None]


def wilson(successes: np.ndarray | float, n: np.ndarray | float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion (Wilson 1927), elementwise; (0, 1) where ``n`` is 0.

    Unlike the textbook p ± 1.96 s it stays inside [0, 1] and does not shrink to a point when every trial succeeded.
    scipy's takes one proportion at a time.
    """
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    z2 = norm.ppf((1 + confidence) / 2) ** 2
    some = np.maximum(n, 1)
    p = successes / some
    centre = p + z2 / (2 * some)
    spread = np.sqrt(z2 * (p * (1 - p) + z2 / (4 * some)) / some)
    scale = 1 + z2 / some
    low = np.where(n == 0, 0.0, (centre - spread) / scale)
    high = np.where(n == 0, 1.0, (centre + spread) / scale)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def counts_at(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, ...]:
    """True positives, false positives, false negatives, true negatives at each of (k,) thresholds: four (k,) arrays."""
    positive, negative = np.sort(scores[labels == COMMERCE]), np.sort(scores[labels == JOURNALISM])
    fn, tn = np.searchsorted(positive, thresholds), np.searchsorted(negative, thresholds)
    return len(positive) - fn, len(negative) - tn, fn, tn


def count_intervals(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> dict[str, Interval]:
    """Intervals of F1, precision, recall and accuracy from confusion counts, elementwise.

    F1 is not a proportion, but F* = TP / (TP + FP + FN) is, and F1 = 2 F* / (1 + F*) increases with it, so Wilson's
    limits for F* carry over (Lam, Gopal and Qian 2023, "Confidence intervals for the F1 score", the indirect Wilson
    method). In simulations with articles drawn at random they cover the true F1 in 94.6 to 96.0 % (60 to 1,000
    articles, F1 0.47 to 0.97) and the true precision in 94.9 to 96.3 %; where the share of commerce is fixed in advance
    and small (5 %) they are wider than needed. The stratified percentile bootstrap covers 91 % (F1 0.97, 190 articles)
    and 85 % (precision).
    """
    low, high = wilson(tp, tp + fp + fn)
    return {
        "f1": (2 * low / (1 + low), 2 * high / (1 + high)),
        "precision": wilson(tp, tp + fp),
        "recall": wilson(tp, tp + fn),
        "accuracy": wilson(tp + tn, tp + fp + fn + tn),
    }


def threshold_metrics(labels: np.ndarray, scores: np.ndarray, thresholds: Sequence[float]) -> list[ThresholdMetrics]:
    """F1, precision, recall and accuracy of commerce with their intervals, and the confusion matrix, at each threshold.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) P(commerce); an article is flagged at a threshold or above.

    Returns:
        Plain JSON values; ``confusion_matrix`` has rows true, columns predicted, journalism first.
    """
    tp, fp, fn, tn = counts_at(labels, scores, np.asarray(thresholds, float))
    ratios = {
        "f1": (2 * tp, 2 * tp + fp + fn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "accuracy": (tp + tn, tp + fp + fn + tn),
    }
    limits = count_intervals(tp, fp, fn, tn)
    values = {name: top / np.maximum(bottom, 1) for name, (top, bottom) in ratios.items()}
    return [
        ThresholdMetrics(
            threshold=float(threshold),
            f1=float(values["f1"][i]),
            precision=float(values["precision"][i]),
            recall=float(values["recall"][i]),
            accuracy=float(values["accuracy"][i]),
            intervals={name: as_interval(low[i], high[i]) for name, (low, high) in limits.items()},
            confusion_matrix=[[int(tn[i]), int(fp[i])], [int(fn[i]), int(tp[i])]],
        )
        for i, threshold in enumerate(thresholds)
    ]


def ranking_metrics(labels: np.ndarray, scores: np.ndarray, seed: int) -> RankingMetrics:
    """ROC-AUC and PR-AUC (average precision), of articles of both labels, with the intervals of ``areas``.

    Returns:
        The areas and ``intervals`` of both. An interval is None where the scores separate the labels perfectly, rightly
        or in reverse, or are all the same, since nothing then says how far off the truth is.
    """
    roc_auc, pr_auc = float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores))
    intervals: dict[str, list[float] | None] = {"roc_auc": None, "pr_auc": None}
    if 0 < roc_auc < 1 and scores.min() < scores.max():
        intervals["roc_auc"] = as_interval(*roc_auc_interval(labels, scores, CONFIDENCE))
        intervals["pr_auc"] = as_interval(*pr_auc_interval(labels, scores, pr_auc, seed, CONFIDENCE))
    return {"roc_auc": roc_auc, "pr_auc": pr_auc, "intervals": intervals}


def as_interval(low: float | np.ndarray, high: float | np.ndarray) -> list[float]:
    """Two limits as JSON values, rounded to four decimals."""
    return [round(float(low), 4), round(float(high), 4)]


def latency_summary(seconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, percentiles (linear interpolation) and range in milliseconds."""
    ms = np.asarray(seconds) * 1000
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    values = {"avg": ms.mean(), "p50": p50, "p95": p95, "p99": p99, "min": ms.min(), "max": ms.max()}
    return {f"{name}_ms": round(float(value), 3) for name, value in values.items()}
