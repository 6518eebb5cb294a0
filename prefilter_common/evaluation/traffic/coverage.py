"""Which parts of the traffic the labelled articles cannot speak for, and which texts occur more than once."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from prefilter_common.articles import COMMERCE, Article, labels_of
from prefilter_common.evaluation.slices import CROSSED, MIN_ARTICLES, language_and_length_slices

# A part of the traffic at least this large is named when the test set lacks it.
NOTABLE_GAP = 0.01
STORY_BEGINS = 40  # characters of a text without a title: less than most cut copies keep


class Gap(TypedDict):
    """A part of the traffic without enough labelled articles; ``n_test`` counts those of an audit too."""

    by: str
    value: str
    n_traffic: int
    traffic_share: float
    n_test: int
    n_test_commerce: int
    lacks: str
    to_label: int


def plain_text(article: Article) -> str:
    """Title and content without what does not make two texts different: case and white space."""
    return _plain(f"{article.title} {article.content}")


def story(article: Article) -> str:
    """What an article has in common with its updates and its cut copies: the title or, without one, how it begins."""
    return _plain(article.title) or _plain(article.content)[:STORY_BEGINS]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def distinct_texts(articles: Sequence[Article]) -> tuple[np.ndarray, np.ndarray]:
    """(m,) index of the first article with each text, ignoring case and white space, and (m,) how many have it."""
    seen: dict[str, int] = {}
    index = [seen.setdefault(plain_text(a), len(seen)) for a in articles]
    _, first, counts = np.unique(index, return_index=True, return_counts=True)
    return first, counts


def uncovered(traffic: Sequence[Article], labelled: Sequence[Article]) -> tuple[list[Gap], float]:
    """Languages, lengths and their crossings that cannot be judged: the labelled articles have fewer than 20 of them,
    or only one of the two labels.

    Returns:
        Those that make up 1 % of the traffic or more, and the share of the traffic in all such crossings of language
        and length, however small: a hundred languages of which none reaches 1 % may be most of it.
    """
    tested = {part.name: part.members for part in language_and_length_slices(labelled)}
    labels = labels_of(labelled)
    found: list[Gap] = []
    for part in language_and_length_slices(traffic):
        n = int(part.members.sum())
        inside = labels[tested[part.name]] if part.name in tested else labels[:0]
        n_test, n_commerce = len(inside), int((inside == COMMERCE).sum())
        lacks = _lacks(n_test, n_commerce)
        if lacks:
            found.append({
                "by": part.by, "value": part.value, "n_traffic": n, "traffic_share": n / len(traffic),
                "n_test": n_test, "n_test_commerce": n_commerce, "lacks": lacks,
                "to_label": max(MIN_ARTICLES - n_test, 1),
            })  # fmt: skip
    share = sum(gap["n_traffic"] for gap in found if gap["by"] == CROSSED) / len(traffic)
    return [gap for gap in found if gap["traffic_share"] >= NOTABLE_GAP], share


def _lacks(n: int, n_commerce: int) -> str:
    if n == 0:
        return "have none of it"
    if n < MIN_ARTICLES:
        return f"have only {n} of it"
    if n_commerce == 0:
        return f"have {n} of it, none of them commerce"
    return f"have {n} of it, all of them commerce" if n_commerce == n else ""
