"""Intervals of what is not a single proportion of independent articles. All are elementwise and two-sided, 95 %."""

from collections.abc import Sequence

import numpy as np
from scipy.special import betainc, chndtrinc
from scipy.stats import beta, chi2, norm

from prefilter_common.statistics.metrics import CONFIDENCE, Interval, wilson

Number = float | np.ndarray
# Ratios of proportions are sought between e^-20 and e^20; a bisection to 1e-9 of that takes 36 steps, and one of [0, 1]
# to 1e-12 takes 40.
LOG_RANGE, STEPS = 20.0, 40


def clopper_pearson(successes: Number, n: Number) -> Interval:
    """Exact interval of a proportion (Clopper and Pearson 1934); (0, 1) where ``n`` is 0."""
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    tail = (1 - CONFIDENCE) / 2
    low = np.where(k > 0, beta.ppf(tail, np.maximum(k, 1), n - k + 1), 0.0)
    high = np.where(k < n, beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1)), 1.0)
    return low, high


def mid_p(successes: Number, n: Number) -> Interval:
    """Mid-P interval of a proportion (Berry and Armitage 1995); (0, 1) where ``n`` is 0, which need not be whole.

    Clopper and Pearson's, but each tail has only half of the probability of what was seen, so that it is not too wide.
    With 32 to 530 trials and proportions of 0.003 to 0.15 it covers the truth in 91.7 % or more and in 95 to 97 % on
    average, where Wilson's interval covers as little as 84 % if one success or none is expected (computed exactly).
    """
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    limits = []
    for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        low, high = np.zeros(k.shape), np.ones(k.shape)
        for _ in range(STEPS):
            middle = (low + high) / 2
            as_many = np.where(k > 0, betainc(np.maximum(k, 1e-9), n - k + 1, middle), 1.0)
            more = np.where(k < n, betainc(k + 1, np.maximum(n - k, 1e-9), middle), 0.0)
            below = (as_many + more) / 2 < tail
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        limits.append((low, high))
    return limits[0][0], limits[1][1]


def ratio_interval(x1: Number, n1: Number, x2: Number, n2: Number) -> Interval:
    """Interval of p1 / p2, two independent proportions: the score interval (Koopman 1984).

    Unlike the interval of the logarithm it exists where no trial succeeded: from 0 where ``x1`` is 0, to infinity where
    ``x2`` is.
    """
    x1, n1, x2, n2 = np.broadcast_arrays(*(np.asarray(value, float) for value in (x1, n1, x2, n2)))
    critical = norm.ppf((1 + CONFIDENCE) / 2) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = np.log((x1 / n1) / (x2 / n2))
    # Where one count is 0 the estimate is infinite, and the limit is sought from the other end of the range.
    start_low = np.clip(np.where(np.isnan(estimate), LOG_RANGE, estimate), -LOG_RANGE, LOG_RANGE)
    start_high = np.clip(np.where(np.isnan(estimate), -LOG_RANGE, estimate), -LOG_RANGE, LOG_RANGE)
    limits = []
    for inner, outer in ((start_low, -LOG_RANGE), (start_high, LOG_RANGE)):
        inside, outside = inner.copy(), np.full_like(inner, outer)
        for _ in range(STEPS):
            middle = (inside + outside) / 2
            accepted = _score(np.exp(middle), x1, n1, x2, n2) <= critical
            inside, outside = np.where(accepted, middle, inside), np.where(accepted, outside, middle)
        limits.append(np.exp(inside))
    return np.where(x1 == 0, 0.0, limits[0]), np.where(x2 == 0, np.inf, limits[1])


