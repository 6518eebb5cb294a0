"""The linear first stage: a logistic regression over the tokens that the model's own tokenizer has made anyway.

Its features are the different tokens of a text and the pairs of neighbours, hashed into a table of weights (feature
hashing, Weinberger et al. 2009, https://arxiv.org/abs/0902.2206). One article takes tens of microseconds, and no
package other than numpy. It also tells what share of a text's own tokens it knows, so that
texts in a script or language that it was not fitted on mostly go on. That does not keep out short texts in a language
that is close to those it was fitted on: it knows many of their tokens. ``benchmark.stages.first_stage`` fits it to the
encoder's scores.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from prefilter_common.models.contract import LINEAR, Stage
from prefilter_common.models.directory import FIRST_STAGE_FILE
from prefilter_common.scoring.stages.fitted import read_fitted

# Large enough that few of the pairs in some thousand articles fall together: 4 MiB of memory.
TABLE_BITS = 19
# 2^64 over the golden ratio (Fibonacci hashing, Knuth) and a prime of xxHash64: products with them spread neighbouring
# token ids over the table.
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class FirstStage:
    """``weights`` and ``squares``, (2 ** TABLE_BITS,) float32 by ``hashed`` feature: what it adds to the log-odds, and
    to the square of the length by which those are divided. Rare features add more to both, unknown ones to neither.

    ``known`` (n,) bool, by token id: whether one of the fitting texts had it. The last is False, for all ids beyond.
    ``counted`` (k,) bool, by token id, the last for all ids beyond, is False for those of the input format: every text
    has them, and in a short one they outweigh its own. An earlier version counted them and chose its limit with them,
    so they are counted where the file does not say.
    """

    weights: np.ndarray
    squares: np.ndarray
    known: np.ndarray
    bias: float
    counted: np.ndarray = field(default_factory=lambda: np.ones(1, dtype=bool))

    def __call__(self, texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds of commerce at temperature 1, and the share of a text's own tokens that is known: both (n,) float64.

        Args:
            texts: token ids of each, without special tokens.
        """
        ids, rows = flattened(texts)
        counted = self.counted[np.minimum(ids, len(self.counted) - 1)]
        known = counted & self.known[np.minimum(ids, len(self.known) - 1)]
        n_tokens, n_known = (np.bincount(rows, each, minlength=len(texts)) for each in (counted, known))
        places, rows = hashed(ids, rows)
        total = np.bincount(rows, self.weights[places], minlength=len(texts))
        length = np.sqrt(np.bincount(rows, self.squares[places], minlength=len(texts)))
        return self.bias + total / np.maximum(length, 1), n_known / np.maximum(n_tokens, 1)

    def content(self) -> bytes:
        """What ``first_stage.npz`` contains."""
        file = io.BytesIO()
        weights, squares = self.weights.astype(np.float16), self.squares.astype(np.float16)
        np.savez_compressed(
            file, weights=weights, squares=squares, known=self.known, counted=self.counted, bias=np.float64(self.bias)
        )
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
    counted = arrays.get("counted", np.ones(1, dtype=bool))
    by_id = all(each.dtype == bool and each.ndim == 1 and len(each) for each in (known, counted))
    if not (tables and by_id):
        raise ValueError("made by another version")
    return FirstStage(weights, squares, known, bias, counted)


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities, without overflow."""
    return np.exp(-np.logaddexp(0, -log_odds))
