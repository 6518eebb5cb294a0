"""Does a faster way of scoring decide as the slow one does?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from prefilter_common.statistics.comparison import paired_f1_difference
from prefilter_common.statistics.intervals import clopper_pearson
from prefilter_common.statistics.metrics import CONFIDENCE, as_interval

NO_NUMBER = "no number of articles would show that it is inside the tolerance"


@dataclass(frozen=True)
class Tolerance:
    """How far a configuration may be from PyTorch in fp32 that reads every article in full.

    ``f1_loss``: F1 must be shown not to be lower by this, at every operating point. ``changed``: the upper 95 % limit
    of the share of decisions that change at an operating point must lie below this; not applied to a configuration
    that reads less, whose changes fall on articles on which the full read is uncertain too.
    """

    f1_loss: float = 0.01
    changed: float = 0.01


class PointFidelity(TypedDict):
    """At one operating point: share of changed decisions with its interval, over ``n`` articles, and the F1 difference
    (positive: the fast way is better).

    ``f1_limit`` is the lowest F1 difference that is left open: the closer of the interval of the labelled articles, and
    what the changed decisions could do at worst, if each were a new error, unless the labelled articles show that more
    is lost. ``f1_per_change`` is what the first of them cost at worst: F1 for each percent that changes, in points.
    """

    n: int
    changed: float
    changed_interval: list[float]
    f1_difference: float | None
    interval: list[float] | None
    f1_limit: float | None
    f1_per_change: float | None


class Fidelity(TypedDict):
    """Of a fast way of scoring; ``points`` by operating point."""

    max_score_difference: float
    mean_score_difference: float
    points: dict[str, PointFidelity]


def compare_scores(
    labels: np.ndarray | None,
    reference: np.ndarray,
    scores: np.ndarray,
    thresholds: Mapping[str, float],
    seed: int,
    more: tuple[np.ndarray, np.ndarray] | None = None,
) -> Fidelity:
    """Two ways of scoring the same articles.

    Args:
        labels: (n,) 0 or 1; None where the articles have none, and then F1 is not compared.
        reference: (n,) P(commerce) of the slow way.
        scores: (n,) P(commerce) of the fast one.
        seed: of the paired bootstrap.
        more: the same two of (k,) other articles, such as training articles, on which only decisions are compared.
    """
    slow, fast = reference, scores
    if more is not None:
        slow, fast = np.concatenate([slow, more[0]]), np.concatenate([fast, more[1]])
    difference = np.abs(fast - slow)
    points: dict[str, PointFidelity] = {}
    for name, threshold in thresholds.items():
        changed = (slow >= threshold) != (fast >= threshold)
        interval = as_interval(*clopper_pearson(changed.sum(), len(changed)))
        points[name] = {
            "n": len(changed),
            "changed": float(changed.mean()),
            "changed_interval": interval,
            "f1_difference": None,
            "interval": None,
            "f1_limit": None,
            "f1_per_change": None,
        }
        if labels is not None:
            theirs, ours = reference >= threshold, scores >= threshold
            gap, f1_interval, _ = paired_f1_difference(labels, ours, theirs, seed)
            worst = _worst_f1_difference(labels, theirs, _limit(points[name]))
            if worst > f1_interval[1]:  # what is not labelled is unlike it, and says less
                worst = f1_interval[0]
            points[name] |= {
                "f1_difference": gap,
                "interval": f1_interval,
                # Where the reference finds no commerce, F1 cannot fall, and says nothing.
                "f1_limit": max(f1_interval[0], worst) if (theirs & (labels == 1)).any() else None,
                "f1_per_change": _f1_per_change(labels, theirs),
            }
    return {
        "max_score_difference": float(difference.max()),
        "mean_score_difference": float(difference.mean()),
        "points": points,
    }


def _limit(point: PointFidelity) -> float:
    """The upper limit of the share of changed decisions, which ``changed_interval`` rounds."""
    return float(clopper_pearson(round(point["changed"] * point["n"]), point["n"])[1])


def _worst_f1_difference(labels: np.ndarray, decisions: np.ndarray, changed: float) -> float:
    """The F1 difference if a share ``changed`` of the decisions became errors of the kind that costs more: misses."""
    tp = float((decisions & (labels == 1)).mean())
    wrong = float((decisions != (labels == 1)).mean())
    missed = min(changed, tp)
    before = 2 * tp / max(2 * tp + wrong, 1e-12)
    after = 2 * (tp - missed) / max(2 * (tp - missed) + wrong + changed, 1e-12)
    return after - before


def _f1_per_change(labels: np.ndarray, decisions: np.ndarray) -> float:
    """How fast F1 falls with the share of decisions that become misses: more where commerce is rare."""
    tp = float((decisions & (labels == 1)).mean())
    total = 2 * tp + float((decisions != (labels == 1)).mean())
    return round(2 * (total - tp) / total**2, 4) if total else 0.0


def unchanged_needed(tolerance: float) -> int:
    """How many articles without a changed decision show that fewer than ``tolerance`` change.

    0 where no number does, or none is needed.
    """
    return math.floor(math.log((1 - CONFIDENCE) / 2) / math.log1p(-tolerance)) + 1 if 0 < tolerance < 1 else 0


def _needed(changed: float, tolerance: float) -> str:
    """How many articles show that fewer than ``tolerance`` change, if the share ``changed`` of them does."""
    fewest = unchanged_needed(tolerance)
    if not fewest:
        return NO_NUMBER
    if not changed:
        return f"to show fewer than {tolerance:.1%} takes {fewest:,} without one"
    low, high = fewest, fewest
    while clopper_pearson(changed * high, high)[1] >= tolerance:
        low, high = high, 2 * high
    while high - low > high / 100:
        middle = (low + high) // 2
        low, high = (low, middle) if clopper_pearson(changed * middle, middle)[1] < tolerance else (middle, high)
    return f"to show fewer than {tolerance:.1%} at this share takes about {high:,}"


def refusal(fidelity: Fidelity, tolerance: Tolerance, reads_less: bool) -> str | None:
    """Why a configuration is outside the tolerance; None where it is inside."""
    for name, point in fidelity["points"].items():
        n, limit = point["n"], _limit(point)
        if not reads_less and limit >= tolerance.changed:
            if point["changed"] and point["changed"] >= tolerance.changed:
                return f"{point['changed']:.1%} of decisions changed at {name}"
            return (
                f"{round(point['changed'] * n)} of {n:,} decisions changed at {name}, so up to {limit:.1%} of all may; "
                f"{_needed(point['changed'], tolerance.changed)}"
            )
        if point["f1_limit"] is None and reads_less:
            return (
                "no labels to judge it on"
                if point["interval"] is None
                else f"no commerce found at {name} to judge it on"
            )
        if point["interval"] is not None and point["interval"][1] <= -tolerance.f1_loss:
            lower = -100 * (point["f1_difference"] or 0)
            return f"F1 at {name} is {lower:.1f} points lower, according to the labelled articles"
        if point["f1_limit"] is not None and point["f1_limit"] <= -tolerance.f1_loss:
            # The fall gets steeper with each change, but by no more than this factor.
            share = tolerance.f1_loss / (1 + tolerance.f1_loss) / (point["f1_per_change"] or 1)
            needed = unchanged_needed(share)
            return f"F1 at {name} may be {-100 * point['f1_limit']:.1f} points lower, judging by {n:,} articles; " + (
                f"without a changed decision {needed:,} would show that it is not" if needed else NO_NUMBER
            )
    return None
