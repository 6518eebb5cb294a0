"""Timings and scores of many configurations -> rows, each with its fidelity, and the one to recommend."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.calibration import at_temperature
from prefilter_common.choice import CRITERIA
from prefilter_common.contract import CONTRACT_FILE, Contract, TwoPass
from prefilter_common.engines import REFERENCE, converted_folder
from prefilter_common.evaluation import labels_of
from prefilter_common.metrics import latency_summary, threshold_metrics
from prefilter_common.operating_points import DEFAULT
from prefilter_common.parity import Tolerance, compare_scores, refusal
from prefilter_common.scoring import Scorer
from prefilter_common.two_pass import FIRST_LENGTHS, choose_two_pass

SEED = 0  # of the paired bootstrap


@dataclass(frozen=True)
class Configuration:
    """An engine and how much of an article it reads."""

    engine: str
    max_length: int
    two_pass: TwoPass | None = None

    @property
    def passes(self) -> int:
        """1 or 2."""
        return 2 if self.two_pass else 1


@dataclass(frozen=True)
class Reference:
    """PyTorch in fp32, every article read in full: what the others are compared with.

    ``scores`` (n,) of the test articles, ``labels`` (n,) or None, ``n_tokens`` (n,) as read; ``operations`` gives those
    of a forward pass by its shape; ``two_pass_note`` is what the choice of a first pass said.
    """

    contract: Contract
    scores: np.ndarray
    labels: np.ndarray | None
    n_tokens: np.ndarray
    operations: Callable[[tuple[int, int]], float]
    two_pass_note: dict


def take_reference(directory: Path, test: Sequence[Article], val: Sequence[Article] | None, device: str) -> Reference:
    """Score the test articles, and choose the limits of a first pass on the validation articles where there are some.

    The contract returned holds those limits; without validation articles the ones it had. Raises InputError.
    """
    from prefilter_common.timing import operations

    scorer = Scorer.load(directory, device, REFERENCE)
    path = directory / CONTRACT_FILE
    two_pass = Contract.load(path).two_pass if path.is_file() else None
    note = {} if two_pass else {"reason": "no validation articles to choose its limits on; pass --val-data"}
    if not path.is_file():
        note = {"reason": f"no {CONTRACT_FILE} to keep its limits in; train the model again"}
    elif val:
        two_pass, note = _choose_two_pass(scorer, val)
    encodings = scorer.tokenize(test)
    return Reference(
        contract=replace(scorer.contract, two_pass=two_pass),
        scores=scorer.score_encodings(encodings),
        labels=None if any(article.label is None for article in test) else labels_of(test),
        n_tokens=np.array([len(ids) for ids in encodings]),
        operations=operations(scorer.engine.model),
        two_pass_note=note,
    )


def _choose_two_pass(scorer: Scorer, val: Sequence[Article]) -> tuple[TwoPass | None, dict]:
    contract = scorer.contract
    lengths = [length for length in FIRST_LENGTHS if length < contract.max_length]
    short = {length: at_temperature(scorer.reading(length).score(val), 1 / contract.temperature) for length in lengths}
    n_tokens = np.array([len(ids) for ids in scorer.tokenize(val)])
    return choose_two_pass(labels_of(val), scorer.score(val), short, n_tokens, contract.thresholds)


def row(
    configuration: Configuration, rounds: Sequence[dict], bulk: Mapping[int, dict], reference: Reference,
    reference_ms: Sequence[float], rates: Mapping[str, float | None], tolerance: Tolerance, worker: Mapping,
) -> dict:  # fmt: skip
    """All that was measured of one configuration, as plain JSON values.

    Args:
        rounds: what ``timing.Worker.single`` returned, by round.
        bulk: batch size -> what ``timing.Worker.bulk`` returned.
        reference_ms: mean milliseconds an article of the reference, by round.
        rates: billions of operations a second by precision, as the machine multiplies matrices.
        worker: what is known of the engine's process: precision, load time, memory, size on disk.
    """
    tokenize = np.concatenate([r["tokenize"] for r in rounds])
    forward = np.concatenate([r["forward"] for r in rounds])
    means = [1000 * (r["tokenize"] + r["forward"]).mean() for r in rounds]
    ratios = [theirs / ours for theirs, ours in zip(reference_ms, means, strict=True)]
    n_operations = sum(map(reference.operations, rounds[0]["shapes"])) / len(rounds[0]["forward"])
    rate = rates.get(worker["precision"].split("+")[0])
    bound_ms = n_operations / rate / 1e6 if rate else None
    scores = next(iter(bulk.values()))["scores"]
    thresholds = reference.contract.thresholds
    comparison = compare_scores(reference.labels, reference.scores, scores, thresholds, SEED)
    # The reference differs from itself by rounding only, yet a score may lie that near to a threshold.
    is_reference = configuration == Configuration(REFERENCE, reference.contract.max_length)
    reads_less = configuration.passes == 2 or configuration.max_length < reference.contract.max_length
    per_second = {str(size): round(len(scores) / found["seconds"], 2) for size, found in bulk.items()}
    return {
        "engine": configuration.engine,
        "precision": worker["precision"],
        "max_length": configuration.max_length,
        "passes": configuration.passes,
        **latency_summary(tokenize + forward),
        "tokenize": latency_summary(tokenize),
        "forward": latency_summary(forward),
        "relative_speed": round(float(np.mean(reference_ms) / np.mean(means)), 2),
        "relative_speed_rounds": [round(float(min(ratios)), 2), round(float(max(ratios)), 2)],
        "articles_per_second": per_second,
        "bulk_relative_speed": round(max(per_second.values()) * float(np.mean(reference_ms)) / 1000, 2),
        "peak_memory_mib": worker["peak_memory_mib"],
        "peak_memory_bulk_mib": worker["peak_memory_bulk_mib"],
        "disk_mib": worker["disk_mib"],
        "load_s": worker["load_s"],
        "gflop_per_article": round(n_operations / 1e9, 6),
        "bound_ms": bound_ms and round(bound_ms, 4),
        "share_of_bound": bound_ms and round(bound_ms / (1000 * float(forward.mean())), 3),
        **quality(reference, scores),
        "parity": comparison,
        "refused": None if is_reference else refusal(comparison, tolerance, reads_less),
    }


def quality(reference: Reference, scores: np.ndarray) -> dict:
    """``f1`` at the default threshold and its interval; both None where there are no labels or no numbers."""
    if reference.labels is None or not np.isfinite(scores).all():
        return {"f1": None, "f1_interval": None}
    (at,) = threshold_metrics(reference.labels, scores, [reference.contract.thresholds[DEFAULT]])
    return {"f1": at["f1"], "f1_interval": at["intervals"]["f1"]}


def recommend(rows: Sequence[dict]) -> dict:
    """The fastest row, by its mean, of those inside the tolerance. The reference is always inside."""
    return min((row for row in rows if row["refused"] is None), key=lambda row: row["avg_ms"])


def frontier(rows: Sequence[dict]) -> list[dict]:
    """The rows of which no other is both faster and at least as good by F1, from the fastest to the best."""
    best, found = -1.0, []
    for row in sorted(rows, key=lambda row: (row["avg_ms"], -row["f1"])):
        if row["f1"] > best:
            best = row["f1"]
            found.append(row)
    return found


def name_of(row: Mapping) -> str:
    """``openvino-int8 128 two passes``, as tables and pictures name a row."""
    return f"{row['engine']} {row['max_length']}{' two passes' if row['passes'] == 2 else ''}"


def verdict(avg_ms: float) -> str:
    """The mean against the success criteria."""
    minimum, target = CRITERIA["cpu_ms"]
    if avg_ms < target:
        return f"meets the target (< {target} ms)"
    if avg_ms < minimum:
        return f"meets the minimum (< {minimum} ms), not the target (< {target} ms)"
    return f"misses the minimum (< {minimum} ms)"


def disk_mib(directory: Path, engine: str) -> float:
    """Size of what the engine needs: its own folder, or the checkpoint's files."""
    folder = converted_folder(directory, engine)
    names = ("model.safetensors", "adapter_model.safetensors", "config.json", "tokenizer.json")
    files = folder.iterdir() if folder else [directory / name for name in names if (directory / name).is_file()]
    return round(sum(path.stat().st_size for path in files) / 2**20, 1)
