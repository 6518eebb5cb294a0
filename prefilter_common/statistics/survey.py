"""What a stratified random sample says about all the articles that it was drawn from."""

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from prefilter_common.statistics.intervals import effective_size
from prefilter_common.statistics.metrics import CONFIDENCE, as_interval

DRAWS = 20_000


@dataclass(frozen=True)
class Sample:
    """A stratified simple random sample without replacement.

    ``stratum`` (n,) whole numbers, ``sizes`` how many units each of these strata had when it was drawn, ``copies`` (n,)
    how many articles a unit stands for, since a text may occur more than once.
    """

    stratum: np.ndarray
    sizes: np.ndarray
    copies: np.ndarray

    @property
    def drawn(self) -> np.ndarray:
        """Units drawn from each stratum."""
        return np.bincount(self.stratum, minlength=len(self.sizes))

    @property
    def unseen(self) -> np.ndarray:
        """(n,) units of its stratum that each unit stands for and that were not drawn."""
        return (self.sizes / np.maximum(self.drawn, 1))[self.stratum] - 1

    @property
    def weights(self) -> np.ndarray:
        """(n,) articles that each unit stands for: its copies over its inclusion probability (Horvitz-Thompson)."""
        return self.copies * (self.sizes / np.maximum(self.drawn, 1))[self.stratum]


def allocate(sizes: np.ndarray, n: int, evenly: bool = False) -> np.ndarray:
    """How many of ``n`` units to draw from each stratum: in proportion to its size, or evenly; never more than it has.

    What a small stratum cannot use goes to the others. Every stratum gets at least one where ``n`` is enough.
    """
    share = np.ones(len(sizes)) if evenly else np.asarray(sizes, float)
    given = np.minimum(sizes, int(n >= len(sizes)))
    for _ in range(min(n, int(np.sum(sizes))) - int(given.sum())):
        # The next unit goes where the fewest have been drawn for what is due.
        due = np.where(given < sizes, (given + 0.5) / np.maximum(share, 1e-12), np.inf)
        given[int(np.argmin(due))] += 1
    return given


class Production(TypedDict):
    """Of a whole population, each with its interval; a value is None where nothing sampled has it."""

    precision: float | None
    recall: float | None
    false_positive_rate: float | None
    prevalence: float | None
    intervals: dict[str, list[float]]


