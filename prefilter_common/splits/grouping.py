"""Decide which articles stay together, which keep an earlier split, and where all of them go."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from email.utils import parsedate_to_datetime
from typing import TypedDict

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.language import languages
from prefilter_common.splits.assignment import NONE, TEST, TRAIN, VAL, Population, assign
from prefilter_common.splits.cleaning import text_hash
from prefilter_common.splits.duplicates import Pair, clusters, find_pairs, same_id_pairs

log = logging.getLogger(__name__)

# Characters in title and content: a feed snippet, the opening of an article, a whole article.
LENGTHS = ((250, "<250"), (1000, "250-999"))
LONGEST = "1000+"
LENGTH_NAMES = (*(name for _, name in LENGTHS), LONGEST)
DATE_KEYS = ("published_date", "published", "date", "pubDate")


class ClusterCounts(TypedDict):
    """How many articles share their text with others; ``pairs`` by kind."""

    clusters: int
    articles: int
    largest: int
    with_both_labels: int
    pairs: dict[str, int]


class PreviousCounts(TypedDict):
    """How many articles the earlier splits had, how many of them are where they were, and how many are gone."""

    articles: int
    kept: int
    not_in_input: int


@dataclass(frozen=True)
class Division:
    """The ``splits`` (n,) of n articles, ``NONE`` for the indices in ``dropped``, with counts for the manifest."""

    splits: np.ndarray
    dropped: tuple[int, ...]
    clusters: ClusterCounts
    previous: PreviousCounts


def length_name(article: Article) -> str:
    """``<250``, ``250-999`` or ``1000+`` characters."""
    return next((name for limit, name in LENGTHS if article.characters < limit), LONGEST)


def divide(
    articles: Sequence[Article],
    previous: Sequence[tuple[Article, int]],
    seed: int,
    group_by: str | None = None,
    test_after: date | None = None,
) -> Division:
    """Assign every article to a split.

    Articles of earlier splits stay where they are, and new articles that share their text or id with one of them
    join it. New articles that would join two different splits are dropped.

    Args:
        articles: n labelled articles.
        previous: articles of earlier splits, each with its split; not all need to be among ``articles``.
        seed: random seed of the order of the articles.
        group_by: ``source`` to keep whole sources together.
        test_after: the test set is the articles published after this day and those that share their text, and no
            others.

    Raises:
        InputError: ``group_by`` or ``test_after`` contradicts ``previous``, or ``test_after`` finds no dates.
    """
    n = len(articles)
    before = {(a.title, a.content): split for a, split in previous}
    here = {(a.title, a.content) for a in articles}
    gone = [(a, split) for a, split in previous if (a.title, a.content) not in here]
    everyone = [*articles, *(a for a, _ in gone)]
    anchors = np.array([before.get((a.title, a.content), NONE) for a in articles] + [split for _, split in gone], int)
    pairs = find_pairs(everyone) + same_id_pairs(everyone)
    dropped = conflicts(everyone, pairs, anchors)
    links = [pair for pair in pairs if not dropped & {pair.first, pair.second}]
    groups = clusters(len(everyone), links + (source_pairs(everyone) if group_by else []))
    fixed = spread(anchors, groups, dropped)
    present = np.array([i for i in range(n) if i not in dropped], int)
    if test_after:
        fixed = hold_newest_out(everyone, fixed, groups, present, test_after)
    splits = np.full(n, NONE)
    splits[present] = fixed[present]
    # A test set chosen by date has no quota.
    rest = present[fixed[present] != TEST] if test_after else present
    splits[rest] = assign(population(everyone, rest, groups, seed), fixed[rest], with_test=test_after is None)
    own = [pair for pair in pairs if pair.first < n and pair.second < n]
    kept = [pair for pair in own if not dropped & {pair.first, pair.second}]
    if any(splits[pair.first] != splits[pair.second] for pair in kept):
        raise RuntimeError("a cluster was split")
    return Division(
        splits=splits,
        dropped=tuple(sorted(i for i in dropped if i < n)),
        clusters=describe_clusters(articles, own),
        previous={"articles": len(previous), "kept": int((anchors[:n] != NONE).sum()), "not_in_input": len(gone)},
    )


def conflicts(articles: Sequence[Article], pairs: Sequence[Pair], anchors: np.ndarray) -> set[int]:
    """Indices of the articles to drop: the new ones whose cluster contains articles of different earlier splits.

    If articles of different earlier splits share their text, those in test are kept, or else those in val.
    """
    dropped: set[int] = set()
    for group in _parts(clusters(len(articles), pairs)):
        anchored = [i for i in group if anchors[i] != NONE]
        if len({anchors[i] for i in anchored}) < 2:
            continue
        dropped.update(set(group) - set(anchored))
        known = [articles[i] for i in anchored]
        for part in _parts(clusters(len(known), find_pairs(known) + same_id_pairs(known))):
            strongest = max(anchors[anchored[k]] for k in part)
            dropped.update(anchored[k] for k in part if anchors[anchored[k]] != strongest)
    return dropped


def spread(anchors: np.ndarray, groups: np.ndarray, dropped: set[int]) -> np.ndarray:
    """(n,) the earlier split (``anchors``) of each article's cluster, or ``NONE``. Raises InputError if it has two."""
    anchored = np.array([i for i in np.flatnonzero(anchors != NONE) if i not in dropped], int)
    of_group = np.full(groups.max(initial=-1) + 1, NONE)
    of_group[groups[anchored]] = anchors[anchored]
    torn = int((of_group[groups[anchored]] != anchors[anchored]).sum())
    if torn:
        raise InputError(
            f"--group-by: {torn} articles of the previous splits are not in the same split as the rest of their "
            "source; build into a new folder without --previous"
        )
    return of_group[groups]


