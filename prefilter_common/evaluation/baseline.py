"""The floor that a model must beat: TF-IDF with logistic regression."""

import logging
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prefilter_common.articles import Article, labels_of
from prefilter_common.evaluation.sections import Quality, quality
from prefilter_common.statistics.comparison import paired_f1_difference

log = logging.getLogger(__name__)

# Chosen on validation articles among words, word pairs and characters, of whole and cut texts: the best with 1,512
# training articles (F1 0.91, under 3 s), though words do better with the 280 of splits/ (0.86 against 0.82).
BASELINE_CHARACTERS = 1_000


class BaselineRow(Quality):
    """The floor in the results."""

    model: str
    train_articles: int


class FloorComparison(TypedDict):
    """A model against the floor; the difference is positive where the model is better."""

    f1_difference: float
    f1_difference_interval: list[float]
    p_bootstrap: float
    beats: bool
    beyond_chance: bool


def baseline_scores(train: Sequence[Article], test: Sequence[Article]) -> np.ndarray:
    """(n,) P(commerce) of the test articles by TF-IDF of four characters and logistic regression."""
    classifier = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, solver="liblinear"),
    )
    classifier.fit(_texts(train), labels_of(train))
    return classifier.predict_proba(_texts(test))[:, 1]


def baseline_row(
    train: Sequence[Article], articles: Sequence[Article], seed: int
) -> tuple[BaselineRow, np.ndarray] | None:
    """The floor's metrics and its (n,) decisions; None where the training articles are too few or have one label."""
    if len(np.unique(labels_of(train))) < 2:
        log.warning("no floor: the training articles are all of one label")
        return None
    try:
        scores = baseline_scores(train, articles)
    except ValueError as error:
        log.warning(f"no floor: {error}")
        return None
    row: BaselineRow = {
        "model": "TF-IDF + logistic regression",
        "train_articles": len(train),
        **quality(labels_of(articles), scores, 0.5, seed),
    }
    return row, scores >= 0.5


def against_floor(labels: np.ndarray, decisions: np.ndarray, floor: np.ndarray, seed: int) -> FloorComparison:
    """Whether a model beats the baseline, and whether beyond chance."""
    gap, interval, p = paired_f1_difference(labels, decisions, floor, seed)
    return {
        "f1_difference": gap,
        "f1_difference_interval": interval,
        "p_bootstrap": p,
        "beats": gap > 0,
        "beyond_chance": interval[0] > 0,
    }


def _texts(articles: Sequence[Article]) -> list[str]:
    return [f"{a.title} {a.content}"[:BASELINE_CHARACTERS] for a in articles]
