"""Which parts of the traffic the labelled articles cannot speak for, and which texts occur more than once."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from prefilter_common.articles import COMMERCE, Article
from prefilter_common.evaluation.slices import MIN_ARTICLES, article_slices, crossed_slices

# A part of the traffic at least this large should be in the test set.
NOTABLE_SHARE = 0.01
CROSSED = "language and length"


class Gap(TypedDict):
    """A part of the traffic without enough labelled articles; ``n_test`` counts audited articles too."""

    by: str
    value: str
    n_traffic: int
    traffic_share: float
    n_test: int
    n_test_commerce: int
    lacks: str
    to_label: int


def distinct_texts(articles: Sequence[Article]) -> tuple[np.ndarray, np.ndarray]:
    """(m,) index of the first article with each text, ignoring case and white space, and (m,) how many have it."""
    seen: dict[str, int] = {}
    index = [seen.setdefault(" ".join(f"{a.title} {a.content}".casefold().split()), len(seen)) for a in articles]
    _, first, counts = np.unique(index, return_index=True, return_counts=True)
    return first, counts


def uncovered(traffic: Sequence[Article], labelled: Sequence[Article]) -> list[Gap]:
    """Languages, lengths and their crossings that make up 1 % of the traffic or more, but cannot be judged.

    The labelled articles have fewer than 20 of them, or only one of the two labels.
    """
    tested = {part.name: part.members for part in [*article_slices(labelled), *crossed_slices(labelled)]}
    labels = np.array([a.label for a in labelled])
    found: list[Gap] = []
    for part in [*article_slices(traffic), *crossed_slices(traffic)]:
        n = int(part.members.sum())
        if part.by == "source" or n < NOTABLE_SHARE * len(traffic):
            continue
        inside = labels[tested[part.name]] if part.name in tested else labels[:0]
        n_test, n_commerce = len(inside), int((inside == COMMERCE).sum())
        lacks = _lacks(n_test, n_commerce)
        if lacks:
            found.append({
                "by": part.by, "value": part.value, "n_traffic": n, "traffic_share": n / len(traffic),
                "n_test": n_test, "n_test_commerce": n_commerce, "lacks": lacks,
                "to_label": max(MIN_ARTICLES - n_test, 1),
            })  # fmt: skip
    return found


def uncovered_share(gaps: Sequence[Gap]) -> float:
    """Share of the traffic in crossings of language and length that cannot be judged."""
    return sum(gap["traffic_share"] for gap in gaps if gap["by"] == CROSSED)


def _lacks(n: int, n_commerce: int) -> str:
    if n == 0:
        return "has none of it"
    if n < MIN_ARTICLES:
        return f"has only {n} of it"
    if n_commerce == 0:
        return f"has {n} of it, none of them commerce"
    return f"has {n} of it, all of them commerce" if n_commerce == n else ""
