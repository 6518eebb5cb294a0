"""Scores in, the sections of evaluation_results.json out. No model is loaded here and nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from prefilter_common.articles import COMMERCE, Article, labels_of
from prefilter_common.evaluation.slices import (
    SliceRow,
    WorstSlice,
    article_slices,
    held_out_slices,
    slice_metrics,
    token_slices,
    worst_slice,
)
from prefilter_common.statistics.calibration import CalibrationSummary, calibration_summary
from prefilter_common.statistics.metrics import ThresholdMetrics, ranking_metrics, threshold_metrics
from prefilter_common.statistics.operating_points import DEFAULT, SWEEP, curve, judge_points

MAX_ERRORS = 12
MAX_ERROR_TEXT = 1_500  # characters shown of each


class QualityIntervals(TypedDict):
    """[low, high] of each metric; None for the areas where the scores separate the labels."""

    f1: list[float]
    precision: list[float]
    recall: list[float]
    accuracy: list[float]
    roc_auc: list[float] | None
    pr_auc: list[float] | None


class Quality(TypedDict):
    """Metrics of all test articles at the default threshold, and the areas under the curves."""

    accuracy: float
    f1: float
    precision: float
    recall: float
    roc_auc: float
    confusion_matrix: list[list[int]]
    pr_auc: float
    intervals: QualityIntervals


class Benchmarked(TypedDict):
    """Of a benchmark's latency: of what articles and on what machine it was measured, with which engine and stages, and
    the F1 of these on its test articles; None in the record of an earlier version.
    """

    cpu_benchmark_on: str | None
    cpu_benchmark_with: str | None
    cpu_benchmark_f1: float | None


class SweepRow(TypedDict):
    """The metrics at one of the thresholds of the sweep."""

    threshold: float
    precision: float
    recall: float
    f1: float


class QualityRow(Quality):
    """What one model's scores show; ``operating_points`` by name, ``pr_curve`` of [threshold, precision, recall]."""

    slices: list[SliceRow]
    worst_slice: WorstSlice | None
    calibration: CalibrationSummary
    operating_points: dict[str, ThresholdMetrics]
    sweep: list[SweepRow]
    pr_curve: list[list[float]]


class WrongArticle(TypedDict):
    """An article that a model decides wrongly; its texts are cut."""

    id: str | None
    label: int | None
    score: float
    language: str | None
    source: str | None
    characters: int
    title: str
    content: str


@dataclass(frozen=True)
class Scored:
    """What evaluation needs of a model once it has been run.

    ``scores`` (n,) of the test articles, ``n_tokens`` (n,) of each before it is cut at ``max_length``, ``traffic``
    (m,) scores of the traffic or None, ``audited`` those of the labelled articles of an audit or None, ``validation``
    labels and scores of the articles on which thresholds were chosen or None, ``thresholds`` by operating point,
    ``unread`` the share of the test and traffic articles that no model reads, by role.
    """

    scores: np.ndarray
    n_tokens: np.ndarray
    max_length: int
    temperature: float
    thresholds: Mapping[str, float]
    traffic: np.ndarray | None = None
    audited: np.ndarray | None = None
    validation: tuple[np.ndarray, np.ndarray] | None = None
    unread: Mapping[str, float] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """The default one."""
        return self.thresholds[DEFAULT]

    @property
    def decisions(self) -> np.ndarray:
        """(n,) bool: flagged at the default threshold."""
        return self.scores >= self.threshold


def quality(labels: np.ndarray, scores: np.ndarray, threshold: float, seed: int) -> Quality:
    """Of (n,) labels and scores, with intervals. ``seed`` is the bootstrap's."""
    (at,), areas = threshold_metrics(labels, scores, [threshold]), ranking_metrics(labels, scores, seed)
    of_one, of_areas = at["intervals"], areas["intervals"]
    return {
        "accuracy": at["accuracy"],
        "f1": at["f1"],
        "precision": at["precision"],
        "recall": at["recall"],
        "roc_auc": areas["roc_auc"],
        "confusion_matrix": at["confusion_matrix"],
        "pr_auc": areas["pr_auc"],
        "intervals": {
            "f1": of_one["f1"],
            "precision": of_one["precision"],
            "recall": of_one["recall"],
            "accuracy": of_one["accuracy"],
            "roc_auc": of_areas["roc_auc"],
            "pr_auc": of_areas["pr_auc"],
        },
    }


def model_row(
    articles: Sequence[Article], model: Scored, seed: int, train: Sequence[Article] | None = None
) -> QualityRow:
    """Everything that one model's scores of the labelled test articles show; with ``train``, on unseen sources too."""
    labels, scores = labels_of(articles), model.scores
    parts = [
        *article_slices(articles),
        *held_out_slices(articles, train or ()),
        *token_slices(model.n_tokens, model.max_length),
    ]
    slices = slice_metrics(labels, scores, model.threshold, parts)
    sweep = threshold_metrics(labels, scores, SWEEP)
    return {
        **quality(labels, scores, model.threshold, seed),
        "slices": slices,
        "worst_slice": worst_slice(slices),
        "calibration": calibration_summary(labels, scores, model.temperature),
        "operating_points": judge_points(labels, scores, dict(model.thresholds)),
        "sweep": [
            {"threshold": at["threshold"], "precision": at["precision"], "recall": at["recall"], "f1": at["f1"]}
            for at in sweep
        ],
        "pr_curve": curve(labels, scores),
    }


def worst_errors(articles: Sequence[Article], model: Scored) -> list[WrongArticle]:
    """The articles on which a model is most wrong, with their texts, for the page."""
    labels = labels_of(articles)
    wrong = np.flatnonzero(model.decisions != (labels == COMMERCE))
    worst = wrong[np.argsort(-np.abs(model.scores[wrong] - labels[wrong]), kind="stable")][:MAX_ERRORS]
    return [
        {
            "id": articles[i].id,
            "label": articles[i].label,
            "score": round(float(model.scores[i]), 4),
            "language": articles[i].language,
            "source": articles[i].source,
            "characters": articles[i].characters,
            "title": articles[i].title[:300],
            "content": articles[i].content[:MAX_ERROR_TEXT],
        }
        for i in worst
    ]


def benchmarked(record: Mapping[str, Any]) -> Benchmarked:
    """What evaluation takes over from ``cpu_benchmark.json``, besides the latency."""
    try:
        length, threads, cpu = record["median_characters"], record["threads"], record["run"]["hardware"]["cpu"]
        stages = f" after {', '.join(record['stages'])}" if record["stages"] else ""
        return {
            "cpu_benchmark_on": f"articles of {length:,} characters, {threads} threads, {cpu}",
            "cpu_benchmark_with": f"{record['engine']}{stages}",
            "cpu_benchmark_f1": record["f1"] if isinstance(record["f1"], float) else None,
        }
    except (KeyError, TypeError, ValueError):
        return {"cpu_benchmark_on": None, "cpu_benchmark_with": None, "cpu_benchmark_f1": None}


def other_configuration(row: Mapping[str, Any]) -> str | None:
    """With what a model's latency was measured, and its F1; None where its other figures are of that, or unknown."""
    timed_with, f1 = row.get("cpu_benchmark_with"), row.get("cpu_benchmark_f1")
    if timed_with in (None, row.get("engine")):
        return None
    return f"{timed_with} (F1 {f1:.1%} in the benchmark)" if f1 is not None else timed_with
