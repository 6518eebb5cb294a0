"""Which articles need to be read in full? Limits on the score of a short first read, chosen on validation articles."""

from collections.abc import Mapping

import numpy as np
from scipy.special import expit, logit

from prefilter_common.calibration import at_temperature, fit_temperature
from prefilter_common.contract import TwoPass
from prefilter_common.metrics import f1_at

# Tokens of the first read that are tried.
FIRST_LENGTHS = (48, 64, 96, 128, 192)
# How far beyond the thresholds a first score must be to stand, in log-odds.
MARGINS = np.arange(0.25, 8.01, 0.25)
# Fewer articles that are cut can neither calibrate the first read nor show what it gets wrong.
MIN_CUT = 20
# A first pass that saves less is not worth its second set of limits.
MIN_SAVED = 0.1


def choose_two_pass(
    labels: np.ndarray,
    full: np.ndarray,
    short: Mapping[int, np.ndarray],
    n_tokens: np.ndarray,
    thresholds: Mapping[str, float],
) -> tuple[TwoPass | None, dict]:
    """The first length and limits that read the fewest tokens of those under which F1 is not inferior.

    A first read stands where its score, calibrated at its own length, lies at least a margin outside all operating
    points; so no decision at any of them rests on an unsure score. A margin counts only where F1 is not lower than the
    full read's at any operating point under it and under every larger one: a single margin that happens to do well is
    luck. Whether the choice holds is for other articles to say.

    Args:
        labels: (n,) of the validation articles, which the weights were not fitted on.
        full: (n,) P(commerce) of the full read, calibrated.
        short: tokens of a first read -> (n,) P(commerce) of it at temperature 1.
        n_tokens: (n,) tokens of the full read.

    Returns:
        The choice, or None, and what is to be said of it: ``read_in_full`` and ``tokens``, as shares, or ``reason``.
    """
    best, best_tokens = None, 1 - MIN_SAVED
    for length, first in short.items():
        cut = n_tokens > length
        if cut.sum() < MIN_CUT or len(np.unique(labels[cut])) < 2:
            continue
        temperature = round(fit_temperature(labels[cut], first[cut]), 4)
        calibrated = np.where(cut, at_temperature(first, temperature), full)
        for margin in MARGINS[::-1]:
            low = float(expit(logit(_inside(min(thresholds.values()))) - margin))
            high = float(expit(logit(_inside(max(thresholds.values()))) + margin))
            unsure = cut & (low < calibrated) & (calibrated < high)
            scores = np.where(unsure, full, calibrated)
            if any(f1_at(labels, scores, t) < f1_at(labels, full, t) for t in thresholds.values()):
                break
            tokens = (np.minimum(n_tokens, length).sum() + n_tokens[unsure].sum()) / n_tokens.sum()
            if tokens < best_tokens:
                best_tokens = float(tokens)
                two_pass = TwoPass(length, temperature, round(low, 6), round(high, 6))
                best = two_pass, {"read_in_full": float(unsure.mean()), "tokens": best_tokens}
    if best is None:
        return None, {"reason": "no limits on a first read keep F1 on the validation articles and save a tenth"}
    return best


def _inside(threshold: float) -> float:
    return min(max(threshold, 1e-6), 1 - 1e-6)
