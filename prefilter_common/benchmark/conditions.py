"""What is compared, on which device, and what the timings depend on besides the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from prefilter_common.benchmark.bounds import matrix_rates
from prefilter_common.benchmark.fidelity import Tolerance
from prefilter_common.errors import InputError
from prefilter_common.scoring.engines.interface import EngineName


@dataclass(frozen=True)
class Options:
    """What to compare, on which device and how; ``max_lengths`` is None for the model's own."""

    engines: Sequence[EngineName]
    max_lengths: Sequence[int] | None
    no_stages: bool
    batch_sizes: Sequence[int]
    tolerance: Tolerance
    device: str
    rounds: int
    threads: int | None


class Machine(TypedDict):
    """What the timings depend on besides the model; ``matrix_gflops`` by precision, None where it is not available."""

    device: str
    threads: int
    rounds: int
    cpu_load_before_percent: float
    matrix_gflops: dict[str, float | None]


class Articles(TypedDict):
    """``median_characters`` of the test articles' contents, ``lengths_like`` the file to whose lengths they were cut or
    None; ``compared_articles``, also by role; ``unread_articles`` were left out of these, and of those that are timed.
    """

    median_characters: int
    lengths_like: str | None
    mean_tokens: float
    max_tokens: int
    timed_articles: int
    compared_articles: int
    compared: dict[str, int]
    unread_articles: int


class Conditions(Machine, Articles):
    """What was timed, on what."""


def conditions_of(options: Options) -> Machine:
    """Device, threads, load and the machine's matrix rates, before anything is timed. Raises InputError."""
    import psutil
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; install its CUDA build, or pass --device cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    return {
        "device": options.device,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "cpu_load_before_percent": psutil.cpu_percent(interval=0.5),
        "matrix_gflops": matrix_rates(options.device),
    }
