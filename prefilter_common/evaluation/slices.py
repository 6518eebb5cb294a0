"""Metrics of parts of a data set: by language, length, source, and whether the model read the whole article."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
from scipy.stats import fisher_exact

from prefilter_common.articles import COMMERCE, UNKNOWN, Article
from prefilter_common.language import languages
from prefilter_common.statistics.comparison import ALPHA, holm
from prefilter_common.statistics.metrics import MetricsRow, threshold_metrics

CROSSED = "language and length"
CHARACTER_EDGES = (100, 250, 500, 1000, 2000)
TOKEN_EDGES = (32, 64, 128, 256, 512)
# With fewer articles an interval spans 30 points or more: too wide to call a slice good or bad.
MIN_ARTICLES = 20
SHORT = 250  # characters; most of what a feed delivers


@dataclass(frozen=True)
class Slice:
    """Articles with a property in common: ``by`` which, its ``value``, and the (n,) bool mask of its ``members``."""

    by: str
    value: str
    members: np.ndarray

    @property
    def name(self) -> str:
        """Such as ``language el``."""
        return f"{self.by} {self.value}"


class SliceRow(MetricsRow):
    """The metrics of one slice, with its counts and the test against the rest."""

    by: str
    value: str
    n: int
    n_commerce: int
    errors: int
    enough: bool
    p_adjusted: float | None


class WorstSlice(TypedDict):
    """See ``worst_slice``; ``beyond_chance`` where its errors are more than those of the rest."""

    by: str
    value: str
    n: int
    errors: int
    accuracy: float
    p_adjusted: float | None
    accuracy_interval: list[float]
    beyond_chance: bool


def characters(articles: Sequence[Article]) -> np.ndarray:
    """(n,) characters of title and content together."""
    return np.array([a.characters for a in articles])


def buckets(values: np.ndarray, edges: Sequence[int]) -> list[str]:
    """Name of the interval between ``edges`` that each value falls into: ``<100``, ``100-249``, … ``2000+``."""
    inner = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
    names = [f"<{edges[0]}", *inner, f"{edges[-1]}+"]
    return [names[i] for i in np.searchsorted(edges, values, side="right")]


def length_slices(by: str, values: np.ndarray, edges: Sequence[int]) -> list[Slice]:
    """One slice for each interval between ``edges`` that has any, the shortest first."""
    index = np.searchsorted(edges, values, side="right")
    return [Slice(by, buckets(values[index == i], edges)[0], index == i) for i in np.unique(index)]


def length_and_language(articles: Sequence[Article]) -> list[str]:
    """Such as ``el, short``: language of each article, and whether it is shorter than 250 characters."""
    lengths = characters(articles)
    return [
        f"{language}, {'short' if length < SHORT else 'long'}"
        for language, length in zip(languages(articles), lengths, strict=True)
    ]


def slices_by(by: str, values: Sequence[str]) -> list[Slice]:
    """One slice for each value, the largest first."""
    present, index, counts = np.unique(np.asarray(values, object).astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [Slice(by, str(present[i]), index == i) for i in order]


def article_slices(articles: Sequence[Article]) -> list[Slice]:
    """By properties of the article, whatever the model: language, characters, source."""
    return [
        *slices_by("language", languages(articles)),
        *length_slices("characters", characters(articles), CHARACTER_EDGES),
        *slices_by("source", [a.source or UNKNOWN for a in articles]),
    ]


def language_and_length_slices(articles: Sequence[Article]) -> list[Slice]:
    """By language, by characters, and by language and length at once."""
    by_one = [part for part in article_slices(articles) if part.by != "source"]
    return [*by_one, *slices_by(CROSSED, length_and_language(articles))]


def held_out_slices(articles: Sequence[Article], train: Sequence[Article]) -> list[Slice]:
    """Articles of sources that are in ``train``, and of those that are not; none where it holds all of them."""
    seen = {article.source for article in train if article.source}
    sources = [UNKNOWN if not a.source else "seen" if a.source in seen else "held out" for a in articles]
    return slices_by("sources", sources) if seen and "held out" in sources else []


def token_slices(n_tokens: np.ndarray, max_length: int) -> list[Slice]:
    """By what the model reads: (n,) tokens of each article before it is cut at ``max_length``."""
    cut = ["cut" if n > max_length else "whole" for n in n_tokens]
    return [*length_slices("tokens", n_tokens, TOKEN_EDGES), *slices_by("read", cut)]


def slice_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float, slices: Sequence[Slice]) -> list[SliceRow]:
    """The metrics of each slice with intervals, and whether it has more errors than the rest beyond chance.

    ``p_adjusted`` is Fisher's exact test (1922), one-sided, of errors in the slice against errors outside it,
    Holm-corrected for all slices that are large enough to judge; None for the others, whose ``enough`` is false.
    """
    wrong = (scores >= threshold) != (labels == COMMERCE)
    rows: list[SliceRow] = []
    for part in slices:
        inside = part.members
        (at,) = threshold_metrics(labels[inside], scores[inside], [threshold])
        n = int(inside.sum())
        rows.append({
            "by": part.by,
            "value": part.value,
            "n": n,
            "n_commerce": int(labels[inside].sum()),
            "errors": int(wrong[inside].sum()),
            "enough": n >= MIN_ARTICLES,
            "p_adjusted": None,
            "f1": at["f1"],
            "precision": at["precision"],
            "recall": at["recall"],
            "accuracy": at["accuracy"],
            "intervals": at["intervals"],
            "confusion_matrix": at["confusion_matrix"],
        })  # fmt: skip
    # A slice that is the whole set has no rest to compare with.
    judged = [row for row in rows if row["enough"] and row["n"] < len(labels)]
    for row, p in zip(judged, holm([_p_of_rest(row, int(wrong.sum()), len(labels)) for row in judged]), strict=True):
        row["p_adjusted"] = float(p)
    return rows


def _p_of_rest(row: SliceRow, errors: int, n: int) -> float:
    inside = [row["errors"], row["n"] - row["errors"]]
    return float(fisher_exact([inside, [errors - inside[0], n - errors - inside[1]]], alternative="greater").pvalue)


def worst_slice(rows: Sequence[SliceRow]) -> WorstSlice | None:
    """The slice with the lowest accuracy: of those that are worse than the rest beyond chance or, where none is, of all
    that are large enough. None where none of these has an error.

    Accuracy, because F1 means nothing in a slice without commerce. Of equally bad slices, the largest.
    """
    judged = [row for row in rows if row["p_adjusted"] is not None and row["errors"]]
    if not judged:
        return None
    beyond = [row for row in judged if (row["p_adjusted"] or 0.0) < ALPHA]
    worst = min(beyond or judged, key=lambda row: (row["accuracy"], -row["n"]))
    return {
        "by": worst["by"],
        "value": worst["value"],
        "n": worst["n"],
        "errors": worst["errors"],
        "accuracy": worst["accuracy"],
        "p_adjusted": worst["p_adjusted"],
        "accuracy_interval": worst["intervals"]["accuracy"],
        "beyond_chance": bool(beyond),
    }
