"""Which articles must be read in full? Limits on the score of a short first read, chosen on validation articles."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from scipy.special import expit, logit

from prefilter_common.models.contract import TwoPass
from prefilter_common.statistics.calibration import at_temperature, fit_temperature
from prefilter_common.statistics.metrics import f1_at

# Lengths of the first read to try, in tokens.
FIRST_LENGTHS = (48, 64, 96, 128, 192)
# How far beyond the thresholds a first score must lie to be final, in log-odds.
MARGINS = np.arange(0.25, 8.01, 0.25)
# With fewer cut articles, the first read can be neither calibrated nor judged.
MIN_CUT = 20
# A first pass that saves a smaller share of the tokens is not worth its limits.
MIN_SAVED = 0.1


class TwoPassNote(TypedDict, total=False):
    """On the validation articles: shares of articles read in full and of tokens read, or why there is no first pass."""

    read_in_full: float
    tokens: float
    reason: str


def choose_two_pass(
    labels: np.ndarray,
    full: np.ndarray,
    short: Mapping[int, np.ndarray],
    n_tokens: np.ndarray,
    thresholds: Mapping[str, float],
) -> tuple[TwoPass | None, TwoPassNote]:
    """The first length and limits that read the fewest tokens of those that do not lower F1.

    A first read is final where its score, calibrated at its own length, lies at least a margin outside all operating
    points, so no decision at any of them rests on an uncertain score. A margin qualifies only if F1 at every operating
    point is no lower than the full read's under it and under every larger one: a single margin that happens to do well
    is luck. Whether the choice holds must be judged on other articles.

    Args:
        labels: (n,) of the validation articles, which the weights were not trained on.
        full: (n,) P(commerce) of the full read, calibrated.
        short: tokens of a first read -> its (n,) P(commerce) at temperature 1.
        n_tokens: (n,) tokens of the full read.

    Returns:
        The choice, or None, and a note on it: ``read_in_full`` and ``tokens``, as shares, or ``reason``.
    """
    best: tuple[TwoPass, TwoPassNote] | None = None
    best_tokens = 1 - MIN_SAVED
    for length, first in short.items():
        cut = n_tokens > length
        if cut.sum() < MIN_CUT or len(np.unique(labels[cut])) < 2:
            continue
        temperature = round(fit_temperature(labels[cut], first[cut]), 4)
        calibrated = np.where(cut, at_temperature(first, temperature), full)
        for margin in MARGINS[::-1]:
            low = float(expit(logit(_inside(min(thresholds.values()))) - margin))
            high = float(expit(logit(_inside(max(thresholds.values()))) + margin))
            uncertain = cut & (low < calibrated) & (calibrated < high)
            scores = np.where(uncertain, full, calibrated)
            if any(f1_at(labels, scores, t) < f1_at(labels, full, t) for t in thresholds.values()):
                break
            tokens = (np.minimum(n_tokens, length).sum() + n_tokens[uncertain].sum()) / n_tokens.sum()
            if tokens < best_tokens:
                best_tokens = float(tokens)
                two_pass = TwoPass(length, temperature, round(low, 6), round(high, 6))
                best = two_pass, {"read_in_full": float(uncertain.mean()), "tokens": best_tokens}
    if best is None:
        return None, {"reason": "no limits on a first read keep F1 on the validation articles and save a tenth"}
    return best


def _inside(threshold: float) -> float:
    return min(max(threshold, 1e-6), 1 - 1e-6)
