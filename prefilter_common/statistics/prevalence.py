"""From a test set, half of it commerce, to production, where commerce is rare.

Recall and false-positive rate are properties of a model and carry over to another mix of the two labels, as long as
the articles of each label are of the same kind; precision does not.
"""

import math
from typing import TypedDict

import numpy as np
from scipy.stats import norm

from prefilter_common.statistics.intervals import Number, combination_interval, ratio_interval
from prefilter_common.statistics.metrics import CONFIDENCE, Interval, as_interval, wilson

PER = 1_000  # articles
# A model that finds this share of the commerce is what ``journalism_needed`` assumes.
ASSUMED_RECALL = 0.95


class Confusion(TypedDict):
    """Counts on labelled articles: commerce flagged, all commerce, journalism flagged, all journalism."""

    tp: int
    n_commerce: int
    fp: int
    n_journalism: int


class Costs(TypedDict):
    """In one currency: what scoring an article costs, which blocking saves, and what blocking journalism costs."""

    per_article: float
    of_blocking: float


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


def prevalence_from_flags(flag_rate: float, n: float, confusion: Confusion) -> tuple[float, list[float]] | None:
    """Share of commerce in articles of which a share ``flag_rate`` was flagged, and its interval.

    The flag rate is corrected by the recall and the false-positive rate found on labelled articles (Rogan and Gladen
    1978); the interval is that of Lang and Reiczigel (2014), which contains the uncertainty of all three. Both are cut
    to [0, 1]. None where the model does not flag commerce more often than journalism.

    Args:
        n: articles behind ``flag_rate``; with repeated texts, their effective number.
    """
    z = norm.ppf((1 + CONFIDENCE) / 2)
    sensitivity = confusion["tp"] / max(confusion["n_commerce"], 1)
    specificity = 1 - confusion["fp"] / max(confusion["n_journalism"], 1)
    flagged = (n * flag_rate + z**2 / 2) / (n + z**2)
    n_se, n_sp = confusion["n_commerce"] + 2, confusion["n_journalism"] + 2
    se, sp = (confusion["tp"] + 1) / n_se, (n_sp - 1 - confusion["fp"]) / n_sp
    youden = se + sp - 1
    if youden <= 0 or sensitivity + specificity <= 1:
        return None
    share = (flagged + sp - 1) / youden
    shift = 2 * z**2 * (share * se * (1 - se) / n_se - (1 - share) * sp * (1 - sp) / n_sp)
    variance = (
        flagged * (1 - flagged) / (n + z**2) + share**2 * se * (1 - se) / n_se + (1 - share) ** 2 * sp * (1 - sp) / n_sp
    ) / youden**2
    spread = z * math.sqrt(variance)
    estimate = (flag_rate + specificity - 1) / (sensitivity + specificity - 1)
    limits = np.clip([share + shift - spread, share + shift + spread], 0, 1)
    return min(max(estimate, 0.0), 1.0), as_interval(*limits)


def per_thousand(prevalence: float, confusion: Confusion) -> dict[str, dict[str, float | list[float]]]:
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
            "interval": as_interval(*(scale * limit for limit in wilson(count, n))),
        }
        for name, (scale, count, n) in counts.items()
    }


def saving(prevalence: float, confusion: Confusion, costs: Costs) -> tuple[float, list[float]]:
    """Expected saving per 1,000 articles and its interval: what need not be scored, less what blocking costs."""
    weights = (
        PER * prevalence * costs["per_article"],
        PER * (1 - prevalence) * (costs["per_article"] - costs["of_blocking"]),
    )
    counts = ((confusion["tp"], confusion["n_commerce"]), (confusion["fp"], confusion["n_journalism"]))
    values = [k / max(n, 1) for k, n in counts]
    total, limits = combination_interval(weights, values, [wilson(k, n) for k, n in counts])
    return float(total), as_interval(*limits)


def journalism_needed(prevalence: float, target_precision: float) -> int:
    """How many journalism articles without one false alarm show ``target_precision`` at ``prevalence``.

    Wilson's upper limit of the false-positive rate must be low enough for a model that finds 95 % of the commerce:
    1,456 articles for 95 % where 5 % is commerce.
    """
    allowed = prevalence * ASSUMED_RECALL * (1 - target_precision) / ((1 - prevalence) * target_precision)
    return math.ceil(norm.ppf((1 + CONFIDENCE) / 2) ** 2 * max(1 / allowed - 1, 0))