def _score(ratio: np.ndarray, x1: np.ndarray, n1: np.ndarray, x2: np.ndarray, n2: np.ndarray) -> np.ndarray:
    """Koopman's statistic: how far both counts are from what is most likely where p1 / p2 is ``ratio``."""
    a, c = (n1 + n2) * ratio, x1 + x2
    b = n1 * ratio + x1 + n2 + x2 * ratio
    p2 = 2 * c / (b + np.sqrt(np.maximum(b**2 - 4 * a * c, 0)))  # the smaller root, without cancellation
    p1 = np.minimum(p2 * ratio, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [(x - n * p) ** 2 / (n * p * (1 - p)) for x, n, p in ((x1, n1, p1), (x2, n2, p2))]
    return sum(np.nan_to_num(term, nan=0.0, posinf=np.inf) for term in terms)


def combination_interval(
    weights: Sequence[Number], values: Sequence[Number], intervals: Sequence[Interval]
) -> tuple[Number, Interval]:
    """A sum of independent estimates with fixed weights, and its interval from theirs (Zou and Donner 2008, MOVER)."""
    total = sum(w * v for w, v in zip(weights, values, strict=True))
    below = above = np.zeros(())
    for weight, value, (low, high) in zip(weights, values, intervals, strict=True):
        ends = np.array([weight * low, weight * high])
        below = below + (weight * value - ends.min(axis=0)) ** 2
        above = above + (ends.max(axis=0) - weight * value) ** 2
    return total, (total - np.sqrt(below), total + np.sqrt(above))


def effective_size(weights: np.ndarray, shares: np.ndarray | None = None) -> float:
    """How many equally weighted observations tell as much as these; 0 for none.

    Args:
        weights: (n,) > 0. If they say nothing of what is observed it is (Σw)² / Σw² (Kish 1965).
        shares: (n,) from 0 to 1, whose weighted mean p is of interest, with weights that may be other where they are
            high, since advertisements may be repeated more often than news. By the delta method for the log-odds of p,
            with one relative variance of the weights within both groups; as Kish's where the groups have equal weights.
    """
    if not len(weights):
        return 0.0
    kish = float(weights.sum() ** 2 / (weights**2).sum())
    if shares is None or not 0 < (plain := float(shares.mean())) < 1:
        return kish
    high = shares >= 0.5
    means = np.where(high, weights[high].mean() if high.any() else 1, weights[~high].mean() if (~high).any() else 1)
    within = float(((weights / means - 1) ** 2).mean())
    mean = float((weights * shares).sum() / weights.sum())
    return len(weights) * plain * (1 - plain) / (mean * (1 - mean)) / (1 + within)


def weighted_share(chosen: np.ndarray, weights: np.ndarray) -> tuple[float, Interval]:
    """Share of the weight that is chosen, and Wilson's interval at the effective sample size.

    In simulations with 300 and 1,000 texts, 5 and 20 % of them chosen and up to 50 copies of a text, it covers the true
    share in 94.4 to 95.7 %; with 300 to 5,000 texts of which those that are chosen, 2 to 5 %, occur 5 or 10 times and
    the others once, in 94.5 to 96.0 %.

    Args:
        chosen: (n,) bool.
        weights: (n,) > 0; for distinct texts, how often each occurs.
    """
    share = float(weights[chosen].sum() / weights.sum())
    n = effective_size(weights, chosen)
    return share, wilson(share * n, n)


def stability_index(before: np.ndarray, now: np.ndarray) -> tuple[float, float, float]:
    """The population stability index of two samples, less what chance alone adds, and its limits.

    Half an observation is added to each category. Times n·m / (n + m) the index follows a noncentral chi-squared
    distribution, whose noncentrality has the limits that make what was seen a 2.5 % event. In simulations with 4 and 10
    categories and 300 to 3,000 articles the interval covers the true index in 94 to 96 %; in 97 to 98.5 % where nothing
    has changed, since the index cannot be below 0 and only the upper tail errs.

    Args:
        before, now: (k,) counts of the same k categories.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, now))
    index = float(((q - p) * np.log(q / p)).sum())
    scale = before.sum() * now.sum() / (before.sum() + now.sum())
    freedom = max(len(before) - 1, 1)
    low, high = (
        _noncentrality(index * scale, freedom, tail) / scale for tail in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)
    )
    return float(max(index - freedom / scale, 0.0)), float(low), float(high)


def _noncentrality(seen: float, freedom: int, tail: float) -> float:
    """The noncentrality at which a share ``tail`` of the distribution lies below ``seen``; 0 where there is none."""
    if chi2.cdf(seen, freedom) <= tail:
        return 0.0
    return float(chndtrinc(seen, freedom, tail))