def hold_newest_out(
    articles: Sequence[Article], fixed: np.ndarray, groups: np.ndarray, present: np.ndarray, day: date
) -> np.ndarray:
    """``fixed``, with the clusters that have an article published after ``day``, and no others, in test.

    Logs how many of those ``present`` have no readable date. Raises InputError.
    """
    days = [published(article) for article in articles]
    if not any(days):
        raise InputError("--test-after: no article has a date (published_date, published, date or pubDate)")
    if undated := sum(days[i] is None for i in present.tolist()):
        log.warning(
            f"--test-after: {undated} of {len(present)} articles have no readable date, and are in train or val unless "
            "they share their text with a newer one"
        )
    newer = np.zeros(groups.max() + 1, bool)
    newer[[group for group, on in zip(groups.tolist(), days, strict=True) if on and on > day]] = True
    is_newer = newer[groups[present]]
    for torn, misplaced in (
        (is_newer & np.isin(fixed[present], (TRAIN, VAL)), f"articles published after {day} are in train or val"),
        (~is_newer & (fixed[present] == TEST), f"articles that were not published after {day} are in test"),
    ):
        if torn.any():
            raise InputError(
                f"--test-after: {torn.sum()} {misplaced} of the previous splits; build into a new folder without "
                "--previous"
            )
    return np.where(newer[groups], TEST, fixed)


def published(article: Article) -> date | None:
    """The day on which an article was published, from the first of the usual keys with a date; None without one."""
    for key in DATE_KEYS:
        value = article.extra.get(key)
        if not isinstance(value, str):
            continue
        for parse in (datetime.fromisoformat, parsedate_to_datetime):
            with suppress(ValueError, TypeError, OverflowError):
                return parse(value.strip()).date()
    return None


def source_pairs(articles: Sequence[Article]) -> list[Pair]:
    """Pairs that link the articles of each source; articles without a source are not linked."""
    first: dict[str, int] = {}
    return [
        Pair(first.setdefault(a.source, i), i, "same source", 1.0)
        for i, a in enumerate(articles)
        if a.source is not None
    ]


def population(articles: Sequence[Article], places: np.ndarray, groups: np.ndarray, seed: int) -> Population:
    """What decides the splits of the articles at ``places``."""
    here = [articles[i] for i in places]
    return Population(
        labels=np.array([article.label for article in here], int),
        strata=[f"{spoken}\t{length_name(a)}" for spoken, a in zip(languages(here), here, strict=True)],
        clusters=groups[places],
        keys=np.array([key_of(article, seed) for article in here], np.uint64),
    )


def key_of(article: Article, seed: int) -> int:
    """64 random bits, always the same for an article and a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{article.id}\n{text_hash(article)}".encode()).digest()[:8], "big")


def in_order(articles: Sequence[Article], seed: int) -> list[int]:
    """Indices of the articles in a random order that does not depend on the order of the input."""
    return sorted(range(len(articles)), key=lambda i: key_of(articles[i], seed))


def describe_clusters(articles: Sequence[Article], pairs: Sequence[Pair]) -> ClusterCounts:
    """How many articles share their text with others."""
    parts = [part for part in _parts(clusters(len(articles), pairs)) if len(part) > 1]
    return {
        "clusters": len(parts),
        "articles": sum(map(len, parts)),
        "largest": max(map(len, parts), default=0),
        "with_both_labels": sum(len({articles[i].label for i in part}) > 1 for part in parts),
        "pairs": dict(sorted(Counter(pair.kind for pair in pairs).items())),
    }


def _parts(groups: np.ndarray) -> list[list[int]]:
    """The article indices of each cluster."""
    members = defaultdict(list)
    for i, group in enumerate(groups.tolist()):
        members[group].append(i)
    return list(members.values())
