"""``Scorer``: articles in, P(commerce) out, with any model directory and engine."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.models.base_models import one_line
from prefilter_common.models.contract import ENCODER, LINEAR, MIN_LENGTH, Contract, Stage
from prefilter_common.models.directory import is_current, is_judged, read_recommendation, recommended_stages
from prefilter_common.processes import own_device
from prefilter_common.scoring.engines.conversion import load_converted
from prefilter_common.scoring.engines.converted import open_converted
from prefilter_common.scoring.engines.interface import REFERENCE, Engine, EngineName, Unavailable, check_available
from prefilter_common.scoring.reading import Reader
from prefilter_common.scoring.stages.early_exit import EarlyExit, read_exits
from prefilter_common.scoring.stages.first_stage import FirstStage, read_first_stage
from prefilter_common.scoring.tokenization import ArticleTokenizer

if TYPE_CHECKING:
    import torch

    from prefilter_common.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

# Articles tokenised at once: enough to find some of similar length, few enough to keep memory constant.
CHUNK = 1024
OPENVINO_BF16, OPENVINO_FP32 = EngineName("openvino", "bf16"), EngineName("openvino", "fp32")

Encoding = list[int]


class Scorer:
    """Scores articles with one classifier: tokenise, forward pass, probability. Safe to share between threads.

    >>> scorer = Scorer.load("models/multilingual-e5-small")
    >>> scorer.score([Article(title="Half price today", content="Order now ...")])
    array([0.98])

    Where the contract has ``stages``, each decides what it is sure of, and only the rest is read in full. Articles in
    characters that the model does not know are for the ``full`` model; without one they score 0, and are let through.
    """

    first_stage: FirstStage | None = None  # a linear stage needs it
    exits: Mapping[int, EarlyExit] = MappingProxyType({})  # by layers; early exits need them
    full: "Scorer | None" = None

    def __init__(self, engine: Engine, tokenizer: ArticleTokenizer, contract: Contract, name: str = "the model"):
        self.name = name
        self.engine = engine
        self.tokenizer = tokenizer
        self.contract = contract

    @classmethod
    def of(cls, checkpoint: "Checkpoint", device: "str | torch.device", engine: EngineName = REFERENCE) -> "Scorer":
        """A checkpoint that is in memory, with PyTorch."""
        from prefilter_common.scoring.engines.pytorch import TorchEngine

        model = TorchEngine(checkpoint.model, device, engine)
        return cls(model, ArticleTokenizer.of(checkpoint.tokenizer), checkpoint.contract)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: "str | torch.device | None" = None,
        engine: str | EngineName | None = None,
        threads: int | None = None,
        full: str | Path | None = None,
    ) -> "Scorer":
        """Load a model directory. Log lines say with which engine, and what becomes of articles that it cannot read.

        Args:
            device: for PyTorch; by default CUDA where there is one, else the CPU.
            engine: one of ``engines.interface.ENGINES``, to read every article in full. By default the configuration
                that the benchmark recommends where it is available, else PyTorch.
            threads: for the arithmetic; by default one per core.
            full: the directory of the model for articles that a model with fewer tokens cannot read; not loaded for one
                with its whole vocabulary.

        Raises:
            InputError: not a model, a damaged one, or ``engine`` is not available.
        """
        directory = Path(directory)
        scorer = cls._recommended(directory, threads) if engine is None and device is None else None
        scorer = scorer or cls._open(directory, EngineName.parse(engine or REFERENCE), device, threads).reading()
        scorer.name = str(directory)
        reads = ", then ".join([*scorer.contract.stage_names, f"at most {scorer.contract.max_length} tokens"])
        log.info(f"{directory}: {scorer.engine.name}, {reads}")
        if (bound := scorer.contract.max_unknown) is None:
            if full is not None:
                log.info(f"{directory}: has every token of its base model, and needs no {full}")
        else:
            scorer.full = None if full is None else cls.load(full, device, threads=threads)
            left = f"left to {scorer.full.name}" if scorer.full else "let through with a score of 0"
            log.info(f"{directory}: articles with over {100 * bound:g} % unknown characters are {left}")
        return scorer

    @classmethod
    def _recommended(cls, directory: Path, threads: int | None) -> "Scorer | None":
        """What the benchmark recommends; None where it has not run, or with a warning where that is unavailable."""
        found = read_recommendation(directory)
        if found is None:
            return None
        name, max_length = found.get("engine"), found.get("max_length")
        if not (isinstance(name, str) and type(max_length) is int and max_length >= MIN_LENGTH):
            return None  # not benchmarked yet, or by an earlier version of the benchmark
        try:
            scorer = cls._open_here(directory, EngineName.parse(name), threads)
            folder = scorer.engine.name.folder(directory)
            if folder and not is_judged(folder, found):
                judge = f"python benchmark_inference.py --model {directory} judges it"
                raise Unavailable(folder, f"was made again since it was recommended; {judge}")
        except Unavailable as error:
            if not any(directory.glob("*config.json")):  # a bundle of this engine, with no checkpoint to fall back on
                raise
            log.warning(f"the recommended engine is skipped: {error}")
            return None
        stages = recommended_stages(found, scorer.contract)
        if stages is None:
            return None
        points = scorer.contract.thresholds.values()
        if not all(stage.encloses(*points) for stage in stages):
            log.warning(f"{directory}: its stages were chosen for other operating points, and are skipped")
            stages = ()
        return scorer.reading(min(max_length, scorer.contract.max_length), scorer.with_files_of(directory, stages))

    @classmethod
    def _open_here(cls, directory: Path, name: EngineName, threads: int | None) -> "Scorer":
        """``name`` on the CPU; OpenVINO's bf16 as fp32, with a warning, where only that is available: they share a
        folder.
        """
        try:
            return cls._open(directory, name, "cpu", threads)
        except Unavailable as error:
            if name != OPENVINO_BF16:
                raise
            scorer = cls._open(directory, OPENVINO_FP32, "cpu", threads)
            log.warning(f"{error}; its model is run as {OPENVINO_FP32}")
            return scorer

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

        device = own_device() if device is None else device
        check_available(name, str(device))
        if threads:
            torch.set_num_threads(threads)
        return cls.of(load_checkpoint(directory), device, name)

    @classmethod
    def _open_converted(cls, folder: Path, name: EngineName, threads: int | None) -> "Scorer":
        make = f"python benchmark_inference.py --model {folder.parent} makes it"
        if not any(folder.parent.glob("*config.json")):  # a bundle of one engine
            make = "unpack its bundle again" if folder.is_dir() else "its bundle has another engine"
        if not is_current(folder):
            raise Unavailable(folder.parent, f"has no intact {name} made from this checkpoint; {make}")
        try:
            return cls(open_converted(folder, name, threads), *load_converted(folder))
        except InputError:
            raise
        except Exception as error:  # the libraries' errors share no other class
            raise Unavailable(folder, f"cannot be read ({one_line(error)}); delete it, and {make}") from error

    def with_files_of(self, directory: Path, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Load what these stages need from a model directory. Returns those that this engine can then run."""
        self.first_stage, self.exits = read_first_stage(directory, stages), read_exits(directory, stages)
        there = self.exits.keys() & set(self.engine.places)
        can = {LINEAR: self.first_stage is not None, ENCODER: True}
        return tuple(stage for stage in stages if can.get(stage.reader, stage.layers in there))

    def reading(self, max_length: int | None = None, stages: Sequence[Stage] = ()) -> "Scorer":
        """The same engine, reading at most ``max_length`` tokens (default: the contract's), after these stages."""
        contract = replace(self.contract, max_length=max_length or self.contract.max_length, stages=tuple(stages))
        scorer = Scorer(self.engine, self.tokenizer, contract, self.name)
        scorer.first_stage, scorer.exits, scorer.full = self.first_stage, self.exits, self.full
        return scorer

    def tokenize(self, articles: Sequence[Article]) -> list[Encoding]:
        """Token ids of each article, cut at the contract's ``max_length``, not padded."""
        return self.tokenizer.encode(articles, self.contract.max_length)

    def score(self, articles: Sequence[Article], batch_size: int = 32) -> np.ndarray:
        """P(commerce) of each article, in the order given: (n,) float64.

        A batch contains articles of similar length, so that little arithmetic is spent on padding; identical texts are
        scored once.
        """
        return self.decide(articles, batch_size)[0]

    def decide(self, articles: Sequence[Article], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """``score``, and what decided: (n,) int64, a stage, n_stages for a full read, one more if unreadable."""
        scores, decided_by = np.zeros(len(articles)), np.full(len(articles), len(self.contract.stages) + 1)
        unknown = self.tokenizer.unknown(articles, self.contract.max_length, self.contract.max_unknown)
        readable = np.flatnonzero(~unknown)
        for first in range(0, len(readable), CHUNK):
            part = readable[first : first + CHUNK]
            encodings = self.tokenize([articles[i] for i in part.tolist()])
            index: dict[tuple[int, ...], int] = {}  # of the first article with this text
            same = [index.setdefault(tuple(ids), len(index)) for ids in encodings]
            found, by, _ = self.read([list(ids) for ids in index], batch_size)
            scores[part], decided_by[part] = found[same], by[same]
        if self.full is not None:
            scores[unknown] = self.full.score([articles[i] for i in np.flatnonzero(unknown).tolist()], batch_size)
        return scores, decided_by

    def read(self, encodings: Sequence[Encoding], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``decide`` for what ``tokenize`` returned, without the ``full`` model; and the seconds in each stage and the
        full read, 0 where no article was left: (stages + 1,).
        """
        reader = Reader(self.name, self.engine, self.tokenizer, self.contract, self.first_stage, self.exits)
        return reader.read(encodings, batch_size)

    def classify(
        self, articles: Sequence[Article], threshold: str = "default", batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray]:
        """``score``, and whether it reaches the operating point of the model that gave it. Raises InputError for one
        that a model does not have.
        """
        own = self.contract.threshold(threshold)
        elsewhere = self.full.contract.threshold(threshold) if self.full else np.inf
        scores, decided_by = self.decide(articles, batch_size)
        return scores, scores >= np.where(decided_by > len(self.contract.stages), elsewhere, own)

    def unread(self, articles: Sequence[Article]) -> np.ndarray:
        """Which articles no model reads, so that they score 0 and are let through: (n,) bool."""
        own = self.tokenizer.unknown(articles, self.contract.max_length, self.contract.max_unknown)
        return own if self.full is None else own & self.full.unread(articles)

    def is_commerce(self, article: Article, threshold: str = "default") -> bool:
        """Whether ``classify`` says so of one article."""
        return bool(self.classify([article], threshold)[1][0])
