"""Does a faster way of scoring decide as the slow one does? Pure functions over numpy arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefilter_common.comparison import paired_f1_difference


@dataclass(frozen=True)
class Tolerance:
    """How far a configuration may be from PyTorch in fp32 that reads every article in full.

    ``f1_loss``: the 95 % interval of the F1 difference must lie above minus this, at every operating point.
    ``changed``: the largest share of articles that is decided otherwise at an operating point; not asked of a
    configuration that reads less, whose changes fall on articles of which the full read is unsure too.
    """

    f1_loss: float = 0.01
    changed: float = 0.01


def compare_scores(
    labels: np.ndarray | None, reference: np.ndarray, scores: np.ndarray, thresholds: Mapping[str, float], seed: int
) -> dict:
    """Two ways of scoring the same articles, as plain JSON values.

    Args:
        labels: (n,) 0 or 1; None where the articles have none, and then nothing is said of F1.
        reference: (n,) P(commerce) of the slow way.
        scores: (n,) P(commerce) of the fast one.

    Returns:
        ``max_score_difference``, ``mean_score_difference`` and ``points``: for each threshold ``changed`` (share of
        articles), ``f1_difference`` (positive where the fast way is better) and its paired ``interval``.
    """
    if not np.isfinite(scores).all():
        return {"max_score_difference": None, "mean_score_difference": None, "points": {}}
    difference = np.abs(scores - reference)
    points = {}
    for name, threshold in thresholds.items():
        theirs, ours = reference >= threshold, scores >= threshold
        points[name] = {"changed": float((theirs != ours).mean()), "f1_difference": None, "interval": None}
        if labels is not None:
            gap, interval, _ = paired_f1_difference(labels, ours, theirs, seed)
            points[name] |= {"f1_difference": gap, "interval": interval}
    return {
        "max_score_difference": float(difference.max()),
        "mean_score_difference": float(difference.mean()),
        "points": points,
    }


def refusal(comparison: Mapping, tolerance: Tolerance, reads_less: bool) -> str | None:
    """Why a configuration is outside the tolerance; None where it is inside."""
    if not comparison["points"]:
        return "scores that are no numbers"
    for name, point in comparison["points"].items():
        if not reads_less and point["changed"] >= tolerance.changed:
            return f"{point['changed']:.1%} of decisions changed at {name}"
        if point["interval"] is None and reads_less:
            return "no labels to judge it by"
        if point["interval"] is not None and point["interval"][0] <= -tolerance.f1_loss:
            return f"F1 at {name} may be {-100 * point['interval'][0]:.1f} points lower"
    return None
