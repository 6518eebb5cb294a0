"""What is known of the models among which the rules choose."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from prefilter_common.evaluation.traffic.audit import AuditSection
from prefilter_common.statistics.metrics import ThresholdMetrics
from prefilter_common.statistics.operating_points import DEFAULT


class Figures(TypedDict):
    """What the rules need of a model: its metrics by operating point; mean milliseconds per article on the CPU, on
    which articles and machine, and with which engine and stages where those are not the metrics'; whether it beats the
    floor. None: not measured.
    """

    operating_points: Mapping[str, ThresholdMetrics]
    cpu_ms: float | None
    timed_on: str | None
    timed_with: str | None
    beats_floor: bool | None


class Assessment(TypedDict):
    """A model's figures at one operating point, what they miss of each tier of criteria, and whether that is shown."""

    operating_point: str
    tier: str
    f1: float
    precision: float
    recall: float
    cpu_ms: float | None
    intervals: dict[str, list[float]]
    source: str
    misses: dict[str, list[str]]
    states: dict[str, str]


class Candidate(Assessment):
    """An assessed model with its name."""

    model: str


def ranked_alike(
    candidates: Sequence[Candidate], models: Mapping[str, Figures], audit: AuditSection | None
) -> list[Candidate]:
    """With the figures of the test set, where an audit has some of them and only some of the models drew its sample.

    What another model alone flags is seldom drawn, and its precision is then estimated on what both flag: of two
    equally good models the one that did not draw the sample had the higher figure in 65 to 87 % of simulations.
    """
    drawn = {audit["models"][c["model"]]["drew_sample"] for c in candidates if c["source"] == "audit"} if audit else ()
    if len(drawn) < 2:
        return list(candidates)
    points = [models[c["model"]]["operating_points"][DEFAULT] for c in candidates]
    return [
        {**c, "f1": at["f1"], "precision": at["precision"], "recall": at["recall"], "source": "test"}
        for c, at in zip(candidates, points, strict=True)
    ]


def measure_name(key: str) -> str:
    """A measure as a reader knows it."""
    return {"f1": "F1", "cpu_ms": "CPU latency"}.get(key, key)
