"""Figures for parts of a data set: by language, length, source, and whether the model saw the whole article."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import fisher_exact

from prefilter_common.articles import COMMERCE, Article
from prefilter_common.comparison import ALPHA, holm
from prefilter_common.metrics import threshold_metrics

CHARACTERS = (100, 250, 500, 1000, 2000)
TOKENS = (32, 64, 128, 256, 512)
# Below this many articles an interval spans some 30 points or more: too wide to call a slice good or bad.
MIN_ARTICLES = 20
# A part of the traffic at least this large ought to be in the test set.
NOTABLE_SHARE = 0.01
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Slice:
    """Articles with something in common: ``by`` which property, which ``value`` of it, and (n,) bool who they are."""

    by: str
    value: str
    members: np.ndarray

    @property
    def name(self) -> str:
        """Such as ``language el``."""
        return f"{self.by} {self.value}"


def characters(articles: Sequence[Article]) -> np.ndarray:
    """(n,) characters of title and content together."""
    return np.array([len(a.title) + len(a.content) for a in articles])


def languages(articles: Sequence[Article]) -> list[str]:
    """Language of each article, ``unknown`` where it has none."""
    return [a.language or UNKNOWN for a in articles]


def buckets(values: np.ndarray, edges: Sequence[int]) -> list[str]:
    """Name of the interval between ``edges`` that each value falls into: ``<100``, ``100-249``, … ``2000+``."""
    inner = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
    names = [f"<{edges[0]}", *inner, f"{edges[-1]}+"]
    return [names[i] for i in np.searchsorted(edges, values, side="right")]


def slices_by(by: str, values: Sequence[str]) -> list[Slice]:
    """One slice for each value, the largest first."""
    present, index, counts = np.unique(np.asarray(values, object).astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [Slice(by, str(present[i]), index == i) for i in order]


def article_slices(articles: Sequence[Article]) -> list[Slice]:
    """By what an article is, whatever the model: language, characters, source."""
    return [
        *slices_by("language", languages(articles)),
        *slices_by("characters", buckets(characters(articles), CHARACTERS)),
        *slices_by("source", [a.source or UNKNOWN for a in articles]),
    ]


def token_slices(n_tokens: np.ndarray, max_length: int) -> list[Slice]:
    """By what a model's tokenizer makes of the articles: (n,) tokens before they are cut at ``max_length``."""
    cut = ["cut" if n > max_length else "whole" for n in n_tokens]
    return [*slices_by("tokens", buckets(n_tokens, TOKENS)), *slices_by("read", cut)]


def slice_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float, slices: Sequence[Slice]) -> list[dict]:
    """The metrics of each slice with intervals, and whether its share of errors differs from the rest beyond chance.

    ``p_adjusted`` is Fisher's exact test (1922) of errors in the slice against errors outside, Holm-corrected for all
    slices that are large enough to be judged; None for the others, whose ``enough`` is false.
    """
    wrong = (scores >= threshold) != (labels == COMMERCE)
    rows = []
    for part in slices:
        inside = part.members
        (row,) = threshold_metrics(labels[inside], scores[inside], [threshold])
        del row["threshold"]
        n, errors = int(inside.sum()), int(wrong[inside].sum())
        n_commerce = int(labels[inside].sum())
        head = {"by": part.by, "value": part.value, "n": n, "n_commerce": n_commerce, "errors": errors}
        rows.append({**head, "enough": n >= MIN_ARTICLES, "p_adjusted": None, **row})
    # A slice that is the whole set has no rest to differ from.
    judged = [row for row in rows if row["enough"] and row["n"] < len(labels)]
    for row, p in zip(judged, holm([_p_of_rest(row, int(wrong.sum()), len(labels)) for row in judged]), strict=True):
        row["p_adjusted"] = float(p)
    return rows


def _p_of_rest(row: dict, errors: int, n: int) -> float:
    inside = [row["errors"], row["n"] - row["errors"]]
    return float(fisher_exact([inside, [errors - inside[0], n - errors - inside[1]]]).pvalue)


def worst_slice(rows: Sequence[dict]) -> dict | None:
    """The slice with the lowest accuracy of those large enough; None where none of them has an error.

    Accuracy, since F1 has no meaning in a slice without commerce. Of slices that are equally bad the largest.
    """
    judged = [row for row in rows if row["enough"] and row["p_adjusted"] is not None and row["errors"]]
    if not judged:
        return None
    worst = min(judged, key=lambda row: (row["accuracy"], -row["n"]))
    picked = {key: worst[key] for key in ("by", "value", "n", "errors", "accuracy", "p_adjusted")}
    beyond_chance = worst["p_adjusted"] < ALPHA
    return {**picked, "accuracy_interval": worst["intervals"]["accuracy"], "beyond_chance": beyond_chance}


def uncovered(traffic: Sequence[Article], test: Sequence[Article]) -> list[dict]:
    """Languages and lengths that make up 1 % of the traffic or more and of which the test set has too few to judge."""
    found = []
    tested = {part.name: int(part.members.sum()) for part in article_slices(test)}
    for part in article_slices(traffic):
        n, n_test = int(part.members.sum()), tested.get(part.name, 0)
        if part.by != "source" and n >= NOTABLE_SHARE * len(traffic) and n_test < MIN_ARTICLES:
            found.append({
                "by": part.by, "value": part.value, "n_traffic": n,
                "traffic_share": n / len(traffic), "n_test": n_test,
            })  # fmt: skip
    return found