def production(
    sample: Sample, kind: np.ndarray, commerce: np.ndarray, flagged: np.ndarray, by_flags: bool, seed: int,
    inside: np.ndarray | None = None,
) -> Production:  # fmt: skip
    """What a model does to the population, or to a part of it, from a labelled sample.

    The values are Hájek's ratio estimators. The intervals come from draws of what the sample leaves open (generalised
    fiducial inference, Hannig 2009): of the units of each ``kind`` of stratum that were not drawn, how many are in the
    part, how many of these are flagged, how many of those flagged and not flagged are commerce, and for how many
    articles these stand. So what was seen is certain, and no miss found is not taken for none.

    Args:
        kind: (n,) whole numbers, which kind of stratum each unit was drawn from.
        commerce: (n,) bool, the label.
        flagged: (n,) bool, what the model decides.
        by_flags: whether it drew the sample: it flags all of a stratum or none, which then is known, not estimated. Of
            another model, that none of those drawn is flagged does not mean that none is.
        inside: (n,) bool, the units of the part; all where it is None.
    """
    weights, unseen, rng = sample.weights, sample.unseen, np.random.default_rng(seed)
    part = np.ones(len(kind), bool) if inside is None else inside
    totals = {(f, c): np.zeros(DRAWS) for f in (True, False) for c in (True, False)}
    for value in np.unique(kind):
        whole = kind == value
        of_kind, left = part & whole, np.full(DRAWS, round(unseen[whole].sum()))
        if inside is not None:
            left = _split(rng, left, inside[whole], unseen[whole])
        all_flagged = bool(flagged[whole][0])
        some = left * all_flagged if by_flags else _split(rng, left, flagged[of_kind], unseen[of_kind])
        for f, count in ((True, some), (False, left - some)):
            alike = of_kind & (flagged == f)
            if by_flags and f != all_flagged:
                continue
            found = _split(rng, count, commerce[alike], unseen[alike])
            totals[f, True] += _articles(rng, sample.copies, alike & commerce, found)
            totals[f, False] += _articles(rng, sample.copies, alike & ~commerce, count - found)
    seen = {(f, c): np.atleast_1d(weights[part & (flagged == f) & (commerce == c)].sum()) for f, c in totals}
    estimates = {name: float(values[0]) for name, values in _rates(seen).items()}
    intervals = {
        name: as_interval(*np.quantile(np.nan_to_num(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
        if not math.isnan(estimates[name])
        else [0.0, 1.0]
        for name, values in _rates(totals).items()
    }
    known = {name: None if math.isnan(value) else value for name, value in estimates.items()}
    return Production(intervals=intervals, **known)  # type: ignore[typeddict-item]


def difference(
    sample: Sample, kind: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int
) -> tuple[float, float]:
    """The limits of the share of the population for which only ``first`` holds, less that for which only ``second``
    does, from draws as in ``production``.

    Args:
        kind: (n,) whole numbers, which kind of stratum each unit was drawn from.
        first, second: (n,) bool, such as whether each of two models decides a unit rightly.
    """
    unseen, rng = sample.unseen, np.random.default_rng(seed)
    apart, total = np.zeros(DRAWS), np.zeros(DRAWS)
    for value in np.unique(kind):
        of_kind = kind == value
        differ, left = of_kind & (first != second), np.full(DRAWS, round(unseen[of_kind].sum()))
        differing = _split(rng, left, (first != second)[of_kind], unseen[of_kind])
        only_first = _split(rng, differing, first[differ], unseen[differ])
        one = _articles(rng, sample.copies, differ & first, only_first)
        other = _articles(rng, sample.copies, differ & second, differing - only_first)
        apart += one - other
        total += one + other + _articles(rng, sample.copies, of_kind & ~differ, left - differing)
    low, high = np.quantile(apart / total, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _rates(n: dict[tuple[bool, bool], np.ndarray]) -> dict[str, np.ndarray]:
    """The four rates from the articles by (flagged, commerce)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": n[True, True] / (n[True, True] + n[True, False]),
            "recall": n[True, True] / (n[True, True] + n[False, True]),
            "false_positive_rate": n[True, False] / (n[True, False] + n[False, False]),
            "prevalence": (n[True, True] + n[False, True]) / sum(n.values()),
        }


def _split(rng: np.random.Generator, counts: np.ndarray, chosen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Of (DRAWS,) ``counts`` of units that were not drawn, how many are chosen, if ``chosen`` are those that were.

    ``unseen`` is how many of them each of these stands for. Where nothing was drawn, all or none.
    """
    if not len(chosen):
        return counts * (rng.random(DRAWS) < 0.5)
    weights = unseen if unseen.any() else np.ones(len(unseen))
    n = effective_size(weights)
    k = n * float(weights[chosen].sum() / weights.sum())
    # Half of the draws from each of the two distributions between which Clopper and Pearson's limits lie.
    upper = rng.random(DRAWS) < 0.5
    a, b = k + upper, n - k + ~upper
    share = rng.beta(np.maximum(a, 1e-9), np.maximum(b, 1e-9))
    return rng.binomial(counts, np.where(a <= 0, 0.0, np.where(b <= 0, 1.0, share)))


def _articles(rng: np.random.Generator, copies: np.ndarray, drawn: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(DRAWS,) articles that units stand for: those that were ``drawn``, (n,) bool of all that were, and (DRAWS,)
    ``counts`` like them that were not.

    These have on average as many copies as those and one more unit, drawn from all: of a kind that repeats more often
    than others, such as advertisements, a few show it.
    """
    own = copies[drawn]
    if (copies == copies[0]).all():
        return own.sum() + counts * float(copies[0])
    some = np.append(own, copies.mean())
    # A few units seldom show the most that one has: no less than among all.
    variance = max(float(x.var() / x.mean() ** 2) for x in (some, copies))
    mean = (own.sum() + rng.choice(copies, DRAWS)) / len(some)
    mean = mean * _sums(rng, np.full(DRAWS, len(some)), variance) / len(some)
    return own.sum() + mean * _sums(rng, counts, variance)


def _sums(rng: np.random.Generator, counts: np.ndarray, variance: float) -> np.ndarray:
    """(DRAWS,) sums of so many positive numbers with a mean of 1 and this variance."""
    return variance * rng.gamma(counts / variance) if variance > 1e-9 else counts.astype(float)
