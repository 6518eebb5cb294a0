"""What the streaming scorer writes."""

from typing import TypedDict


class ScoreRow(TypedDict):
    """One line of the scores."""

    id: str | None
    score: float
    is_commerce: bool
    language: str | None
    characters: int


class Summary(TypedDict):
    """The last line on stdout; ``seconds`` and speed are those of this run, without loading."""

    articles: int
    commerce: int
    seconds: float
    articles_per_second: float
    engine: str
    passes: int
    peak_memory_mib: int
