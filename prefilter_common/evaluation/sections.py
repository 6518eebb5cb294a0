"""Scores of models -> the sections of evaluation_results.json. No model is loaded here and nothing is written."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from prefilter_common.articles import COMMERCE, Article
from prefilter_common.calibration import calibration_summary
from prefilter_common.comparison import paired_f1_difference
from prefilter_common.metrics import classification_metrics, ranking_metrics, threshold_metrics
from prefilter_common.operating_points import DEFAULT, HIGH_PRECISION, SWEEP, curve, judge_points
from prefilter_common.slices import article_slices, slice_metrics, token_slices, uncovered, worst_slice
from prefilter_common.text_features import baseline_scores, shared_articles
from prefilter_common.traffic import compare_traffic, flag_rates, review_queue, traffic_slices

log = logging.getLogger(__name__)

MAX_ERRORS = 12
MAX_TEXT = 1_500


@dataclass(frozen=True)
class Scored:
    """What evaluation needs of a model once it has been run.

    ``scores`` (n,) of the test articles, ``n_tokens`` (n,) of each before it is cut at ``max_length``, ``traffic``
    (m,) scores of the traffic or None, ``thresholds`` by operating point.
    """

    scores: np.ndarray
    n_tokens: np.ndarray
    max_length: int
    temperature: float
    thresholds: Mapping[str, float]
    traffic: np.ndarray | None = None

    @property
    def decisions(self) -> np.ndarray:
        """(n,) bool: called commerce at the default threshold."""
        return self.scores >= self.thresholds[DEFAULT]


def labels_of(articles: Sequence[Article]) -> np.ndarray:
    """(n,) 0 or 1."""
    return np.array([article.label for article in articles])


def quality(labels: np.ndarray, scores: np.ndarray, threshold: float, seed: int) -> dict:
    """The earlier keys, PR-AUC, and ``intervals`` of everything."""
    ranking = ranking_metrics(labels, scores, seed)
    (at_threshold,) = threshold_metrics(labels, scores, [threshold])
    return {
        **classification_metrics(labels, scores, threshold),
        "pr_auc": ranking["pr_auc"],
        "intervals": {**at_threshold["intervals"], **ranking["intervals"]},
    }


def model_row(articles: Sequence[Article], model: Scored, seed: int) -> dict:
    """All that one model's scores of the labelled test articles say."""
    labels, scores, threshold = labels_of(articles), model.scores, model.thresholds[DEFAULT]
    parts = [*article_slices(articles), *token_slices(model.n_tokens, model.max_length)]
    slices = slice_metrics(labels, scores, threshold, parts)
    sweep = threshold_metrics(labels, scores, SWEEP)
    return {
        **quality(labels, scores, threshold, seed),
        "slices": slices,
        "worst_slice": worst_slice(slices),
        "calibration": calibration_summary(labels, scores, model.temperature),
        "operating_points": judge_points(labels, scores, dict(model.thresholds)),
        "sweep": [{key: row[key] for key in ("threshold", "precision", "recall", "f1")} for row in sweep],
        "pr_curve": curve(labels, scores),
    }


def baseline_row(train: Sequence[Article], articles: Sequence[Article], seed: int) -> tuple[dict, np.ndarray] | None:
    """The floor and its (n,) decisions, or None where the training articles are too few or all of one label."""
    if len(np.unique(labels_of(train))) < 2:
        log.warning("no baseline: the training articles are all of one label")
        return None
    try:
        scores = baseline_scores(train, articles)
    except ValueError as error:
        log.warning(f"no baseline: {error}")
        return None
    row = {"model": "TF-IDF + logistic regression", "train_articles": len(train)}
    return {**row, **quality(labels_of(articles), scores, 0.5, seed)}, scores >= 0.5


def against_floor(labels: np.ndarray, decisions: np.ndarray, floor: np.ndarray, seed: int) -> dict:
    """Whether a model beats the baseline, and whether beyond chance."""
    gap, interval, p = paired_f1_difference(labels, decisions, floor, seed)
    beyond_chance = interval[0] > 0
    return {
        "f1_difference": gap, "f1_difference_interval": interval, "p_bootstrap": p,
        "beats": gap > 0, "beyond_chance": beyond_chance,
    }  # fmt: skip


