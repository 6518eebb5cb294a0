"""Do the scores mean what they say? Temperature, Brier score, calibration error."""

from typing import TypedDict

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss

from prefilter_common.statistics.metrics import as_interval, wilson

N_BINS = 10
# Beyond these a temperature says more about a tiny validation set than about the model.
LOWEST, HIGHEST = 0.05, 20.0


class Bin(TypedDict):
    """The articles whose score lies in [``low``, ``high``): mean score, and share of commerce with its interval.

    The last bin includes 1.0.
    """

    low: float
    high: float
    n: int
    mean_score: float
    commerce_share: float
    interval: list[float]


class CalibrationSummary(TypedDict):
    """Brier score and calibration error with and without the temperature."""

    temperature: float
    brier: float
    brier_before: float
    ece: float
    ece_before: float
    bins: list[Bin]
    bins_before: list[Bin]


def at_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """The (n,) scores after dividing their log-odds by ``temperature``."""
    return expit(_logits(scores) / temperature)


def fit_temperature(labels: np.ndarray, scores: np.ndarray) -> float:
    """The temperature at which the scores fit the labels best by log loss (Guo et al. 2017).

    The labels are softened as Platt (1999) proposed, (k + 1) / (k + 2) for the k commerce articles and 1 / (k + 2)
    for the k of journalism: a model that gets a whole small validation set right would otherwise become
    infinitely confident.

    Args:
        labels: (n,) 0 or 1, both present; of articles that the weights were not trained on.
        scores: (n,) P(commerce) at temperature 1.
    """
    logits = _logits(scores)
    n_commerce = labels.sum()
    targets = np.where(labels == 1, (n_commerce + 1) / (n_commerce + 2), 1 / (len(labels) - n_commerce + 2))

    def log_loss(log_temperature: float) -> float:
        z = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, z) - targets * z))

    found = minimize_scalar(log_loss, bounds=np.log([LOWEST, HIGHEST]), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def reliability(labels: np.ndarray, scores: np.ndarray) -> list[Bin]:
    """Bins of equal width over the score, empty ones left out."""
    index = np.minimum((scores * N_BINS).astype(int), N_BINS - 1)
    bins: list[Bin] = []
    for i in np.unique(index):
        inside = index == i
        n, n_commerce = int(inside.sum()), int(labels[inside].sum())
        bins.append({
            "low": i / N_BINS,
            "high": (i + 1) / N_BINS,
            "n": n,
            "mean_score": float(scores[inside].mean()),
            "commerce_share": n_commerce / n,
            "interval": as_interval(*wilson(n_commerce, n)),
        })  # fmt: skip
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error (Naeini et al. 2015) of P(commerce): mean gap between score and truth."""
    n = sum(b["n"] for b in bins)
    return float(sum(b["n"] / n * abs(b["mean_score"] - b["commerce_share"]) for b in bins))


def calibration_summary(labels: np.ndarray, scores: np.ndarray, temperature: float) -> CalibrationSummary:
    """Calibration with and without the ``temperature`` that the (n,) scores already have."""
    before = at_temperature(scores, 1 / temperature)
    bins, bins_before = reliability(labels, scores), reliability(labels, before)
    return {
        "temperature": temperature,
        "brier": float(brier_score_loss(labels, scores, pos_label=1)),
        "brier_before": float(brier_score_loss(labels, before, pos_label=1)),
        "ece": calibration_error(bins),
        "ece_before": calibration_error(bins_before),
        "bins": bins,
        "bins_before": bins_before,
    }


def _logits(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(scores, 1e-12, 1 - 1e-12))
