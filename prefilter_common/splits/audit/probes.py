"""What a model that fits in seconds reveals about labelled articles: doubtful labels, unseen sources, distances.

No article is predicted by a model that was fitted on it or on an article that shares its text.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from prefilter_common.articles import Article, capped, spread_places
from prefilter_common.errors import InputError
from prefilter_common.splits.duplicates import Pair, clusters, find_pairs
from prefilter_common.statistics.metrics import ThresholdMetrics, ranking_metrics, threshold_metrics

PROBE_FOLDS = 5
# Read from the start of each article, which decides; otherwise a few long articles would take most of the time.
PROBE_CHARACTERS = 1_000
MAX_SUSPECTS = 60
# Articles per set in the measurement of a distance.
MAX_COMPARED = 2_000
Folds = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Labelled:
    """n labelled articles with ``labels`` (n,), ``clusters`` (n,) of shared text, and the ``seed`` of the folds."""

    articles: Sequence[Article]
    labels: np.ndarray
    clusters: np.ndarray
    seed: int = 0

    def spaced(self, limit: int) -> "Labelled":
        """At most ``limit`` of the articles, at ``spread_places``."""
        places = np.array(spread_places(self.articles, limit))
        return Labelled([self.articles[i] for i in places], self.labels[places], self.clusters[places], self.seed)

    def folds(self, limit: int = PROBE_FOLDS) -> Folds:
        """(train, test) indices of each fold, with whole clusters and evenly spread labels.

        At most ``limit`` folds, and no more than the rarer label has clusters. scikit-learn's StratifiedGroupKFold
        visits the clusters one by one, which is slow when nearly every article is its own cluster. Raises InputError
        where a label has fewer than two.
        """
        _, first, inverse = np.unique(self.clusters, return_index=True, return_inverse=True)
        n = min(limit, int(np.bincount(self.labels[first], minlength=2).min()))
        if n < 2:
            raise InputError("train, val and test: fewer than two different texts of one label; add articles")
        shuffled = np.lexsort((np.random.default_rng(self.seed).random(len(first)), self.labels[first]))
        fold = np.empty(len(first), int)
        fold[shuffled] = np.arange(len(first)) % n
        return [(np.flatnonzero(fold[inverse] != i), np.flatnonzero(fold[inverse] == i)) for i in range(n)]


class Suspect(TypedDict):
    """A doubtful label: the index of its article, whether cleanlab calls it an issue, and how probable the label is."""

    place: int
    is_issue: bool
    probability_of_label: float


class F1(TypedDict):
    """With its interval."""

    f1: float
    interval: list[float]


class FastModel(TypedDict):
    """F1 on articles of sources that it has seen, and of others; see ``f1_on_held_out_sources``."""

    n_sources: int
    mixed: F1
    held_out: F1 | None


class Distance(TypedDict):
    """Of two sets of articles; the interval is None where they are told apart perfectly."""

    roc_auc: float | None
    interval: list[float] | None


def text_features(articles: Sequence[Article]) -> csr_matrix:
    """(n, features) TF-IDF of character 4-grams within words, from the start of each article."""
    least = 2 if len(articles) >= 20 else 1
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(4, 4), min_df=least, sublinear_tf=True, dtype=np.float32
    )
    return vectorizer.fit_transform([f"{a.title} {a.content}"[:PROBE_CHARACTERS] for a in articles])


def predicted(features: csr_matrix, labels: np.ndarray, folds: Folds) -> np.ndarray:
    """(n,) P(label 1) of each article, by logistic regression fitted on the other folds."""
    scores = np.zeros(len(labels))
    for train, test in folds:
        if len(np.unique(labels[train])) < 2:
            scores[test] = labels[train].mean()
            continue
        model = LogisticRegression(C=10, solver="liblinear").fit(features[train], labels[train])
        scores[test] = model.predict_proba(features[test])[:, 1]
    return scores


def label_suspects(data: Labelled, scores: np.ndarray) -> list[Suspect]:
    """The articles with the most doubtful labels, as indices, most doubtful first, at most 60.

    Articles that confident learning (cleanlab; Northcutt et al. 2021) calls label issues come before all others. Within
    both groups, the lower the probability of the label, the earlier.

    Args:
        data: the articles.
        scores: (n,) out-of-fold P(commerce).
    """
    probabilities = np.column_stack([1 - scores, scores])
    issues = find_label_issues(data.labels, probabilities, n_jobs=1)
    quality = get_label_quality_scores(data.labels, probabilities)
    order = np.lexsort((quality, ~issues))[:MAX_SUSPECTS]
    return [
        {"place": int(i), "is_issue": bool(issues[i]), "probability_of_label": round(float(quality[i]), 4)}
        for i in order
        if issues[i] or quality[i] < 0.5
    ]


def f1_on_held_out_sources(data: Labelled, features: csr_matrix, scores: np.ndarray) -> FastModel:
    """F1 of the fast model on mixed sources, from its ``scores`` (n,), and on sources that it has not seen.

    ``held_out`` is None if there are fewer than two sources, or all of them share texts.
    """
    # Sources that share a text are held out together.
    first: dict[tuple[str, int | str], int] = {}
    links = []
    for i, (article, cluster) in enumerate(zip(data.articles, data.clusters.tolist(), strict=True)):
        for key in [("cluster", cluster)] + ([("source", article.source)] if article.source else []):
            links.append(Pair(first.setdefault(key, i), i, key[0], 1.0))
    groups = clusters(len(data.articles), links)
    n_sources = len({a.source for a in data.articles if a.source})
    (mixed,) = threshold_metrics(data.labels, scores, [0.5])
    result: FastModel = {"n_sources": n_sources, "mixed": _f1(mixed), "held_out": None}
    n_groups = int(groups.max()) + 1
    if n_sources >= 2 and n_groups >= 2:
        folds = list(GroupKFold(min(PROBE_FOLDS, n_groups)).split(groups, groups=groups))
        (apart,) = threshold_metrics(data.labels, predicted(features, data.labels, folds), [0.5])
        result["held_out"] = _f1(apart)
    return result


def distance(these: Sequence[Article], those: Sequence[Article], seed: int = 0) -> Distance | None:
    """How well the fast model tells two sets of articles apart: ``roc_auc``, 0.5 if it cannot, and its interval.

    Classifier two-sample test (Lopez-Paz and Oquab 2017) on at most 2,000 different texts per set. None if a set is too
    small.
    """
    distinct = [
        list({(article.title, article.content): article for article in part}.values()) for part in (these, those)
    ]
    parts = [capped(part, MAX_COMPARED) for part in distinct]
    if min(map(len, parts)) < 2 * PROBE_FOLDS:
        return None
    articles = [*parts[0], *parts[1]]
    labels = np.array([0] * len(parts[0]) + [1] * len(parts[1]))
    try:
        folds = Labelled(articles, labels, clusters(len(articles), find_pairs(articles)), seed).folds()
    except InputError:  # all of a set are copies of one another
        return None
    ranking = ranking_metrics(labels, predicted(text_features(articles), labels, folds), seed)
    return {"roc_auc": ranking["roc_auc"], "interval": ranking["intervals"]["roc_auc"]}


def total_variation(these: Sequence[str], those: Sequence[str]) -> float:
    """The share of ``these`` that would have to change to match the distribution of ``those``, 0 to 1."""
    first, second = Counter(these), Counter(those)
    shares = [first[value] / len(these) - second[value] / len(those) for value in first | second]
    return 0.5 * sum(map(abs, shares))


def _f1(row: ThresholdMetrics) -> F1:
    return {"f1": row["f1"], "interval": row["intervals"]["f1"]}
