"""Intervals of the areas under the ROC and the precision-recall curve, honest near 1.

Both are symmetrical on the scale of the logarithm of area / (1 - area), so they stay below 1. In simulations with 60 to
1,000 articles and areas of 0.84 to 0.998 they cover the true area in 94 to 97 %; the percentile bootstrap covers 81 to
94 %.
"""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from prefilter_common.articles import COMMERCE

AREA_RESAMPLES = 2000
# Articles times resamples in memory at once: 8 bytes each, in about six arrays.
RESAMPLED_AT_ONCE = 1_000_000


def roc_auc_interval(labels: np.ndarray, scores: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the area under the ROC curve, whose variance is DeLong's (1988). The area lies between 0 and 1.

    With fewer than about 20 articles of a label it is too narrow: in simulations with 200 journalism articles, normal
    scores and an area of 0.86 it covers the truth in 93 % with 20 commerce articles, in 90 with ten, in 78 with three.
    """
    positive, negative = scores[labels == COMMERCE], scores[labels != COMMERCE]
    ranks = rankdata(np.concatenate([positive, negative]))
    # Of each article, the share of those of the other label that it is ranked rightly against.
    of_positive = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    of_negative = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    variance = sum(placed.var(ddof=1) / len(placed) for placed in (of_positive, of_negative) if len(placed) > 1)
    return _around(float(of_positive.mean()), float(np.sqrt(variance)), confidence)


def pr_auc_interval(
    labels: np.ndarray, scores: np.ndarray, pr_auc: float, seed: int, confidence: float
) -> tuple[float, float]:
    """Interval of the average precision, whose variance is that of a bootstrap (Efron 1979) within each label."""
    return _around(pr_auc, float(_resampled_precision(labels, scores, seed).std()), confidence)


def _around(area: float, error: float, confidence: float) -> tuple[float, float]:
    spread = norm.ppf((1 + confidence) / 2) * error / max(area * (1 - area), 1e-12)
    return float(expit(logit(area) - spread)), float(expit(logit(area) + spread))


def _resampled_precision(labels: np.ndarray, scores: np.ndarray, seed: int) -> np.ndarray:
    """(AREA_RESAMPLES,) average precisions. Counts are resampled, so scores are sorted once."""
    rng = np.random.default_rng(seed)
    order = np.argsort(-scores, kind="stable")
    positive = labels[order] == COMMERCE
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    n_positive = int(positive.sum())
    found = []
    at_once = max(1, RESAMPLED_AT_ONCE // len(labels))
    for start in range(0, AREA_RESAMPLES, at_once):
        size = min(at_once, AREA_RESAMPLES - start)
        tp = _cumulative_draws(rng, positive, size)[:, last_of_tie]
        fp = _cumulative_draws(rng, ~positive, size)[:, last_of_tie]
        found.append((np.diff(tp, prepend=0) * tp / np.maximum(tp + fp, 1)).sum(axis=1) / n_positive)
    return np.concatenate(found)


def _cumulative_draws(rng: np.random.Generator, chosen: np.ndarray, size: int) -> np.ndarray:
    """(size, n) how often the first 1 … n articles were drawn when the chosen ones are resampled with replacement."""
    where = np.flatnonzero(chosen)
    drawn = where[rng.integers(len(where), size=(size, len(where)))]
    flat = drawn + len(chosen) * np.arange(size)[:, None]
    counts = np.bincount(flat.ravel(), minlength=size * len(chosen)).reshape(size, len(chosen))
    return counts.cumsum(axis=1)
