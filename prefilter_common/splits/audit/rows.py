"""What the sections of an audit that need no model hold."""

from typing import NotRequired, TypedDict


class ShownArticle(TypedDict):
    """An article as reports show it, with its texts cut; ``characters`` is their whole length."""

    split: str
    id: str | None
    title: str
    content: str
    language: str | None
    source: str | None
    label: int | None
    characters: int


class ScoredArticle(ShownArticle):
    """That, with the score that contradicts its label."""

    score: float | None


class SplitDescription(TypedDict):
    """Numbers of articles: all, by label, language and length; ``characters`` as quantiles; ``sources``, how many."""

    articles: int
    labels: dict[str, int]
    languages: dict[str, int]
    lengths: dict[str, int]
    characters: dict[str, int]
    sources: int


class ScoreConflicts(TypedDict):
    """Of the scored articles, how many have the label that the score rules out, and how many scores decide nothing."""

    scored: int
    against: int
    in_the_middle: int
    examples: list[ScoredArticle]


class Match(TypedDict):
    """An article, and the ``other`` whose text it shares; ``similarity`` is that of their shingles."""

    kind: str
    similarity: float
    article: ShownArticle
    other: ShownArticle


class Matches(TypedDict):
    """Numbers of articles by the kind of their strongest match, and some of them."""

    kinds: dict[str, int]
    examples: list[Match]


class WithinSplit(Matches):
    """Articles of one split that share their text: clusters, articles in them, and the largest one's."""

    clusters: int
    articles: int
    largest: int


class AcrossSplits(Matches):
    """Articles of the second of two splits that are also in the first."""

    splits: list[str]
    articles: int


class Duplicates(TypedDict):
    """Shared texts; ``both_labels`` counts clusters with articles of both labels, and ``contradicting`` shows some."""

    within: dict[str, WithinSplit]
    across: list[AcrossSplits]
    both_labels: int
    contradicting: list[list[ShownArticle]]


class SplitReading(TypedDict):
    """Which share of a split's articles is cut, and how long half of them are at most."""

    share_cut: float
    median_tokens: int


class Reading(TypedDict):
    """What a model reads of each split; without the packaged encoder there is no model, but a ``reason``."""

    model: str | None
    max_length: int | None
    splits: dict[str, SplitReading]
    reason: NotRequired[str]
