"""Within which limits is a stage not sure? Chosen on validation articles, so that F1 is no lower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypedDict

import numpy as np
from scipy.special import expit, logit

from prefilter_common.models.contract import ENCODER, Stage
from prefilter_common.statistics.calibration import at_temperature, fit_temperature
from prefilter_common.statistics.metrics import f1_at

# How far beyond the thresholds a stage's score must lie to be final, in log-odds, from the widest on.
MARGINS = np.arange(8.0, 0.24, -0.25)
# An upper limit that no score reaches.
UNREACHABLE = 1.0
# With fewer articles, a stage can be neither calibrated nor judged; for a short read, those that it cuts count.
ENOUGH_ARTICLES = 20
# A short read that saves a smaller share of the tokens, or a first stage that decides a smaller share of the articles,
# is not worth its limits.
MIN_SAVED = 0.1


class StageNote(TypedDict, total=False):
    """What a stage does on the validation articles, or the ``reason`` why there is none.

    Of a short read: the shares of articles then read in full and of all tokens read. Of a first stage: the shares that
    it decides of whole articles and of copies cut to the length of a feed's, and the texts that it was fitted on.
    """

    read_in_full: float
    tokens: float
    decided: float
    decided_cut: float
    fitted_texts: int
    reason: str


@dataclass(frozen=True)
class Trial:
    """Labelled articles to try limits on, (n,) each: ``full``, scores of the full read; ``own``, those of the stage;
    whether it ``may`` decide; and ``later``, the scores of what it does not decide.
    """

    labels: np.ndarray
    full: np.ndarray
    own: np.ndarray
    may: np.ndarray
    later: np.ndarray

    def uncertain(self, low: float, high: float) -> np.ndarray:
        """(n,) bool: what the stage does not decide."""
        return ~self.may | ((low < self.own) & (self.own < high))


def limits_of(trials: Sequence[Trial], thresholds: Mapping[str, float]) -> tuple[float, float] | None:
    """The narrowest limits outside which a stage may decide; None where no limits keep F1.

    A score is final where it lies at least a margin outside all operating points, so no decision at any of them rests
    on an uncertain score. A margin qualifies only if under it, and under every larger one, F1 at every operating point
    is in every trial no lower than the full read's: a single margin that happens to do well is luck. Each side has its
    own, the lower one chosen first, so that an article which a stage gets wrong moves one limit alone; a side without a
    margin that qualifies decides nothing. Whether the choice holds must be judged on other articles.
    """

    def keep_f1(low: float, high: float) -> bool:
        scores = [np.where(trial.uncertain(low, high), trial.later, trial.own) for trial in trials]
        return all(
            f1_at(trial.labels, own, t) >= f1_at(trial.labels, trial.full, t)
            for trial, own in zip(trials, scores, strict=True)
            for t in thresholds.values()
        )

    lowest, highest = (logit(_inside(t)) for t in (min(thresholds.values()), max(thresholds.values())))
    lows = list(takewhile(lambda low: keep_f1(low, UNREACHABLE), np.round(expit(lowest - MARGINS), 6).tolist()))
    low = lows[-1] if lows else 1 - UNREACHABLE
    highs = list(takewhile(lambda high: keep_f1(low, high), np.round(expit(highest + MARGINS), 6).tolist()))
    return (low, highs[-1] if highs else UNREACHABLE) if lows or highs else None


def choose_short_read(
    labels: np.ndarray,
    full: np.ndarray,
    short: Mapping[int, np.ndarray],
    n_tokens: np.ndarray,
    thresholds: Mapping[str, float],
) -> tuple[Stage | None, StageNote]:
    """The length and limits that read the fewest tokens of those that do not lower F1, as ``limits_of`` has it.

    Args:
        labels: (n,) of the validation articles, which the weights were not trained on.
        full: (n,) P(commerce) of the full read, calibrated.
        short: tokens of a short read -> its (n,) P(commerce) at temperature 1, which is calibrated at its own length.
        n_tokens: (n,) tokens of the full read.
    """
    best: tuple[Stage, StageNote] | None = None
    best_tokens = 1 - MIN_SAVED
    for length, scores in short.items():
        cut = n_tokens > length
        if cut.sum() < ENOUGH_ARTICLES or len(np.unique(labels[cut])) < 2:
            continue
        temperature = round(fit_temperature(labels[cut], scores[cut]), 4)
        trial = Trial(labels, full, at_temperature(scores, temperature), cut, full)
        limits = limits_of([trial], thresholds)
        if limits is None:
            continue
        uncertain = cut & trial.uncertain(*limits)
        tokens = float((np.minimum(n_tokens, length).sum() + n_tokens[uncertain].sum()) / n_tokens.sum())
        if tokens < best_tokens:
            best_tokens = tokens
            stage = Stage(ENCODER, temperature, *limits, max_length=length)
            best = stage, {"read_in_full": float(uncertain.mean()), "tokens": tokens}
    if best is None:
        return None, {"reason": "no limits on a short read keep F1 on the validation articles and save a tenth"}
    return best


def _inside(threshold: float) -> float:
    return min(max(threshold, 1e-6), 1 - 1e-6)
