"""Thresholds on P(commerce): chosen on validation articles, judged on others, kept in the contract by name."""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_curve

from prefilter_common.cli import InputError
from prefilter_common.metrics import count_intervals, counts_at, threshold_metrics

VALIDATION_FILE = "validation_predictions.jsonl"
DEFAULT, BEST_F1, HIGH_PRECISION = "default", "best_f1", "high_precision"
SWEEP = [round(0.5 + 0.01 * i, 2) for i in range(50)]
MAX_CURVE_POINTS = 200


def choose_thresholds(labels: np.ndarray, scores: np.ndarray, target_precision: float) -> dict[str, float]:
    """The named operating points, from (n,) validation labels and scores.

    ``best_f1`` has the highest F1 there, and of equals lies nearest to 0.5. ``high_precision`` is the lowest threshold
    whose precision has a 95 % interval that lies at or above ``target_precision``; it is left out where no threshold
    reaches that, which with fewer than 73 commerce articles and a target of 0.95 not even a perfect model does.
    """
    present = np.unique(scores)
    # Halfway between two scores: a threshold on a score itself would be decided by rounding.
    candidates = np.append(0.0, (present[1:] + present[:-1]) / 2)
    counts = counts_at(labels, scores, candidates)
    tp, fp, fn, _ = counts
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    best = candidates[f1 == f1.max()]
    points = {BEST_F1: float(best[np.argmin(np.abs(best - 0.5))])}
    reached = candidates[count_intervals(*counts)["precision"][0] >= target_precision]
    if len(reached):
        points[HIGH_PRECISION] = float(reached[0])
    return {name: round(threshold, 6) for name, threshold in points.items()}


def judge_points(labels: np.ndarray, scores: np.ndarray, thresholds: dict[str, float]) -> dict[str, dict]:
    """Precision, recall, F1 and accuracy with intervals at each named threshold, on articles that did not choose it."""
    return dict(zip(thresholds, threshold_metrics(labels, scores, list(thresholds.values())), strict=True))


def curve(labels: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """At most 200 points [threshold, precision, recall] of the precision-recall curve, by rising threshold."""
    if not labels.any():
        return []
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    every = np.linspace(0, len(thresholds) - 1, min(len(thresholds), MAX_CURVE_POINTS)).astype(int)
    return [[round(float(v), 4) for v in (thresholds[i], precision[i], recall[i])] for i in every]


def read_validation(directory: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and calibrated scores of the validation articles that training left in a model directory, or None.

    Raises InputError for a file that is not what training writes.
    """
    path = directory / VALIDATION_FILE
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return np.array([int(row["label"]) for row in rows]), np.array([float(row["score"]) for row in rows])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what training writes ({error}); delete it and pass --val-data") from None
