"""Scores in, the sections of evaluation_results.json out. No model is loaded here and nothing is written."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from prefilter_common.articles import COMMERCE, Article, labels_of
from prefilter_common.evaluation.slices import (
    article_slices,
    held_out_slices,
    slice_metrics,
    token_slices,
    worst_slice,
)
from prefilter_common.evaluation.traffic.coverage import distinct_texts, uncovered
from prefilter_common.evaluation.traffic.flags import compare_traffic, flag_rates, main_language, traffic_slices
from prefilter_common.evaluation.traffic.labelling import LabelRow, audit_sample, review_queue
from prefilter_common.statistics.calibration import calibration_summary
from prefilter_common.statistics.metrics import metrics_with_intervals, threshold_metrics
from prefilter_common.statistics.operating_points import (
    BEST_F1,
    DEFAULT,
    HIGH_PRECISION,
    MAX_BLOCKED,
    SWEEP,
    curve,
    judge_points,
)
from prefilter_common.statistics.prevalence import journalism_needed

log = logging.getLogger(__name__)

MAX_ERRORS = 12
MAX_TEXT = 1_500


@dataclass(frozen=True)
class Scored:
    """What evaluation needs of a model once it has been run.

    ``scores`` (n,) of the test articles, ``n_tokens`` (n,) of each before it is cut at ``max_length``, ``traffic``
    (m,) scores of the traffic or None, ``audited`` those of the labelled articles of an audit or None, ``validation``
    labels and scores of the articles on which thresholds were chosen or None, ``thresholds`` by operating point.
    """

    scores: np.ndarray
    n_tokens: np.ndarray
    max_length: int
    temperature: float
    thresholds: Mapping[str, float]
    traffic: np.ndarray | None = None
    audited: np.ndarray | None = None
    validation: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def threshold(self) -> float:
        """The default one."""
        return self.thresholds[DEFAULT]

    @property
    def decisions(self) -> np.ndarray:
        """(n,) bool: flagged at the default threshold."""
        return self.scores >= self.threshold


def model_row(
    articles: Sequence[Article], model: Scored, seed: int, train: Sequence[Article] | None = None
) -> dict[str, Any]:
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
        **metrics_with_intervals(labels, scores, model.threshold, seed),
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


def traffic_section(
    traffic: Sequence[Article],
    labelled: Sequence[Article],
    models: Mapping[str, Scored],
    pair: Sequence[str] | None,
    audit: tuple[int, int] | None,
    seed: int,
) -> tuple[dict[str, Any], dict[str, list[LabelRow]]]:
    """How the models decide on unlabelled articles, and the files of articles to label: name -> rows.

    Every text counts once, however often it occurs; only flag rates are shares of all articles.

    Args:
        labelled: test articles, and those of an audit that is a random sample, which say what is covered.
        pair: names the two models to compare; None compares every two, and an empty one none.
        audit: how many flagged and unflagged articles to draw for each model, or None.
    """
    first, copies = distinct_texts(traffic)
    texts = [traffic[i] for i in first.tolist()]
    scores = {name: model.traffic[first] for name, model in models.items() if model.traffic is not None}
    main = main_language(texts)
    slices = traffic_slices(texts, main)
    pairs = []
    for a, b in combinations(scores, 2) if pair is None else [pair] if pair else []:
        log.info(f"traffic: {a} against {b}")
        thresholds = {a: models[a].thresholds, b: models[b].thresholds}
        pairs.append(compare_traffic(texts, {a: scores[a], b: scores[b]}, thresholds, slices))
    flags = {name: scores[name] >= models[name].threshold for name in scores}
    files: dict[str, list[LabelRow]] = {}
    for name in scores:
        disputed = np.any([other != flags[name] for other in flags.values()], axis=0)
        gaps = np.max([np.abs(other - scores[name]) for other in scores.values()], axis=0)
        files[f"review_queue_{name}"] = review_queue(texts, copies, scores[name], gaps, disputed, seed)
        if audit:
            files[f"audit_{name}"] = audit_sample(texts, copies, scores[name], models[name].threshold, audit, seed)
    gaps_of_test, uncovered_share = uncovered(traffic, labelled)
    section = {
        "n_articles": len(traffic),
        "n_distinct": len(texts),
        "main_language": main,
        "flag_rates": {name: flag_rates(scores[name], models[name].thresholds, copies) for name in scores},
        "pairs": pairs,
        "uncovered": gaps_of_test,
        "uncovered_share": uncovered_share,
        "review_queue": {name: len(files[f"review_queue_{name}"]) for name in scores},
        "audit": {name: len(files[f"audit_{name}"]) for name in scores} if audit else {},
    }
    return section, files


def warnings_of(
    integrity: dict | None, traffic: dict | None, models: Mapping[str, Scored], prevalence: float, target: float
) -> list[str]:
    """What a reader of the figures must know, one sentence each."""
    found = []
    if integrity and integrity.get("shared"):
        counts = ", ".join(f"{integrity[f'n_{kind}']} {kind}" for kind in ("exact", "near", "contained"))
        ids = ", ".join(row["id"] for row in integrity["shared"][:5])
        found.append(f"copies of training articles in the test set ({counts}): {ids}")
    for where, rows in (integrity or {"others": {}})["others"].items():
        if rows:
            found.append(f"{len(rows)} {where}: {', '.join(row['id'] for row in rows[:5])}")
    for row in traffic["uncovered"] if traffic else []:
        found.append(
            f"{row['traffic_share']:.0%} of the traffic is {row['by']} {row['value']}; the test set {row['lacks']}"
        )
    bare = [name for name, model in models.items() if model.validation is None and set(model.thresholds) == {DEFAULT}]
    if bare:
        found.append(f"only the default threshold for {', '.join(bare)}: no validation scores, pass --val-data")
    chosen = {name: model for name, model in models.items() if model.validation is not None}
    without = [name for name, model in chosen.items() if BEST_F1 not in model.thresholds]
    if without:
        found.append(
            f"no best_f1 threshold for {', '.join(without)}: each blocks more than {MAX_BLOCKED:.0%} of the journalism "
            "among the validation articles"
        )
    without = [name for name, model in chosen.items() if HIGH_PRECISION not in model.thresholds]
    if without:
        found.append(
            f"no high_precision threshold for {', '.join(without)}: the validation articles show none with "
            f"{target:.0%} precision where {prevalence:.1%} is commerce; about "
            f"{journalism_needed(prevalence, target):,} journalism articles without a false alarm would"
        )
    return found


def worst_errors(articles: Sequence[Article], model: Scored) -> list[dict]:
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
            "characters": len(articles[i].title) + len(articles[i].content),
            "title": articles[i].title[:300],
            "content": articles[i].content[:MAX_TEXT],
        }
        for i in worst
    ]
