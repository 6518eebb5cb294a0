"""The linear first stage: a logistic regression over the tokens that the model's own tokenizer has made anyway.

Its features are the different tokens of a text and the pairs of neighbours, hashed into a table of weights. One article
takes tens of microseconds, and no package but numpy. Of a language that it was not fitted on it knows nothing, so it
also tells how many of a text's tokens it knows: in such a language, hardly any text has the share that is asked for.
``benchmark.stages.first_stage`` fits it to the encoder's scores.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from prefilter_common.models.contract import LINEAR, Stage
from prefilter_common.models.directory import FIRST_STAGE_FILE
from prefilter_common.scoring.stages.fitted import read_fitted

# Large enough that few of the pairs in some thousand articles fall together: 4 MiB of memory.
TABLE_BITS = 19
# Odd 64-bit numbers without a pattern; products with them spread neighbouring token ids over the table.
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class FirstStage:
    """``weights`` and ``squares``, (2 ** TABLE_BITS,) float32 by ``hashed`` feature: what it adds to the log-odds, and
    to the square of the length by which those are divided. Rare features add more to both, unknown ones to neither.

    ``known`` (n,) bool, by token id: whether one of the fitting texts had it. The last is False, for all ids beyond.
    """

    weights: np.ndarray
    squares: np.ndarray
    known: np.ndarray
    bias: float

    def __call__(self, texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds of commerce at temperature 1, and the share of a text's tokens that is known: both (n,) float64.

        Args:
            texts: token ids of each, without special tokens.
        """
        ids, rows = flattened(texts)
        n_tokens = np.bincount(rows, minlength=len(texts))
        n_known = np.bincount(rows, self.known[np.minimum(ids, len(self.known) - 1)], minlength=len(texts))
        places, rows = hashed(ids, rows)
        total = np.bincount(rows, self.weights[places], minlength=len(texts))
        length = np.sqrt(np.bincount(rows, self.squares[places], minlength=len(texts)))
        return self.bias + total / np.maximum(length, 1), n_known / np.maximum(n_tokens, 1)

    def content(self) -> bytes:
        """What ``first_stage.npz`` contains."""
        file = io.BytesIO()
        weights, squares = self.weights.astype(np.float16), self.squares.astype(np.float16)
        np.savez_compressed(file, weights=weights, squares=squares, known=self.known, bias=np.float64(self.bias))
        return file.getvalue()


def flattened(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All token ids, one text after the other, and the text of each: both (k,) int64."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    ids = np.fromiter(chain.from_iterable(texts), np.int64, int(lengths.sum()))
    return ids, np.repeat(np.arange(len(texts)), lengths)


def hashed(ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different features of each text, as places in the table, and the text of each: both (k,) int64.

    How often a text has a feature is left out: on validation articles it did harm.
    """
    spread = (ids.astype(np.uint64) + np.uint64(1)) * _FIRST
    pairs = (spread[:-1] ^ (spread[1:] >> np.uint64(32))) * _SECOND
    neighbours = rows[:-1] == rows[1:]
    places = np.concatenate([spread, pairs[neighbours]]) >> np.uint64(64 - TABLE_BITS)
    keys = np.concatenate([rows, rows[:-1][neighbours]]) << TABLE_BITS | places.astype(np.int64)
    keys.sort()
    keys = keys[np.concatenate([keys[:1] >= 0, keys[1:] > keys[:-1]])]  # for many texts faster than np.unique
    return keys & (1 << TABLE_BITS) - 1, keys >> TABLE_BITS


def read_first_stage(directory: Path, stages: Iterable[Stage]) -> FirstStage | None:
    """The first stage of a model directory; None where it is not among the stages or, with a warning, where the file is
    not the one that the limits were chosen for.
    """
    expected = next((stage.sha256 for stage in stages if stage.reader == LINEAR), None)
    return read_fitted(directory / FIRST_STAGE_FILE, expected, "the first stage is", _of_arrays)


def _of_arrays(arrays: Mapping[str, np.ndarray]) -> FirstStage:
    weights, squares = (arrays[key].astype(np.float32) for key in ("weights", "squares"))
    known, bias = arrays["known"], float(arrays["bias"])
    tables = weights.shape == squares.shape == (1 << TABLE_BITS,)
    if not tables or known.dtype != bool or known.ndim != 1 or not len(known):
        raise ValueError("made by another version")
    return FirstStage(weights, squares, known, bias)


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities, without overflow."""
    return np.exp(-np.logaddexp(0, -log_odds))
