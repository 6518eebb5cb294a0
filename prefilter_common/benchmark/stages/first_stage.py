"""Encoder scores in, a linear first stage out, and the limits within which it is not sure."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from prefilter_common.benchmark.stages.limits import ENOUGH_ARTICLES, MIN_SAVED, TOO_FEW, StageNote, limits_of
from prefilter_common.benchmark.stages.soft_labels import folds, soft_regression
from prefilter_common.models.contract import LINEAR, Stage
from prefilter_common.scoring.reading import outside, sure
from prefilter_common.scoring.stages.first_stage import TABLE_BITS, FirstStage, flattened, hashed, sigmoid
from prefilter_common.statistics.calibration import fit_temperature

# Inverse strength of the penalty on the weights; of 100, 1,000 and 10,000 the best on validation articles.
PENALTY = 1000.0
# This share of the validation articles and their cut copies has a smaller share of known tokens than is asked for. Of
# titles alone in languages of the same script that it was not fitted on, up to 15 % have enough all the same with the
# vocabulary of multilingual-e5-small, and 20 to 65 % with a reduced one, whose tokens are shorter.
BELOW_COVERAGE = 0.1


def fit_first_stage(
    texts: Sequence[Sequence[int]], targets: np.ndarray, input_format: Sequence[int] = ()
) -> FirstStage:
    """The logistic regression that comes closest to the targets.

    Args:
        texts: token ids of each, without special tokens.
        targets: (n,) what it is to say of each, from 0 to 1.
        input_format: token ids of the input format, which do not count as known or unknown.
    """
    from scipy.sparse import csr_matrix

    ids, rows = flattened(texts)
    known = np.zeros(int(ids.max()) + 2, dtype=bool)
    known[ids] = True
    places, rows = hashed(ids, rows)
    used, columns = np.unique(places, return_inverse=True)
    # Rare features tell more: each by its inverse document frequency, rounded as it is stored.
    idf = np.log((len(texts) + 1) / (np.bincount(columns) + 1)) + 1
    squares = np.zeros(1 << TABLE_BITS, dtype=np.float16)
    squares[used] = idf**2
    length = np.sqrt(np.bincount(rows, squares[places], minlength=len(texts)))
    values = idf[columns] / length[rows]
    features = csr_matrix((values, (rows, columns)), shape=(len(texts), len(used)))
    model = soft_regression(features, targets, PENALTY)
    weights = np.zeros(1 << TABLE_BITS, dtype=np.float16)
    weights[used] = model.coef_[0] * idf
    counted = np.ones(max(input_format, default=-1) + 2, dtype=bool)
    counted[list(input_format)] = False
    tables, bias = (weights.astype(np.float32), squares.astype(np.float32)), float(model.intercept_[0])
    return FirstStage(*tables, known, bias, counted)


def out_of_fold(
    texts: Sequence[Sequence[int]], targets: np.ndarray, stories: np.ndarray, input_format: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """What first stages say of texts whose stories, (n,), they were not fitted on: log-odds and share of known tokens,
    both (n,).
    """
    log_odds, coverage = np.empty(len(texts)), np.empty(len(texts))
    for others, these in folds(stories):
        first = fit_first_stage([texts[i] for i in others.tolist()], targets[others], input_format)
        log_odds[these], coverage[these] = first([texts[i] for i in these.tolist()])
    return log_odds, coverage


def choose_first_stage(
    first: FirstStage,
    texts: Sequence[Sequence[int]],
    labels: np.ndarray,
    full: np.ndarray,
    unseen: tuple[np.ndarray, np.ndarray],
    thresholds: Mapping[str, float],
    change: float,
) -> tuple[Stage | None, StageNote]:
    """What the first stage may decide: temperature, share of known tokens, and limits as ``limits_of`` has them.

    Args:
        texts: (2n,) token ids of validation articles and then of copies cut to the length of a feed's, without special
            tokens.
        labels: (n,) of the articles.
        full: (2n + k,) P(commerce) of the full read of these, and then of the texts that it was fitted on.
        unseen: (k,) each, of the latter, as ``out_of_fold`` has them.
    """
    n = len(labels)
    labels = np.concatenate([labels, labels])
    if n < ENOUGH_ARTICLES or len(np.unique(labels)) < 2:
        return None, {"reason": TOO_FEW}
    log_odds, coverage = first(texts)
    temperature = round(fit_temperature(labels, sigmoid(log_odds)), 4)
    needed = round(float(np.quantile(coverage, BELOW_COVERAGE)), 4)
    own = sigmoid(np.concatenate([log_odds, unseen[0]]) / temperature)
    may = np.concatenate([coverage, unseen[1]]) >= needed
    low, high = limits_of(full, own, may, thresholds, change)
    decided = (may & outside(own, low, high))[: 2 * n]
    if decided.mean() < MIN_SAVED:
        share = f"{decided.mean():.1%} of the validation articles and their cut copies, less than {MIN_SAVED:.0%}"
        return None, {"reason": f"within the tolerance it decides {share}"}
    sha256 = hashlib.sha256(first.content()).hexdigest()
    note: StageNote = {"decided": float(decided[:n].mean()), "decided_cut": float(decided[n:].mean())}
    return Stage(LINEAR, temperature, low, high, coverage=needed, sha256=sha256), note


def decided_by_first(
    stage: Stage, first: FirstStage, texts: Sequence[Sequence[int]], unseen: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the 2n + k texts of ``choose_first_stage`` the stage decides, bool, and its P(commerce) of each."""
    log_odds, coverage = (np.concatenate(both) for both in zip(first(texts), unseen, strict=True))
    scores = sigmoid(log_odds / stage.temperature)
    return (coverage >= stage.coverage) & sure(scores, stage), scores
