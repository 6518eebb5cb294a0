"""Timings and scores of many configurations in, rows out, each with its fidelity, and the one to recommend."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from prefilter_common.benchmark.fidelity import Fidelity, Tolerance, compare_scores, refusal
from prefilter_common.benchmark.stages.cascade import Cascade
from prefilter_common.benchmark.timing import Bulk, Shape, Single
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.scoring.engines.interface import REFERENCE, EngineName
from prefilter_common.statistics.metrics import latency_summary, threshold_metrics
from prefilter_common.statistics.operating_points import DEFAULT

SEED = 0  # of the paired bootstrap


@dataclass(frozen=True)
class Configuration:
    """An engine, how much of an article it reads, and which stages decide before."""

    engine: EngineName
    max_length: int
    stages: tuple[Stage, ...] = ()

    @property
    def name(self) -> str:
        """As ``name_of`` has it of its row."""
        return _named(str(self.engine), self.max_length, [stage.name for stage in self.stages])


@dataclass(frozen=True)
class Reference:
    """PyTorch in fp32, every article read in full: what the others are compared with.

    ``scores`` (n,) of the test articles, ``labels`` (n,) or None, ``n_tokens`` (n,) as read, ``more`` (k,) scores of
    other articles on which decisions are compared, and ``unseen`` (k,) bool: on which of them no stage was fitted or
    chosen; ``distinct`` (m,) places of test articles with different texts that the model reads, on which fidelity is
    judged; ``operations`` maps a part of the model and the shape of a batch to the operations of its forward pass.
    """

    contract: Contract
    scores: np.ndarray
    labels: np.ndarray | None
    n_tokens: np.ndarray
    operations: Callable[[Shape], float]
    cascade: Cascade
    more: np.ndarray
    unseen: np.ndarray
    distinct: np.ndarray


class WorkerFacts(TypedDict):
    """What is known of an engine's process: precision, hash of its ``engine.json``, seconds to load, memory, disk."""

    precision: str
    engine_sha256: str | None
    load_s: float
    disk_mib: float
    peak_memory_mib: int
    peak_memory_bulk_mib: int


class StageCost(TypedDict):
    """A stage, or the full read: the share of the test articles that it decides, and milliseconds per article that gets
    there, one at a time; None where none of those that were timed does.
    """

    name: str
    decides: float
    ms: float | None


class BenchmarkRow(WorkerFacts):
    """One configuration in ``results/benchmark_<model>.json``; ``refused`` is None or the reason.

    ``tokenize`` and ``forward``: milliseconds per article, one at a time. ``relative_speed`` and
    ``bulk_relative_speed``: against the reference one at a time; ``articles_per_second``: by batch size;
    ``share_of_bound``: of the forward pass.
    """

    engine: str
    max_length: int
    stages: list[str]
    stage_costs: list[StageCost]
    avg_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    tokenize: dict[str, float]
    forward: dict[str, float]
    relative_speed: float
    relative_speed_rounds: list[float]
    articles_per_second: dict[str, float]
    bulk_relative_speed: float
    gflop_per_article: float
    bound_ms: float | None
    share_of_bound: float | None
    f1: float | None
    f1_interval: list[float] | None
    fidelity: Fidelity
    refused: str | None


def row_of(
    configuration: Configuration, rounds: Sequence[Single], bulk: Mapping[int, Bulk], reference: Reference,
    reference_ms: Sequence[float], rates: Mapping[str, float | None], tolerance: Tolerance, facts: WorkerFacts,
    more: np.ndarray,
) -> BenchmarkRow:  # fmt: skip
    """Everything that was measured of one configuration.

    Args:
        bulk: batch size -> the scores of all articles and the time they took.
        reference_ms: mean milliseconds per article of the reference, by round.
        more: (k,) scores of the articles of ``reference.more``.
        rates: billions of operations per second by precision, as the machine multiplies matrices.
    """
    tokenize = np.concatenate([single.tokenize for single in rounds])
    forward = np.concatenate([single.forward for single in rounds])
    means = [single.mean_ms for single in rounds]
    ratios = [theirs / ours for theirs, ours in zip(reference_ms, means, strict=True)]
    n_operations = sum(map(reference.operations, rounds[0].shapes)) / len(rounds[0].forward)
    rate = rates.get(facts["precision"].split("+")[0])
    bound_ms = n_operations / rate / 1e6 if rate else None
    scores = next(iter(bulk.values())).scores
    fidelity, refused = judge(configuration, reference, scores, more, tolerance)
    n_read = {size: int((found.decided_by <= len(configuration.stages)).sum()) for size, found in bulk.items()}
    per_second = {str(size): round(n_read[size] / found.seconds, 2) for size, found in bulk.items()}
    f1, f1_interval = f1_with_interval(reference, scores)
    summary = latency_summary(tokenize + forward)
    return {
        "engine": str(configuration.engine),
        "precision": facts["precision"],
        "engine_sha256": facts["engine_sha256"],
        "max_length": configuration.max_length,
        "stages": [stage.name for stage in configuration.stages],
        "stage_costs": stage_costs(configuration, rounds, next(iter(bulk.values())).decided_by),
        "avg_ms": summary["avg_ms"],
        "p50_ms": summary["p50_ms"],
        "p95_ms": summary["p95_ms"],
        "p99_ms": summary["p99_ms"],
        "min_ms": summary["min_ms"],
        "max_ms": summary["max_ms"],
        "tokenize": latency_summary(tokenize),
        "forward": latency_summary(forward),
        "relative_speed": round(float(np.mean(reference_ms) / np.mean(means)), 2),
        "relative_speed_rounds": [round(float(min(ratios)), 2), round(float(max(ratios)), 2)],
        "articles_per_second": per_second,
        "bulk_relative_speed": round(max(per_second.values()) * float(np.mean(reference_ms)) / 1000, 2),
        "peak_memory_mib": facts["peak_memory_mib"],
        "peak_memory_bulk_mib": facts["peak_memory_bulk_mib"],
        "disk_mib": facts["disk_mib"],
        "load_s": facts["load_s"],
        "gflop_per_article": round(n_operations / 1e9, 6),
        "bound_ms": bound_ms and round(bound_ms, 4),
        "share_of_bound": bound_ms and round(bound_ms / (1000 * float(forward.mean())), 3),
        "f1": f1,
        "f1_interval": f1_interval,
        "fidelity": fidelity,
        "refused": refused,
    }


