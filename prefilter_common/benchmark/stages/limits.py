"""Within which limits is a stage not sure? Chosen so that hardly a decision is other than the full read's."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from scipy.special import expit, logit

from prefilter_common.models.contract import ENCODER, Stage
from prefilter_common.scoring.reading import outside
from prefilter_common.statistics.calibration import at_temperature, fit_temperature

# How far beyond the thresholds a stage's score must lie to be final, in log-odds.
MARGINS = np.arange(0.25, 8.01, 0.25)
# An upper limit that no score reaches.
UNREACHABLE = 1.0
# With fewer articles, a stage can be neither calibrated nor judged; for a short read, those that it cuts count.
ENOUGH_ARTICLES = 20
TOO_FEW = f"needs {ENOUGH_ARTICLES} validation articles with both labels to choose its limits on"
# A short read that saves a smaller share of the tokens, or another stage that decides a smaller share of the articles
# that get there, is not worth its limits.
MIN_SAVED = 0.1


class StageNote(TypedDict, total=False):
    """What a stage does on the validation articles, or the ``reason`` why there is none.

    Of a short read: the shares of articles then read in full and of all tokens read. Of a first stage or an early exit:
    the shares that it decides of whole articles and of copies cut to the length of a feed's; and of a first stage the
    texts that it was fitted on.
    """

    read_in_full: float
    tokens: float
    decided: float
    decided_cut: float
    fitted_texts: int
    reason: str


def limits_of(
    full: np.ndarray, own: np.ndarray, may: np.ndarray, thresholds: Mapping[str, float], change: float
) -> tuple[float, float]:
    """The narrowest limits outside which a stage decides as the full read does, at every operating point.

    A score is final where it lies at least a margin outside all operating points, so no decision at any of them rests
    on an uncertain score. Each side has its own margin, so that an article which the stage gets wrong moves one limit
    alone; a side on which none is wide enough decides nothing. Limits that were chosen on some texts change more on
    others, by one of n on average, which counts as well (conformal risk control, Angelopoulos et al. 2022,
    https://arxiv.org/abs/2208.02814), unless n is so small that not one could be changed.

    Args:
        full: (n,) P(commerce) of the full read.
        own: (n,) of the stage.
        may: (n,) bool, what the stage may decide.
        change: the share of the n decisions that may be other than the full read's, on each side.
    """
    lowest, highest = min(thresholds.values()), max(thresholds.values())
    lows = np.round(expit(logit(_inside(lowest)) - MARGINS), 6).tolist()
    highs = np.round(expit(logit(_inside(highest)) + MARGINS), 6).tolist()
    # What a lower limit must not reach, and an upper one.
    commerce, journalism = own[may & (full >= lowest)], own[may & (full < highest)]
    allowed = max(0, int(change * (len(full) + 1)) - 1)
    first = np.sort(np.append(commerce, np.ones(allowed + 1)))[allowed]
    last = np.sort(np.append(journalism, np.zeros(allowed + 1)))[-1 - allowed]
    low = next((limit for limit in lows if limit < first), 1 - UNREACHABLE)
    high = next((limit for limit in highs if limit > last), UNREACHABLE)
    return low, high


def changed_share(full: np.ndarray, own: np.ndarray, decided: np.ndarray, thresholds: Mapping[str, float]) -> float:
    """The share that a stage is to decide otherwise than the full read, at some operating point, of texts like the (n,)
    on which its limits were chosen: those of them, and one more for each limit.
    """
    lowest, highest = min(thresholds.values()), max(thresholds.values())
    changed = decided & np.where(own >= highest, full < highest, full >= lowest)
    return float((changed.sum() + 2) / (len(full) + 1))


def choose_short_read(
    labels: np.ndarray,
    full: np.ndarray,
    short: Mapping[int, np.ndarray],
    n_tokens: np.ndarray,
    thresholds: Mapping[str, float],
    change: float,
) -> tuple[Stage | None, StageNote]:
    """The length and limits that read the fewest tokens within limits as ``limits_of`` has them.

    Args:
        labels: (n,) of the validation articles, which the weights were not trained on.
        full: (2n + k,) P(commerce) of the full read of these, of copies cut to the length of a feed's, and of k other
            texts, calibrated.
        short: tokens of a short read -> its (2n + k,) P(commerce) at temperature 1, which is calibrated at its own
            length.
        n_tokens: (2n + k,) tokens of the full read. Those of the n articles are to become fewer.
    """
    n = len(labels)
    labels = np.concatenate([labels, labels])
    best: tuple[Stage, StageNote] | None = None
    best_tokens = 1 - MIN_SAVED
    for length, scores in short.items():
        cut = n_tokens > length
        if cut[:n].sum() < ENOUGH_ARTICLES or len(np.unique(labels[:n][cut[:n]])) < 2:
            continue
        known = np.flatnonzero(cut[: 2 * n])
        temperature = round(fit_temperature(labels[known], scores[known]), 4)
        own = at_temperature(scores, temperature)
        low, high = limits_of(full, own, cut, thresholds, change)
        again = (cut & ~outside(own, low, high))[:n]
        tokens = float((np.minimum(n_tokens[:n], length).sum() + n_tokens[:n][again].sum()) / n_tokens[:n].sum())
        if tokens < best_tokens:
            best_tokens = tokens
            stage = Stage(ENCODER, temperature, low, high, max_length=length)
            best = stage, {"read_in_full": float(again.mean()), "tokens": tokens}
    if best is None:
        return None, {"reason": "no short read saves a tenth of the tokens within the tolerance"}
    return best


def _inside(threshold: float) -> float:
    return min(max(threshold, 1e-6), 1 - 1e-6)
