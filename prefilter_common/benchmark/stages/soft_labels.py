"""Regressions on probabilities in place of labels, and how each is judged on texts that it was not fitted on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

FOLDS = 3


def soft_regression(features: Any, targets: np.ndarray, inverse_penalty: float) -> LogisticRegression:
    """The logistic regression of (n,) targets, from 0 to 1, on (n, width) features, sparse or not.

    A target of 0.8 is the text once as commerce with weight 0.8, and once as journalism with weight 0.2.
    """
    twice, labels = np.tile(np.arange(len(targets)), 2), np.repeat([1, 0], len(targets))
    model = LogisticRegression(C=inverse_penalty, max_iter=200)
    return model.fit(features[twice], labels, sample_weight=np.concatenate([targets, 1 - targets]))


def folds(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide texts, n / 2 articles and then as many copies of them, which stay together: the others, and these."""
    fold = np.tile(np.arange(n // 2) % FOLDS, 2)
    for k in range(FOLDS):
        yield np.flatnonzero(fold != k), np.flatnonzero(fold == k)
