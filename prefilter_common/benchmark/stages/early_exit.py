"""An encoder's states in, early exits from the full read out, and the limits within which they are not sure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefilter_common.benchmark.stages.limits import (
    ENOUGH_ARTICLES,
    MIN_SAVED,
    TOO_FEW,
    StageNote,
    changed_share,
    limits_of,
)
from prefilter_common.benchmark.stages.soft_labels import folds, soft_regression
from prefilter_common.models.contract import LAYERS, Stage
from prefilter_common.scoring.reading import sure
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.stages.early_exit import EarlyExit, exits_content
from prefilter_common.scoring.stages.first_stage import sigmoid
from prefilter_common.statistics.calibration import fit_temperature

# Inverse strength of the penalty on the weights, of states whose spread is 1 on average.
EXIT_PENALTY = 0.03
States = Mapping[int, np.ndarray]


def states_of(scorer: Scorer, encodings: Sequence[list[int]], batch_size: int) -> tuple[np.ndarray, States]:
    """P(commerce) of the full read, (n,), and by layers the (n, width) float32 mean of each text's states there."""
    engine = scorer.engine
    found: dict[int, np.ndarray] = {}
    if not engine.places:
        return scorer.read(encodings, batch_size)[0], found
    log_odds = np.empty(len(encodings))
    for batch, (states, attention_mask) in scorer.tokenizer.batches(encodings, batch_size):
        weights = attention_mask / attention_mask.sum(1, keepdims=True)
        for number, layers in enumerate(engine.places):
            states = engine.part(number, states, attention_mask)
            means = found.setdefault(layers, np.empty((len(encodings), states.shape[2]), dtype=np.float32))
            means[batch] = np.einsum("ntw,nt->nw", states, weights)
        log_odds[batch] = engine.part(len(engine.places), states, attention_mask)
    return sigmoid(log_odds / scorer.contract.temperature), found


def fit_exit(means: np.ndarray, targets: np.ndarray) -> EarlyExit:
    """The logistic regression on (n, width) states that comes closest to the (n,) targets, from 0 to 1."""
    centre, spread = means.mean(0), float(means.std(0).mean()) or 1.0
    model = soft_regression((means - centre) / spread, targets, EXIT_PENALTY)
    weights = model.coef_[0] / spread
    return EarlyExit(weights.astype(np.float32), float(model.intercept_[0] - centre @ weights))


@dataclass(frozen=True)
class Exits:
    """Those that are worth it, the content of their file, and how each did."""

    stages: tuple[Stage, ...]
    content: bytes
    notes: dict[str, StageNote]


def choose_exits(
    known: States,
    fitting: States,
    stories: np.ndarray,
    labels: np.ndarray,
    full: np.ndarray,
    left: np.ndarray,
    thresholds: Mapping[str, float],
    changed: float,
) -> Exits:
    """Choose one after the other, each on what those before have left.

    Args:
        known: states of validation articles and then of copies cut to the length of a feed's, 2n in all.
        fitting: states of the k texts that exits are fitted on; each is judged by others like it that were fitted
            without its story, of ``stories``, (k,).
        labels: (n,) of the validation articles.
        full: (2n + k,) P(commerce) of the full read of all these.
        left: (2n + k,) bool, what no stage before has decided.
        changed: the share of their decisions that all exits together may change.
    """
    n = len(labels)
    if n < ENOUGH_ARTICLES or len(np.unique(labels)) < 2:
        return Exits((), b"", {"early exits": {"reason": TOO_FEW}})
    labels, targets = np.concatenate([labels, labels]), full[2 * n :]
    exits: dict[int, EarlyExit] = {}
    chosen: list[Stage] = []
    notes: dict[str, StageNote] = {}
    for number, layers in enumerate(sorted(known)):
        own = fit_exit(fitting[layers], targets)
        log_odds = np.concatenate([_log_odds(own, known[layers]), _out_of_fold(fitting[layers], targets, stories)])
        temperature = round(fit_temperature(labels, sigmoid(log_odds[: 2 * n])), 4)
        scores = sigmoid(log_odds / temperature)
        low, high = limits_of(full, scores, left, thresholds, changed / 2 / (len(known) - number))
        stage = Stage(LAYERS, temperature, low, high, sha256="", layers=layers)
        decided = left & sure(scores, stage)
        if decided[: 2 * n].sum() < MIN_SAVED * left[: 2 * n].sum():
            few = f"within the tolerance it decides less than {MIN_SAVED:.0%} of the articles that get there"
            notes[stage.name] = StageNote(reason=few)
            continue
        shares = float(decided[:n].mean()), float(decided[n : 2 * n].mean())
        notes[stage.name] = StageNote(decided=shares[0], decided_cut=shares[1])
        exits[layers], left = own, left & ~decided
        changed -= changed_share(full, scores, decided, thresholds)
        chosen.append(stage)
    content = exits_content(exits)
    sha256 = hashlib.sha256(content).hexdigest()
    return Exits(tuple(replace(stage, sha256=sha256) for stage in chosen), content, notes)


def _log_odds(exit: EarlyExit, means: np.ndarray) -> np.ndarray:
    return means @ exit.weights.astype(np.float64) + exit.bias


def _out_of_fold(means: np.ndarray, targets: np.ndarray, stories: np.ndarray) -> np.ndarray:
    log_odds = np.empty(len(means))
    for others, these in folds(stories):
        log_odds[these] = _log_odds(fit_exit(means[others], targets[others]), means[these])
    return log_odds
