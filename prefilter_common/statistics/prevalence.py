"""From a test set, half of it commerce, to production, where commerce is rare.

Recall and false-positive rate are properties of a model and carry over to another mix of the two labels, as long as
the articles of each label are of the same kind; precision does not.
"""

import math
from typing import TypedDict

import numpy as np
from scipy.stats import norm

from prefilter_common.statistics.intervals import STEPS, Number, combination_interval, mid_p, ratio_interval
from prefilter_common.statistics.metrics import CONFIDENCE, Interval, as_interval, counts_at

PER = 1_000  # articles
# A model that finds this share of the commerce is what ``journalism_needed`` assumes.
ASSUMED_RECALL = 0.95


class Confusion(TypedDict):
    """Counts on labelled articles: commerce flagged, all commerce, journalism flagged, all journalism."""

    tp: int
    n_commerce: int
    fp: int
    n_journalism: int


class PerThousand(TypedDict):
    """Articles of 1,000, and the interval of their number."""

    value: float
    interval: list[float]


class Costs(TypedDict):
    """In one currency: what scoring an article costs, which blocking saves, and what blocking journalism costs."""

    per_article: float
    of_blocking: float


def confusion_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Confusion:
    """The counts on labelled articles at one threshold."""
    tp, fp, fn, tn = (int(count[0]) for count in counts_at(labels, scores, np.array([threshold])))
    return {"tp": tp, "n_commerce": tp + fn, "fp": fp, "n_journalism": fp + tn}


def precision_at(prevalence: float, confusion: Confusion) -> tuple[float | None, Interval]:
    """Precision where a share ``prevalence`` of the articles is commerce, and its interval.

    Bayes' rule; the interval is Koopman's for the ratio of recall to false-positive rate, on which precision depends
    alone. The estimate is None where nothing was flagged.
    """
    tp, n_commerce, fp, n_journalism = (confusion[key] for key in ("tp", "n_commerce", "fp", "n_journalism"))
    low, high = precision_interval(prevalence, tp, n_commerce, fp, n_journalism)
    if not (tp or fp) or not n_commerce or not n_journalism:
        return None, (low, high)
    right, wrong = prevalence * tp / n_commerce, (1 - prevalence) * fp / n_journalism
    return right / (right + wrong) if right + wrong else None, (low, high)


def precision_interval(prevalence: float, tp: Number, n_commerce: Number, fp: Number, n_journalism: Number) -> Interval:
    """The interval alone, elementwise over counts."""
    limits = []
    for ratio in ratio_interval(tp, n_commerce, fp, n_journalism):
        with np.errstate(invalid="ignore"):
            share = prevalence * ratio / (prevalence * ratio + 1 - prevalence)
        # Nothing but commerce, and perhaps none of it flagged, leaves 0 / 0.
        limits.append(np.where(np.isinf(ratio), 1.0, np.nan_to_num(share)))
    return limits[0], limits[1]


def prevalence_from_flags(flag_rate: float, n: float, confusion: Confusion) -> tuple[float, Interval] | None:
    """Share of commerce in articles of which a share ``flag_rate`` was flagged, and its interval.

    The flag rate is corrected by the recall and the false-positive rate found on labelled articles (Rogan and Gladen
    1978). Both are cut to [0, 1]; both ends of the interval are 0 or 1, but for rounding, where so few or so many
    were flagged that no share fits. None where the model does not flag commerce more often than journalism.

    Args:
        n: articles behind ``flag_rate``; with repeated texts, their effective number.
    """
    recall = confusion["tp"] / max(confusion["n_commerce"], 1)
    false_alarms = confusion["fp"] / max(confusion["n_journalism"], 1)
    if recall <= false_alarms:
        return None
    limits = prevalence_interval(flag_rate, n, **confusion)
    return float(_rogan_gladen(flag_rate, recall, false_alarms)), limits


def _rogan_gladen(flag_rate: Number, recall: Number, false_alarms: Number) -> np.ndarray:
    return np.clip((flag_rate - false_alarms) / (recall - false_alarms), 0, 1)


def prevalence_interval(
    flag_rate: Number, n: Number, tp: Number, n_commerce: Number, fp: Number, n_journalism: Number
) -> Interval:
    """The interval alone, elementwise, where recall is above the false-positive rate.

    It has the shares π for which the interval of flag rate - π · recall - (1 - π) · false-positive rate contains 0, as
    Fieller's does for a ratio; that of the difference is MOVER's, from mid-P intervals of the three rates (Zou and
    Donner 2010). So it contains the uncertainty of all three.
    """
    rates = flag_rate, tp / np.maximum(n_commerce, 1), fp / np.maximum(n_journalism, 1)
    intervals = [mid_p(flag_rate * n, n), mid_p(tp, n_commerce), mid_p(fp, n_journalism)]
    limits = []
    for end in (0.0, 1.0):
        inside = _rogan_gladen(*rates)
        outside = np.full_like(inside, end)
        for _ in range(STEPS):
            middle = (inside + outside) / 2
            _, (low, high) = combination_interval((1.0, -middle, middle - 1), rates, intervals)
            fits = (low <= 0) & (high >= 0)
            inside, outside = np.where(fits, middle, inside), np.where(fits, outside, middle)
        limits.append(outside)
    return limits[0], limits[1]


def per_thousand(prevalence: float, confusion: Confusion) -> dict[str, PerThousand]:
    """Of 1,000 articles: journalism blocked, commerce correctly dropped, commerce let through, with intervals."""
    commerce, journalism = PER * prevalence, PER * (1 - prevalence)
    counts = {
        "journalism_blocked": (journalism, confusion["fp"], confusion["n_journalism"]),
        "commerce_dropped": (commerce, confusion["tp"], confusion["n_commerce"]),
        "commerce_let_through": (commerce, confusion["n_commerce"] - confusion["tp"], confusion["n_commerce"]),
    }
    return {
        name: {
            "value": scale * count / max(n, 1),
            "interval": as_interval(*(scale * limit for limit in mid_p(count, n))),
        }
        for name, (scale, count, n) in counts.items()
    }


def saving(prevalence: float, confusion: Confusion, costs: Costs) -> tuple[float, list[float]]:
    """Expected saving per 1,000 articles and its interval: what need not be scored, less what blocking costs."""
    total, limits = expected_saving(prevalence, costs, **confusion)
    return float(total), as_interval(*limits)


def expected_saving(
    prevalence: float, costs: Costs, tp: Number, n_commerce: Number, fp: Number, n_journalism: Number
) -> tuple[Number, Interval]:
    """The same, elementwise over counts.

    The interval is MOVER's for a linear function of two proportions (Zou, Huang and Zhang 2009), from their mid-P
    intervals.
    """
    weights = (
        PER * prevalence * costs["per_article"],
        PER * (1 - prevalence) * (costs["per_article"] - costs["of_blocking"]),
    )
    counts = ((tp, n_commerce), (fp, n_journalism))
    return combination_interval(weights, [k / np.maximum(n, 1) for k, n in counts], [mid_p(k, n) for k, n in counts])


def journalism_needed(prevalence: float, target_precision: float) -> int:
    """How many journalism articles without one false alarm show ``target_precision`` at ``prevalence``.

    Wilson's upper limit of the false-positive rate must be low enough for a model that finds 95 % of the commerce:
    1,456 articles for 95 % where 5 % is commerce.
    """
    allowed = prevalence * ASSUMED_RECALL * (1 - target_precision) / ((1 - prevalence) * target_precision)
    return math.ceil(norm.ppf((1 + CONFIDENCE) / 2) ** 2 * max(1 / allowed - 1, 0))
