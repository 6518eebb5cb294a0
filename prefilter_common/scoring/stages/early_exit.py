"""Early exits: what an encoder's lower layers say of an article, before the upper ones are run.

Each is a logistic regression on the mean of the states after some of the layers. Others train such exits together with
the model (DeeBERT, Xin et al. 2020, https://arxiv.org/abs/2004.12993); these leave its weights and scores as they are,
and ``benchmark.stages.early_exit`` fits them to its own scores.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefilter_common.models.contract import LAYERS, Stage
from prefilter_common.models.directory import EARLY_EXITS_FILE
from prefilter_common.scoring.stages.fitted import read_fitted


@dataclass(frozen=True)
class EarlyExit:
    """``weights`` (width,) float32 on the mean of an article's states, and ``bias``."""

    weights: np.ndarray
    bias: float

    def __call__(self, states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Log-odds of commerce at temperature 1, (n,) float64, from (n, t, width) states and their (n, t) mask."""
        # Not a matrix product: NumPy's own threads would compete with the engine's.
        of_tokens = np.einsum("ntw,w->nt", states, self.weights)
        return (of_tokens * attention_mask).sum(1) / attention_mask.sum(1) + self.bias


def exits_content(exits: Mapping[int, EarlyExit]) -> bytes:
    """What ``early_exits.npz`` contains, by the layers run before."""
    file = io.BytesIO()
    layers = sorted(exits)
    weights, biases = (np.array([getattr(exits[n], name) for n in layers]) for name in ("weights", "bias"))
    np.savez(file, layers=np.array(layers), weights=weights.astype(np.float32), biases=biases.astype(np.float64))
    return file.getvalue()


def read_exits(directory: Path, stages: Iterable[Stage]) -> dict[int, EarlyExit]:
    """Those of a model directory, by the layers run before; none where no stage needs them or, with a warning, where
    the file is not the one that the limits were chosen for.
    """
    expected = next((stage.sha256 for stage in stages if stage.reader == LAYERS), None)
    return read_fitted(directory / EARLY_EXITS_FILE, expected, "the early exits are", _of_arrays) or {}


def _of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[int, EarlyExit]:
    layers, weights, biases = (arrays[key] for key in ("layers", "weights", "biases"))
    if weights.ndim != 2 or not layers.shape == biases.shape == weights.shape[:1]:
        raise ValueError("made by another version")
    return {int(n): EarlyExit(own, float(bias)) for n, own, bias in zip(layers, weights, biases, strict=True)}