def stage_costs(configuration: Configuration, rounds: Sequence[Single], decided_by: np.ndarray) -> list[StageCost]:
    """Of each stage and the full read; ``decided_by`` (n,) says which decided each test article."""
    seconds = np.concatenate([single.stages for single in rounds])
    costs: list[StageCost] = []
    for number, name in enumerate([*(stage.name for stage in configuration.stages), "full read"]):
        reached = seconds[:, number][seconds[:, number] > 0]
        ms = round(float(1000 * reached.mean()), 4) if len(reached) else None
        costs.append({"name": name, "decides": round(float((decided_by == number).mean()), 4), "ms": ms})
    return costs


def judge(
    configuration: Configuration, reference: Reference, scores: np.ndarray, more: np.ndarray, tolerance: Tolerance
) -> tuple[Fidelity, str | None]:
    """How close a configuration's (n,) and (k,) scores are to the reference's, and why it is refused, or None."""
    # The articles that stages were chosen or fitted on would flatter them.
    judged = reference.unseen if configuration.stages else np.ones(len(more), dtype=bool)
    labels, own = reference.labels, reference.distinct
    fidelity = compare_scores(
        None if labels is None else labels[own], reference.scores[own], scores[own], reference.contract.thresholds,
        SEED, (reference.more[judged], more[judged]),
    )  # fmt: skip
    # The reference differs from itself only by rounding, but a score may lie that close to a threshold.
    if configuration == Configuration(REFERENCE, reference.contract.max_length):
        return fidelity, None
    reads_less = bool(configuration.stages) or configuration.max_length < reference.contract.max_length
    return fidelity, refusal(fidelity, tolerance, reads_less)


def refuse_with_their_engine(rows: Sequence[BenchmarkRow], max_length: int) -> None:
    """Refuse what reads less with an engine that is refused when it reads ``max_length`` tokens, in place.

    Such a row may change more decisions than an engine may, and would hide that its engine changes them.
    """
    in_full = {row["engine"]: row["refused"] for row in rows if row["max_length"] == max_length and not row["stages"]}
    for row in rows:
        if row["refused"] is None and (reason := in_full.get(row["engine"])):
            row["refused"] = f"read in full, {reason}"


def f1_with_interval(reference: Reference, scores: np.ndarray) -> tuple[float | None, list[float] | None]:
    """F1 at the default threshold and its interval; both None where there are no labels."""
    if reference.labels is None:
        return None, None
    (at,) = threshold_metrics(reference.labels, scores, [reference.contract.thresholds[DEFAULT]])
    return at["f1"], at["intervals"]["f1"]


def recommend(rows: Sequence[BenchmarkRow]) -> BenchmarkRow:
    """The fastest row, by its mean, of those within the tolerance; the reference always is."""
    return min((row for row in rows if row["refused"] is None), key=lambda row: row["avg_ms"])


def frontier(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """The rows that no other beats in both speed and F1, from the fastest to the best. Every row has an F1."""
    best, found = -1.0, []
    for f1, row in sorted(((row["f1"] or 0.0, row) for row in rows), key=lambda item: (item[1]["avg_ms"], -item[0])):
        if f1 > best:
            best = f1
            found.append(row)
    return found


def name_of(row: BenchmarkRow) -> str:
    """Such as ``openvino-int8 512 after 64 tokens``, as tables and pictures name a row."""
    return _named(row["engine"], row["max_length"], row["stages"])


def _named(engine: str, max_length: int, stages: Sequence[str]) -> str:
    after = f" after {' + '.join(stages)}" if stages else ""
    return f"{engine} {max_length}{after}"
