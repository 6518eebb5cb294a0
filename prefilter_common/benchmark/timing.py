"""How fast is an engine, and how much memory does it need?

Imports nothing heavy at the top: a worker imports this module, and its memory and load time must be its engine's own.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.models.contract import Stage

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from prefilter_common.scoring.engines.interface import Engine, EngineName
    from prefilter_common.scoring.scorer import Scorer

Answer = TypeVar("Answer")
Shape = tuple[int, int, int]  # of a forward pass: which part of the model, articles, tokens


class Opened(TypedDict):
    """Seconds to load an engine, the precision that it really uses, and the hash of its ``engine.json``, or None."""

    load_s: float
    precision: str
    engine_sha256: str | None


@dataclass(frozen=True)
class Single:
    """One round: seconds per article to tokenise, (n,), and in each stage and the full read, (n, stages + 1), and the
    ``shapes`` of the forward passes.
    """

    tokenize: np.ndarray
    stages: np.ndarray
    shapes: list[Shape]

    @property
    def forward(self) -> np.ndarray:
        """(n,) seconds to score."""
        return self.stages.sum(1)

    @property
    def mean_ms(self) -> float:
        """Milliseconds per article."""
        return float(1000 * (self.tokenize + self.forward).mean())


@dataclass(frozen=True)
class Bulk:
    """Seconds for all articles together, their (n,) scores, and which stage decided each: (n,), as in Scorer."""

    seconds: float
    scores: np.ndarray
    decided_by: np.ndarray


class Worker:
    """One engine in a process of its own, so that load time, peak memory and threads are its own.

    Methods block until the process answers, so only one of several workers computes at a time. The process ends with
    the worker and, however it is killed, with the process that made it, also in the middle of a computation.
    """

    def __init__(self, directory: Path, fitted: Path, engine: "EngineName", device: str, threads: int | None):
        """Open ``engine`` of the model in ``directory``, with the stages of the folder ``fitted``."""
        context = get_context("spawn")
        # Nothing is ever sent: the other end sees the pipe close, which the system does for a process that is killed.
        ours, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(1, context, initializer=_end_with, initargs=(ours,))
        self.opened: Opened = self._ask(_open, directory, fitted, engine, device, threads)

    def single(self, articles: Sequence[Article], max_length: int, stages: Sequence[Stage]) -> Single:
        """Time each article on its own."""
        return self._ask(_single, articles, max_length, stages)

    def bulk(self, articles: Sequence[Article], max_length: int, stages: Sequence[Stage], batch_size: int) -> Bulk:
        """Time all articles together."""
        return self._ask(_bulk, articles, max_length, stages, batch_size)

    def scores(
        self, articles: Sequence[Article], max_length: int, stages: Sequence[Stage], batch_size: int
    ) -> np.ndarray:
        """P(commerce) of each article, (n,), untimed."""
        return self._ask(_scores, articles, max_length, stages, batch_size)

    def peak_memory_mib(self) -> float:
        """The peak resident memory of the process so far."""
        return self._ask(_peak)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._alive.close()
        self._pool.shutdown()

    def _ask(self, function: Callable[..., Answer], *args: object) -> Answer:
        return self._pool.submit(function, *args).result()


def _end_with(alive: "Connection") -> None:
    """In the worker process: exit at once when the other end of the pipe closes; Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        with suppress(EOFError, OSError):
            alive.recv()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class _Counting:
    """An engine that records which part it ran on a batch of which shape."""

    def __init__(self, engine: "Engine"):
        self.engine, self.name, self.precision = engine, engine.name, engine.precision
        self.width_step, self.places = engine.width_step, engine.places
        self.shapes: list[Shape] = []

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        n, t = input_ids.shape
        self.shapes += [(part, n, t) for part in range(len(self.places) + 1)]
        return self.engine(input_ids, attention_mask)

    def part(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        n, t = attention_mask.shape
        self.shapes.append((number, n, t))
        return self.engine.part(number, inputs, attention_mask)


# Of the worker process.
_scorer: "Scorer"
_engine: _Counting


def _open(directory: Path, fitted: Path, engine: "EngineName", device: str, threads: int | None) -> Opened:
    """Load, timed from the first import on."""
    global _scorer, _engine
    start = time.perf_counter()
    from prefilter_common.files import sha256_of
    from prefilter_common.models.directory import ENGINE_FILE, read_contract
    from prefilter_common.scoring.scorer import Scorer

    _scorer = Scorer.load(directory, device if engine.library == "pytorch" else None, engine, threads)
    if contract := read_contract(fitted):
        _scorer.with_files_of(fitted, contract.stages)
    seconds = time.perf_counter() - start
    _scorer.engine = _engine = _Counting(_scorer.engine)
    folder = engine.folder(directory)
    sha256 = None if folder is None else sha256_of(folder / ENGINE_FILE)
    return {"load_s": round(seconds, 2), "precision": _engine.precision, "engine_sha256": sha256}


def _single(articles: Sequence[Article], max_length: int, stages: Sequence[Stage]) -> Single:
    from prefilter_common.scoring.latency import time_stages

    scorer = _scorer.reading(max_length, stages)
    # Others had their turn: the longest article brings this engine's threads and memory back.
    scorer.score([max(articles, key=lambda article: len(article.content))])
    _engine.shapes.clear()
    return Single(*time_stages(scorer, articles), list(_engine.shapes))


def _bulk(articles: Sequence[Article], max_length: int, stages: Sequence[Stage], batch_size: int) -> Bulk:
    scorer = _scorer.reading(max_length, stages)
    if _engine.width_step > 1:  # it compiles kernels for each new shape of a batch
        scorer.decide(articles, batch_size)
    start = time.perf_counter()
    scores, decided_by = scorer.decide(articles, batch_size)
    return Bulk(time.perf_counter() - start, scores, decided_by)


def _scores(articles: Sequence[Article], max_length: int, stages: Sequence[Stage], batch_size: int) -> np.ndarray:
    return _scorer.reading(max_length, stages).score(articles, batch_size)


def _peak() -> float:
    from prefilter_common.runinfo import peak_memory_mib

    return peak_memory_mib()
