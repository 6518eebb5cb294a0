"""Rows of the files in and beside a model directory."""

from typing import TypedDict


class Recommendation(TypedDict):
    """What others read of ``cpu_benchmark.json``: mean milliseconds per article, and how to run the model."""

    avg_ms: float
    engine: str
    max_length: int
    passes: int


class PredictionRow(TypedDict):
    """One line of ``predictions/<model>.jsonl`` and of the validation predictions."""

    id: str | None
    label: int | None
    score: float
    language: str | None
