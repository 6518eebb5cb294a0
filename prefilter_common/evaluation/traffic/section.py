"""The section of the results on the traffic, and the files of articles to label."""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypedDict

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.evaluation.sections import Scored
from prefilter_common.evaluation.traffic.coverage import Gap, distinct_texts, uncovered
from prefilter_common.evaluation.traffic.flags import (
    compare_traffic,
    flag_rates,
    main_language,
    traffic_slices,
)
from prefilter_common.evaluation.traffic.labelling import LabelRow, audit_sample, review_queue
from prefilter_common.evaluation.traffic.rows import FlagRate, TrafficPair

log = logging.getLogger(__name__)


class TrafficSection(TypedDict):
    """How the models decide on the traffic; ``flag_rates`` by model and operating point.

    ``review_queue`` and ``audit`` are the numbers of rows in each model's files of articles to label.
    """

    n_articles: int
    n_distinct: int
    main_language: str
    flag_rates: dict[str, dict[str, FlagRate]]
    pairs: list[TrafficPair]
    uncovered: list[Gap]
    uncovered_share: float
    review_queue: dict[str, int]
    audit: dict[str, int]


def traffic_section(
    traffic: Sequence[Article],
    labelled: Sequence[Article],
    models: Mapping[str, Scored],
    pair: Sequence[str] | None,
    audit: tuple[int, int] | None,
    seed: int,
) -> tuple[TrafficSection, dict[str, list[LabelRow]]]:
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
    section: TrafficSection = {
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