def integrity_section(train: Sequence[Article], articles: Sequence[Article], models: Mapping[str, Scored]) -> dict:
    """Test articles that stand in the training set too, and every model's metrics with and without them."""
    shared = shared_articles(train, articles)
    ids = {row["id"] for row in shared}
    keep = np.array([article.id not in ids for article in articles])
    labels = labels_of(articles)
    rows = {}
    for name, model in models.items():
        threshold = [model.thresholds[DEFAULT]]
        (with_them,) = threshold_metrics(labels, model.scores, threshold)
        (without,) = threshold_metrics(labels[keep], model.scores[keep], threshold)
        rows[name] = {"with": with_them, "without": without}
    kinds = [row["kind"] for row in shared]
    return {
        "n_train": len(train), "n_test": len(articles), "n_exact": kinds.count("exact"), "n_near": kinds.count("near"),
        "shared": shared, "models": rows,
    }  # fmt: skip


def traffic_section(
    traffic: Sequence[Article],
    test: Sequence[Article],
    models: Mapping[str, Scored],
    pair: Sequence[str] | None,
) -> tuple[dict, dict[str, list[dict]]]:
    """How the models decide on unlabelled articles, and for each the queue of those worth labelling.

    ``pair`` names the two to compare; None compares every two.
    """
    slices = traffic_slices(traffic)
    rates = {name: flag_rates(model.traffic, model.thresholds) for name, model in models.items()}
    pairs = []
    for a, b in combinations(models, 2) if pair is None else [pair] if pair else []:
        log.info(f"traffic: {a} against {b}")
        scores = {a: models[a].traffic, b: models[b].traffic}
        thresholds = {a: models[a].thresholds, b: models[b].thresholds}
        pairs.append(compare_traffic(traffic, scores, thresholds, slices))
    flags = {name: model.traffic >= model.thresholds[DEFAULT] for name, model in models.items()}
    queues = {}
    for name, model in models.items():
        disputed = np.any([other != flags[name] for other in flags.values()], axis=0)
        queues[name] = review_queue(traffic, model.traffic, disputed)
    section = {
        "n_articles": len(traffic), "flag_rates": rates, "pairs": pairs, "uncovered": uncovered(traffic, test),
        "review_queue": {name: len(queue) for name, queue in queues.items()},
    }  # fmt: skip
    return section, queues


def warnings_of(integrity: dict | None, traffic: dict | None, models: Mapping[str, Scored]) -> list[str]:
    """What a reader of the figures must know, a sentence each."""
    found = []
    if integrity and integrity["shared"]:
        exact, near = integrity["n_exact"], integrity["n_near"]
        ids = ", ".join(row["id"] for row in integrity["shared"][:5])
        found.append(f"{exact} exact and {near} near duplicates of training articles in the test set: {ids}")
    for row in traffic["uncovered"] if traffic else []:
        has = f"only {row['n_test']}" if row["n_test"] else "none"
        found.append(
            f"{row['traffic_share']:.0%} of the traffic is {row['by']} {row['value']}; the test set has {has} of it"
        )
    bare = [name for name, model in models.items() if set(model.thresholds) == {DEFAULT}]
    if bare:
        found.append(f"only the default threshold for {', '.join(bare)}: no validation scores, pass --val-data")
    without = [name for name, model in models.items() if name not in bare and HIGH_PRECISION not in model.thresholds]
    if without:
        found.append(
            f"no high_precision threshold for {', '.join(without)}: none reaches the target on validation data"
        )
    return found


def traffic_cautions(choice: Mapping, traffic: dict | None) -> list[str]:
    """Where the selected model flags the traffic otherwise than another model: one of the two is wrong there."""
    return [
        compared["verdict"]
        for pair in (traffic["pairs"] if traffic else [])
        for point, compared in pair["points"].items()
        if choice["selected"] in pair["models"] and point == choice["operating_point"] and compared["differ"]
    ]


def worst_errors(articles: Sequence[Article], model: Scored) -> list[dict]:
    """The articles that a model is most wrong about, with their texts, for the page."""
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
