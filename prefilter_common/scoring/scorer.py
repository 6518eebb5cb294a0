"""Articles -> P(commerce), with any model directory and engine.

As a command it scores a JSON Lines file of any size: python -m prefilter_common.scoring models/x in.jsonl out.jsonl
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.cli import InputError, exit_code
from prefilter_common.contract import Contract, TwoPass
from prefilter_common.conversion import is_current, load_reading
from prefilter_common.engines import (
    REFERENCE,
    Engine,
    TorchEngine,
    Unavailable,
    check_available,
    converted_folder,
    open_converted,
)
from prefilter_common.tokenization import ArticleTokenizer

if TYPE_CHECKING:
    import torch

    from prefilter_common.checkpoints import Checkpoint

log = logging.getLogger(__name__)

# Written by benchmark_inference.py: names the engine that was the fastest of those that decide as PyTorch does.
RECOMMENDATION_FILE = "cpu_benchmark.json"
# Articles that are tokenised at once: enough to find ones of like length, few enough to keep memory constant.
CHUNK = 1024

Encoding = list[int]


class Scorer:
    """Scores articles with one classifier: tokenise, forward pass, probability. Safe to share between threads.

    >>> scorer = Scorer.load("models/multilingual-e5-small")
    >>> scorer.score([Article(title="Half price today", content="Order now ...")])
    array([0.98])

    Where the contract has ``two_pass``, articles are first read a little way and only those whose score is then
    uncertain are read in full.
    """

    def __init__(self, engine: Engine, tokenizer: ArticleTokenizer, contract: Contract):
        self.engine = engine
        self.tokenizer = tokenizer
        self.contract = contract

    @classmethod
    def of(cls, checkpoint: "Checkpoint", device: "str | torch.device", engine: str = REFERENCE) -> "Scorer":
        """A checkpoint that is in memory, with PyTorch."""
        model = TorchEngine(checkpoint.model, device, engine)
        return cls(model, ArticleTokenizer.of(checkpoint.tokenizer), checkpoint.contract)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: "str | torch.device | None" = None,
        engine: str | None = None,
        threads: int | None = None,
    ) -> "Scorer":
        """Load a model directory. A log line says with which engine.

        Args:
            device: for PyTorch; by default CUDA where there is one, else the CPU.
            engine: one of ``engines.ENGINES``, to read every article in full. By default the configuration that the
                benchmark recommended where it can be had, else PyTorch.
            threads: for the arithmetic; by default one a core.

        Raises:
            InputError: not a model, or ``engine`` cannot be had.
        """
        directory = Path(directory)
        scorer = None
        if engine is None and device is None:
            scorer = cls._recommended(directory, threads)
        scorer = scorer or cls._open(directory, engine or REFERENCE, device, threads).reading()
        passes = "two passes" if scorer.contract.two_pass else "one pass"
        log.info(f"{directory}: {scorer.engine.name}, {passes}, at most {scorer.contract.max_length} tokens")
        return scorer

    @classmethod
    def _recommended(cls, directory: Path, threads: int | None) -> "Scorer | None":
        """What the benchmark recommended, or None, with a warning where there is something to mend."""
        try:
            found = json.loads((directory / RECOMMENDATION_FILE).read_text(encoding="utf-8"))
            name, max_length, passes = (found[key] for key in ("engine", "max_length", "passes"))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not benchmarked yet, or by an earlier version of the benchmark
        if not (isinstance(name, str) and type(max_length) is int and max_length >= 1 and passes in (1, 2)):
            return None
        try:
            scorer = cls._open(directory, name, "cpu", threads)
        except Unavailable as error:
            log.warning(f"the recommended engine is passed over: {error}")
            return None
        max_length = min(max_length, scorer.contract.max_length)
        return scorer.reading(max_length, scorer.contract.two_pass if passes == 2 else None)

    @classmethod
    def _open(cls, directory: Path, name: str, device: "str | torch.device | None", threads: int | None) -> "Scorer":
        if not name.startswith("pytorch"):
            check_available(name, str(device or "cpu"))
            return cls._open_converted(directory, name, threads)
        import torch

        from prefilter_common.checkpoints import load_checkpoint

        if device is None:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        check_available(name, str(device))
        if threads:
            torch.set_num_threads(threads)
        return cls.of(load_checkpoint(directory), device, name)

    @classmethod
    def _open_converted(cls, directory: Path, name: str, threads: int | None) -> "Scorer":
        folder = converted_folder(directory, name)
        make = f"python benchmark_inference.py --model {directory}"
        if not is_current(directory, name):
            raise Unavailable(f"{directory}: has no {name} made from this checkpoint; {make} makes it")
        try:
            tokenizer, contract = load_reading(directory, folder)
            return cls(open_converted(folder, name, threads), tokenizer, contract)
        except InputError:
            raise
        except Exception as error:  # the libraries have no other class in common
            why = str(error).strip().splitlines()[0]
            raise Unavailable(f"{folder}: cannot be read ({why}); delete it, and {make} makes it again") from error

    def reading(self, max_length: int | None = None, two_pass: TwoPass | None = None) -> "Scorer":
        """The same engine, reading at most ``max_length`` tokens (default: the contract's), in two passes or in one."""
        contract = replace(self.contract, max_length=max_length or self.contract.max_length, two_pass=two_pass)
        return Scorer(self.engine, self.tokenizer, contract)

    def tokenize(self, articles: Sequence[Article]) -> list[Encoding]:
        """Token ids of each article, cut at the contract's ``max_length``, not padded."""
        return [self.tokenizer.cut(ids, self.contract.max_length) for ids in self.tokenizer.encode(articles)]

    def score(self, articles: Sequence[Article], batch_size: int = 32) -> np.ndarray:
        """P(commerce) of each article, in the order given: (n,) float64.

        Batches are made of articles of like length, so that hardly any arithmetic is spent on padding; of articles
        with the same text one is scored.
        """
        return self._score(articles, lambda encodings: self._log_odds(encodings, batch_size))

    def score_together(self, articles: Sequence[Article], batch_size: int = 32) -> np.ndarray:
        """``score``, its batches shared out among the processes of a torchrun or accelerate job.

        Every process has to call it with the same articles and gets all their scores. The batches are those of
        ``score``, so the scores are the same to the bit.
        """
        from accelerate import PartialState
        from accelerate.utils import reduce

        state = PartialState(cpu=not (isinstance(self.engine, TorchEngine) and self.engine.device.type == "cuda"))

        def log_odds(encodings: list[Encoding]) -> np.ndarray:
            import torch

            own = self._log_odds(encodings, batch_size, state.process_index, state.num_processes)
            if state.num_processes == 1:
                return own
            # Each process leaves the others' articles at zero.
            return reduce(torch.from_numpy(own).to(state.device), "sum").cpu().numpy()

        return self._score(articles, log_odds)

    def score_encodings(self, encodings: Sequence[Encoding], batch_size: int = 32) -> np.ndarray:
        """P(commerce) of what ``tokenize`` returned: (n,) float64."""
        return self._probabilities(encodings, lambda chosen: self._log_odds(chosen, batch_size))

    def is_commerce(self, article: Article, threshold: str = "default") -> bool:
        """Whether the article's score reaches the named operating point of the contract.

        Raises InputError for one that the model does not have (``threshold``).
        """
        least = self.threshold(threshold)
        return bool(self.score([article])[0] >= least)

    def threshold(self, name: str = "default") -> float:
        """The least P(commerce) that is called commerce at the named operating point of the contract.

        Every model has ``default``; evaluation adds ``best_f1`` and, where validation supports it, ``high_precision``.
        Raises InputError for one that the model does not have.
        """
        thresholds = self.contract.thresholds
        if name not in thresholds:
            raise InputError(f"no operating point {name!r}; this model has {', '.join(thresholds)}")
        return thresholds[name]

    def _score(self, articles: Sequence[Article], log_odds: Callable[[list[Encoding]], np.ndarray]) -> np.ndarray:
        scores = np.empty(len(articles))
        for first in range(0, len(articles), CHUNK):
            encodings = self.tokenize(articles[first : first + CHUNK])
            index = {}  # of the first article with this text
            same = [index.setdefault(tuple(ids), len(index)) for ids in encodings]
            scores[first : first + CHUNK] = self._probabilities([list(ids) for ids in index], log_odds)[same]
        return scores

    def _probabilities(
        self, encodings: Sequence[Encoding], log_odds: Callable[[list[Encoding]], np.ndarray]
    ) -> np.ndarray:
        two_pass, temperature = self.contract.two_pass, self.contract.temperature
        if two_pass is None:
            return sigmoid(log_odds(encodings) / temperature)
        cut = np.array([len(ids) > two_pass.max_length for ids in encodings])
        first = log_odds([self.tokenizer.cut(ids, two_pass.max_length) for ids in encodings])
        scores = sigmoid(first / np.where(cut, two_pass.temperature, temperature))
        unsure = np.flatnonzero(cut & (two_pass.low < scores) & (scores < two_pass.high))
        if len(unsure):
            scores[unsure] = sigmoid(log_odds([encodings[i] for i in unsure]) / temperature)
        return scores

    def _log_odds(self, encodings: Sequence[Encoding], batch_size: int, index: int = 0, count: int = 1) -> np.ndarray:
        """(n,) log-odds of every ``count``-th batch, beginning with batch ``index``; zeros for the other articles."""
        log_odds = np.zeros(len(encodings))
        by_length = sorted(range(len(encodings)), key=lambda i: len(encodings[i]))
        for start in range(index * batch_size, len(by_length), count * batch_size):
            batch = by_length[start : start + batch_size]
            log_odds[batch] = self.engine(*self.tokenizer.pad([encodings[i] for i in batch]))
        return log_odds


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities, without overflow."""
    return np.exp(-np.logaddexp(0, -log_odds))


def time_single_articles(scorer: Scorer, articles: Sequence[Article], warmup: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to tokenise and seconds to score each article on its own, as a pipeline does that scores on arrival.

    Returns:
        Two (n,) arrays, tokenising and forward passes. ``warmup`` articles, the longest ones, which make
        the libraries allocate all they will need, are scored before and not counted.
    """
    by_length = sorted(articles, key=lambda article: len(article.title) + len(article.content))
    for article in by_length[max(0, len(by_length) - warmup) :]:
        scorer.score([article])
    tokenize, forward = [], []
    for article in articles:
        start = time.perf_counter()
        encodings = scorer.tokenize([article])
        tokenized = time.perf_counter()
        scorer.score_encodings(encodings)  # its result is on the host, so a GPU has finished
        tokenize.append(tokenized - start)
        forward.append(time.perf_counter() - tokenized)
    return np.array(tokenize), np.array(forward)


if __name__ == "__main__":
    from prefilter_common.streaming import main

    sys.exit(exit_code(main))
