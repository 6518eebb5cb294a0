"""Assign articles to splits: 80 % train, 10 % validation and 10 % test of each label, with clusters kept whole.

The counts per label are exact if there are enough articles without duplicates. Within a label, languages and lengths
are spread as evenly as whole articles allow. The order of the rows does not matter: randomness comes from hashing each
article with the seed. Articles that already have a split keep it, and the rest fill the gaps.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRAIN, VAL, TEST = range(3)
NAMES = ("train", "val", "test")
NONE = -1
# Largest share of a label in val or test that one cluster may take, so that one source is not the whole test set.
LARGEST = 1 / 3


@dataclass(frozen=True)
class Population:
    """What decides the splits of n articles.

    ``labels`` (n,) 0 or 1; ``strata`` (n,) names of language and length; ``clusters`` (n,) numbers; ``keys`` (n,)
    uint64, random but always the same for the same article and seed.
    """

    labels: np.ndarray
    strata: Sequence[str]
    clusters: np.ndarray
    keys: np.ndarray


def quotas(n: int, with_test: bool = True) -> np.ndarray:
    """(3,) sizes of train, val and test for n articles, rounded as scikit-learn's ``train_test_split`` does."""
    if not with_test:
        return np.array([n * 8 // 9, n - n * 8 // 9, 0])
    train = n * 8 // 10
    val = (n - train) // 2
    return np.array([train, val, n - train - val])


def assign(population: Population, fixed: np.ndarray, with_test: bool = True) -> np.ndarray:
    """(n,) split of each article; those that ``fixed`` (n,) already gives stay.

    Args:
        population: the articles.
        fixed: (n,) splits already decided, the same for all articles of a cluster; ``NONE`` for the others.
        with_test: False if the test set is final and takes no more articles.
    """
    splits = fixed.copy()
    seats = _Seats(population, with_test)
    for i in np.flatnonzero(fixed != NONE).tolist():
        seats.take(i, int(fixed[i]))
    free = np.flatnonzero(fixed == NONE)
    single = np.bincount(population.clusters, minlength=len(fixed))[population.clusters] == 1
    for members in _by_size(population, free[~single[free]]):
        split = seats.best_split(members)
        splits[members] = split
        for i in members:
            seats.take(i, split)
    for label in np.unique(population.labels):
        mine = free[single[free] & (population.labels[free] == label)]
        _fill(splits, population, seats, mine, label)
    return splits


class _Seats:
    """How many articles each split still needs, per label and per stratum of a label."""

    def __init__(self, population: Population, with_test: bool):
        self.labels = population.labels
        names = [f"{label}\t{stratum}" for label, stratum in zip(population.labels, population.strata, strict=True)]
        _, self.strata = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
        self.total = np.array([quotas(int((population.labels == label).sum()), with_test) for label in (0, 1)])
        self.by_label = self.total.copy()
        sizes = np.bincount(self.strata)
        label_of = np.zeros(len(sizes), int)
        label_of[self.strata] = population.labels
        shares = self.total / np.maximum(self.total.sum(axis=1, keepdims=True), 1)
        self.expected = sizes[:, None] * shares[label_of]
        self.by_stratum = self.expected.copy()

    def take(self, i: int, split: int) -> None:
        self.by_label[self.labels[i], split] -= 1
        self.by_stratum[self.strata[i], split] -= 1

    def best_split(self, members: np.ndarray) -> int:
        """The split that needs this cluster most, out of those with room for it; or else the one with most room."""
        counts = np.bincount(self.labels[members], minlength=2)
        after = self.by_label - counts[:, None]
        room = (after >= 0) | (counts[:, None] == 0)
        allowed = np.maximum(1, (self.total * LARGEST).astype(int))
        allowed[:, TRAIN] = self.total[:, TRAIN]
        fits = (room & (counts[:, None] <= allowed)).all(axis=0) & (self.total.sum(axis=0) > 0)
        if not fits.any():
            return int(after.sum(axis=0).argmax())
        expected = np.maximum(self.expected[self.strata[members]], 1e-9)
        missing = (self.by_stratum[self.strata[members]] / expected).mean(axis=0)
        overall = (self.by_label / np.maximum(self.total, 1))[self.labels[members]].mean(axis=0)
        return max(np.flatnonzero(fits).tolist(), key=lambda split: (round(missing[split], 9), overall[split]))


def _by_size(population: Population, free: np.ndarray) -> list[np.ndarray]:
    """The clusters of these articles, largest first, those of equal size by their smallest key."""
    order = free[np.argsort(population.clusters[free], kind="stable")]
    starts = np.flatnonzero(np.diff(population.clusters[order], prepend=-1))
    groups = np.split(order, starts[1:]) if len(order) else []
    return sorted(groups, key=lambda members: (-len(members), int(population.keys[members].min())))


def _fill(splits: np.ndarray, population: Population, seats: _Seats, mine: np.ndarray, label: int) -> None:
    """Fill test and val with articles of a label, always from the stratum that needs most; the rest go to train."""
    wanted = np.maximum(seats.by_label[label], 0)
    if wanted[VAL] + wanted[TEST] > len(mine):  # too few are left, because a larger train set was kept
        wanted[TEST] = round(len(mine) * wanted[TEST] / (wanted[VAL] + wanted[TEST]))
        wanted[VAL] = len(mine) - wanted[TEST]
    waiting: dict[int, list[int]] = {}
    for i in sorted(mine.tolist(), key=lambda i: int(population.keys[i]), reverse=True):
        waiting.setdefault(int(seats.strata[i]), []).append(i)
    # Ties between strata, such as many languages with one article each, are broken by their first article's key.
    for split in (TEST, VAL):
        heap = [(-seats.by_stratum[s, split], int(population.keys[rows[-1]]), s) for s, rows in waiting.items() if rows]
        heapq.heapify(heap)
        for _ in range(wanted[split]):
            _, _, stratum = heapq.heappop(heap)
            i = waiting[stratum].pop()
            splits[i] = split
            seats.take(i, split)
            if waiting[stratum]:
                key = int(population.keys[waiting[stratum][-1]])
                heapq.heappush(heap, (-seats.by_stratum[stratum, split], key, stratum))
    for rows in waiting.values():
        splits[rows] = TRAIN
