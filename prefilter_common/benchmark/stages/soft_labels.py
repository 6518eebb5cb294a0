"""Regressions on probabilities in place of labels, and how each is judged on texts that it was not fitted on."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from prefilter_common.articles import Article
from prefilter_common.evaluation.traffic.coverage import story

FOLDS = 3


def soft_regression(features: Any, targets: np.ndarray, inverse_penalty: float) -> LogisticRegression:
    """The logistic regression of (n,) targets, from 0 to 1, on (n, width) features, sparse or not.

    A target of 0.8 is the text once as commerce with weight 0.8, and once as journalism with weight 0.2.
    """
    twice, labels = np.tile(np.arange(len(targets)), 2), np.repeat([1, 0], len(targets))
    model = LogisticRegression(C=inverse_penalty, max_iter=200)
    return model.fit(features[twice], labels, sample_weight=np.concatenate([targets, 1 - targets]))


def stories_of(articles: Sequence[Article]) -> np.ndarray:
    """(n,) int64, the same for articles of one story, which may be in two places."""
    return np.unique([story(article) for article in articles], return_inverse=True)[1]


def folds(stories: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide texts so that those of a story, (n,), stay together: the places of the others, and of these."""
    yield from GroupKFold(FOLDS).split(stories, groups=stories)
