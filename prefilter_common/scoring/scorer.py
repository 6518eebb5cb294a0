"""``Scorer``: articles in, P(commerce) out, with any model directory and engine."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.models.base_models import one_line
from prefilter_common.models.contract import Contract, TwoPass
from prefilter_common.models.directory import read_recommendation
from prefilter_common.scoring.conversion import is_current, load_converted
from prefilter_common.scoring.engines import (
    REFERENCE,
    Engine,
    EngineName,
    TorchEngine,
    Unavailable,
    check_available,
    open_converted,
)
from prefilter_common.scoring.tokenization import ArticleTokenizer

if TYPE_CHECKING:
    import torch

    from prefilter_common.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

# Articles tokenised at once: enough to find some of similar length, few enough to keep memory constant.
CHUNK = 1024

Encoding = list[int]


class Scorer:
    """Scores articles with one classifier: tokenise, forward pass, probability. Safe to share between threads.

    >>> scorer = Scorer.load("models/multilingual-e5-small")
    >>> scorer.score([Article(title="Half price today", content="Order now ...")])
    array([0.98])

    Where the contract has ``two_pass``, a short first read decides, and only articles whose score is then uncertain are
    read in full.
    """

    def __init__(self, engine: Engine, tokenizer: ArticleTokenizer, contract: Contract, name: str = "the model"):
        self.name = name
        self.engine = engine
        self.tokenizer = tokenizer
        self.contract = contract

    @classmethod
    def of(cls, checkpoint: "Checkpoint", device: "str | torch.device", engine: EngineName = REFERENCE) -> "Scorer":
        """A checkpoint that is in memory, with PyTorch."""
        model = TorchEngine(checkpoint.model, device, engine)
        return cls(model, ArticleTokenizer.of(checkpoint.tokenizer), checkpoint.contract)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: "str | torch.device | None" = None,
        engine: str | EngineName | None = None,
        threads: int | None = None,
    ) -> "Scorer":
        """Load a model directory. A log line says with which engine.

        Args:
            device: for PyTorch; by default CUDA where there is one, else the CPU.
            engine: one of ``engines.ENGINES``, to read every article in full. By default the configuration that the
                benchmark recommends where it is available, else PyTorch.
            threads: for the arithmetic; by default one per core.

        Raises:
            InputError: not a model, a damaged one, or ``engine`` is not available.
        """
        directory = Path(directory)
        scorer = None
        if engine is None and device is None:
            scorer = cls._recommended(directory, threads)
        scorer = scorer or cls._open(directory, EngineName.parse(engine or REFERENCE), device, threads).reading()
        scorer.name = str(directory)
        passes = "two passes" if scorer.contract.two_pass else "one pass"
        log.info(f"{directory}: {scorer.engine.name}, {passes}, at most {scorer.contract.max_length} tokens")
        return scorer

    @classmethod
    def _recommended(cls, directory: Path, threads: int | None) -> "Scorer | None":
        """What the benchmark recommends; None where it has not run, or with a warning where that is unavailable."""
        found = read_recommendation(directory)
        if found is None:
            return None
        name, max_length, passes = found.get("engine"), found.get("max_length"), found.get("passes")
        if not (isinstance(name, str) and type(max_length) is int and max_length >= 1 and passes in (1, 2)):
            return None  # not benchmarked yet, or by an earlier version of the benchmark
        try:
            scorer = cls._open(directory, EngineName.parse(name), "cpu", threads)
        except Unavailable as error:
            log.warning(f"the recommended engine is skipped: {error}")
            return None
        max_length = min(max_length, scorer.contract.max_length)
        return scorer.reading(max_length, scorer.contract.two_pass if passes == 2 else None)

    @classmethod
    def _open(
        cls, directory: Path, name: EngineName, device: "str | torch.device | None", threads: int | None
    ) -> "Scorer":
        folder = name.folder(directory)
        if folder is not None:
            check_available(name, str(device or "cpu"))
            return cls._open_converted(folder, name, threads)
        import torch

        from prefilter_common.models.checkpoints import load_checkpoint

        if device is None:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        check_available(name, str(device))
        if threads:
            torch.set_num_threads(threads)
        return cls.of(load_checkpoint(directory), device, name)

    @classmethod
    def _open_converted(cls, folder: Path, name: EngineName, threads: int | None) -> "Scorer":
        make = f"python benchmark_inference.py --model {folder.parent}"
        if not is_current(folder):
            raise Unavailable(folder.parent, f"has no intact {name} made from this checkpoint; {make} makes it")
        try:
            return cls(open_converted(folder, name, threads), *load_converted(folder))
        except InputError:
            raise
        except Exception as error:  # the libraries' errors share no other class
            raise Unavailable(
                folder, f"cannot be read ({one_line(error)}); delete it, and {make} makes it again"
            ) from error

    def reading(self, max_length: int | None = None, two_pass: TwoPass | None = None) -> "Scorer":
        """The same engine, reading at most ``max_length`` tokens (default: the contract's), in one pass or two."""
        contract = replace(self.contract, max_length=max_length or self.contract.max_length, two_pass=two_pass)
        return Scorer(self.engine, self.tokenizer, contract, self.name)

    def tokenize(self, articles: Sequence[Article]) -> list[Encoding]:
        """Token ids of each article, cut at the contract's ``max_length``, not padded."""
        return self.tokenizer.encode(articles, self.contract.max_length)

    def score(self, articles: Sequence[Article], batch_size: int = 32) -> np.ndarray:
        """P(commerce) of each article, in the order given: (n,) float64.

        A batch contains articles of similar length, so that little arithmetic is spent on padding; identical texts are
        scored once.
        """
        scores = np.empty(len(articles))
        for first in range(0, len(articles), CHUNK):
            encodings = self.tokenize(articles[first : first + CHUNK])
            index: dict[tuple[int, ...], int] = {}  # of the first article with this text
            same = [index.setdefault(tuple(ids), len(index)) for ids in encodings]
            scores[first : first + CHUNK] = self.score_encodings([list(ids) for ids in index], batch_size)[same]
        return scores

    def score_encodings(self, encodings: Sequence[Encoding], batch_size: int = 32) -> np.ndarray:
        """P(commerce) of what ``tokenize`` returned: (n,) float64."""
        two_pass, temperature = self.contract.two_pass, self.contract.temperature
        if two_pass is None:
            return sigmoid(self._log_odds(encodings, batch_size) / temperature)
        cut = np.array([len(ids) > two_pass.max_length for ids in encodings])
        first = self._log_odds([self.tokenizer.cut(ids, two_pass.max_length) for ids in encodings], batch_size)
        scores = sigmoid(first / np.where(cut, two_pass.temperature, temperature))
        uncertain = np.flatnonzero(cut & (two_pass.low < scores) & (scores < two_pass.high))
        if len(uncertain):
            scores[uncertain] = sigmoid(
                self._log_odds([encodings[i] for i in uncertain.tolist()], batch_size) / temperature
            )
        return scores

    def is_commerce(self, article: Article, threshold: str = "default") -> bool:
        """Whether the article's score reaches the named operating point of the contract.

        Raises InputError for one that the model does not have (``threshold``).
        """
        return bool(self.threshold(threshold) <= self.score([article])[0])

    def threshold(self, name: str = "default") -> float:
        """The lowest P(commerce) that counts as commerce at the named operating point of the contract.

        Every model has ``default``; evaluation adds ``best_f1`` and, where the validation articles support it,
        ``high_precision``. Raises InputError for one that the model does not have.
        """
        thresholds = self.contract.thresholds
        if name not in thresholds:
            raise InputError(f"no operating point {name!r}; this model has {', '.join(thresholds)}")
        return thresholds[name]

    def _log_odds(self, encodings: Sequence[Encoding], batch_size: int) -> np.ndarray:
        log_odds = np.empty(len(encodings))
        for batch, padded in self.tokenizer.batches(encodings, batch_size):
            log_odds[batch] = self.engine(*padded)
        # Not -inf: among several processes it stands for the articles of the others.
        if not (log_odds < np.inf).all():
            raise InputError(f"{self.name}: yields scores that are not numbers with {self.engine.name}; train it again")
        return log_odds


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities, without overflow."""
    return np.exp(-np.logaddexp(0, -log_odds))
