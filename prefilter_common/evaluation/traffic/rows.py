"""What ``flags`` finds, as the results keep it."""

from typing import TypedDict


class FlagRate(TypedDict):
    """How many articles are flagged at one operating point, their share and its interval.

    The interval counts repeated texts as what they are: fewer observations than articles.
    """

    threshold: float
    n_flagged: int
    n_flagged_distinct: int
    rate: float
    interval: list[float]


class FlagRow(TypedDict):
    """Two models on one slice: both flag rates with intervals, and the articles flagged by only one of them."""

    by: str
    value: str
    n: int
    enough: bool
    rates: list[float]
    intervals: list[list[float]]
    difference: float
    only_first: int
    only_second: int
    p_adjusted: float | None


class FlagComparison(FlagRow):
    """Two models on all articles, and in ``slices``; see ``compare_flags``.

    ``both`` and ``either`` count articles flagged by both and by at least one; ``kappa`` is None where all decisions
    are the same; ``detectable`` is the difference of flag rates that would have been seen.
    """

    agreement: float
    kappa: float | None
    both: int
    either: int
    overlap_interval: list[float]
    detectable: float
    slices: list[FlagRow]
    worst_slice: str | None
    flag_apart: bool
    differ: bool
    verdict: str


class Disagreement(TypedDict):
    """An article that only one of two models flags, with the scores of both."""

    id: str | None
    title: str
    language: str | None
    characters: int
    scores: list[float]


class PointComparison(FlagComparison):
    """Two models at one operating point; ``disagreements`` by the model that flags the article."""

    thresholds: list[float]
    disagreements: dict[str, list[Disagreement]]


class TrafficPair(TypedDict):
    """Two models on the traffic; ``points`` by operating point."""

    models: list[str]
    n_articles: int
    rank_correlation: float | None
    points: dict[str, PointComparison]
