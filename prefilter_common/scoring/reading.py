"""Token ids in, P(commerce) out: the stages one after the other, and the full read of what they leave."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefilter_common.errors import InputError
from prefilter_common.models.contract import LAYERS, LINEAR, Contract, Stage
from prefilter_common.scoring.engines.interface import Engine
from prefilter_common.scoring.stages.early_exit import EarlyExit
from prefilter_common.scoring.stages.first_stage import FirstStage, sigmoid
from prefilter_common.scoring.tokenization import ArticleTokenizer


@dataclass(frozen=True)
class Reader:
    """An engine, and what the stages of its contract need."""

    name: str
    engine: Engine
    tokenizer: ArticleTokenizer
    contract: Contract
    first_stage: FirstStage | None
    exits: Mapping[int, EarlyExit]

    def read(self, encodings: Sequence[list[int]], batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See ``Scorer.read``."""
        exits = [stage for stage in self.contract.stages if stage.reader == LAYERS]
        before = self.contract.stages[: len(self.contract.stages) - len(exits)]
        scores, decided_by = np.empty(len(encodings)), np.empty(len(encodings), dtype=np.int64)
        seconds, left = np.zeros(len(self.contract.stages) + 1), np.arange(len(encodings))
        for number, stage in enumerate(before):
            if not len(left):
                break
            started = time.perf_counter()
            found, final = self._at(stage, [encodings[i] for i in left.tolist()], batch_size)
            scores[left[final]], decided_by[left[final]] = found[final], number
            left = left[~final]
            seconds[number] = time.perf_counter() - started
        if len(left):
            texts = [encodings[i] for i in left.tolist()]
            scores[left], by, seconds[len(before) :] = self._in_full(texts, exits, batch_size)
            decided_by[left] = len(before) + by
        return scores, decided_by, seconds

    def _at(self, stage: Stage, texts: Sequence[list[int]], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """P(commerce) from a stage before the full read, and whether that is final: both (n,)."""
        if stage.reader == LINEAR:
            assert self.first_stage is not None and stage.coverage is not None
            log_odds, coverage = self.first_stage([self.tokenizer.own(ids) for ids in texts])
            scores = sigmoid(log_odds / stage.temperature)
            return scores, (coverage >= stage.coverage) & sure(scores, stage)
        assert stage.max_length is not None
        cut = np.array([len(ids) > stage.max_length for ids in texts])
        log_odds = np.empty(len(texts))
        for batch, padded in self._batches([self.tokenizer.cut(ids, stage.max_length) for ids in texts], batch_size):
            log_odds[batch] = self._finite(self.engine(*padded))
        scores = sigmoid(log_odds / np.where(cut, stage.temperature, self.contract.temperature))
        return scores, ~cut | sure(scores, stage)

    def _in_full(
        self, texts: Sequence[list[int]], exits: Sequence[Stage], batch_size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(commerce), and the number of the exit that gave it, or of exits: both (n,); and the seconds up to each exit
        from the one before and, last, for the rest: (exits + 1,).
        """
        scores, by, seconds = np.empty(len(texts)), np.full(len(texts), len(exits)), np.zeros(len(exits) + 1)
        after = {stage.layers: (number, stage) for number, stage in enumerate(exits)}
        places = self.engine.places if exits else ()
        for batch, (inputs, attention_mask) in self._batches(texts, batch_size):
            rows, started = np.array(batch), time.perf_counter()
            for part, layers in enumerate(places):
                inputs = self.engine.part(part, inputs, attention_mask)
                if layers not in after:
                    continue
                number, stage = after[layers]
                own = inputs[: len(rows)], attention_mask[: len(rows)]
                found = sigmoid(self._finite(self.exits[layers](*own)) / stage.temperature)
                final = sure(found, stage)
                scores[rows[final]], by[rows[final]] = found[final], number
                seconds[number] += time.perf_counter() - started
                started = time.perf_counter()
                if final.all():
                    break
                if final.any():
                    left = np.flatnonzero(~final)
                    rows, left = rows[left], self._padded(left, len(inputs))
                    inputs, attention_mask = inputs[left], attention_mask[left]
            else:
                rest = (inputs, attention_mask)
                log_odds = self.engine.part(len(places), *rest)[: len(rows)] if places else self.engine(*rest)
                scores[rows] = sigmoid(self._finite(log_odds) / self.contract.temperature)
                seconds[-1] += time.perf_counter() - started
        return scores, by, seconds

    def _batches(
        self, texts: Sequence[list[int]], batch_size: int
    ) -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray]]]:
        return self.tokenizer.batches(texts, batch_size, self.engine.width_step, self.contract.max_length)

    def _padded(self, left: np.ndarray, size: int) -> np.ndarray:
        """The places of the articles that are left of a batch of ``size``.

        For an engine that keeps kernels for each shape the last is repeated up to a multiple of four.
        """
        more = min(-len(left) % 4, size - len(left)) if self.engine.width_step > 1 and len(left) > 2 else 0
        return np.pad(left, (0, more), mode="edge")

    def _finite(self, log_odds: np.ndarray) -> np.ndarray:
        # Not -inf: among several processes it stands for the articles of the others.
        if not (log_odds < np.inf).all():
            raise InputError(f"{self.name}: yields scores that are not numbers with {self.engine.name}; train it again")
        return log_odds


def sure(scores: np.ndarray, stage: Stage) -> np.ndarray:
    """Which scores of a stage are outside its limits: (n,) bool."""
    return outside(scores, stage.low, stage.high)


def outside(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which scores are outside two limits: (n,) bool; none is beyond 0 or 1, which stand for no limit."""
    return (scores <= low) & (low > 0) | (scores >= high) & (high < 1)
