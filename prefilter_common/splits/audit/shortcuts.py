"""How well one property of an article predicts its label: source, language, length, date or a phrase.

The rule for each property is measured on articles that it was not fitted on.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.tree import DecisionTreeClassifier

from prefilter_common.articles import UNKNOWN, Article
from prefilter_common.language import languages
from prefilter_common.splits.audit.probes import PROBE_CHARACTERS, Labelled
from prefilter_common.splits.grouping import published
from prefilter_common.statistics.metrics import threshold_metrics

# These rules are quick to fit, and a source with few articles needs all of them.
RULE_FOLDS = 10
MAX_PHRASES = 10
MAX_PHRASE_TEXTS = 5_000
# A property that leaves at most half of the errors of always guessing the more frequent label is a shortcut.
SHORTCUT = 0.5
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ShortcutRow(TypedDict):
    """How well one property predicts the label; ``majority`` is the share that always guessing one label gets right."""

    property: str
    accuracy: float
    interval: list[float]
    f1: float
    majority: float
    errors_left: float
    is_shortcut: bool


class PhraseRow(TypedDict):
    """A phrase, and how many articles of each label use it."""

    phrase: str
    commerce: int
    journalism: int


def shortcuts(data: Labelled) -> list[ShortcutRow]:
    """How well each property on its own predicts the labels of articles that its rule was not fitted on.

    ``errors_left`` is relative to always guessing the more frequent label. A property that leaves at most half of these
    errors is a shortcut, if its interval is above the accuracy of that guess.
    """
    lengths = np.array([[a.characters] for a in data.articles], float)
    days = [published(a) for a in data.articles]
    dates = np.array([[day.toordinal() if day else np.nan] for day in days], float)
    rules = {
        "source": by_value([a.source or UNKNOWN for a in data.articles], data.labels),
        "language": by_value(languages(data.articles), data.labels),
        "length": by_number(lengths, data.labels),
        "date": by_number(dates, data.labels),
    }
    rows = [_shortcut(name, data, rule) for name, rule in rules.items()]
    part = data.spaced(MAX_PHRASE_TEXTS)
    rows.append(_shortcut("phrase", part, by_phrase(phrase_matrix(part.articles)[0], part.labels)))
    return sorted(rows, key=lambda row: -row["accuracy"])


def _shortcut(name: str, data: Labelled, rule: Rule) -> ShortcutRow:
    guesses = np.zeros(len(data.labels), int)
    for train, test in data.folds(RULE_FOLDS):
        guesses[test] = rule(train, test)
    majority = float(max(data.labels.mean(), 1 - data.labels.mean()))
    (row,) = threshold_metrics(data.labels, guesses, [0.5])
    errors_left = (1 - row["accuracy"]) / max(1 - majority, 1e-9)
    interval = row["intervals"]["accuracy"]
    return {
        "property": name,
        "accuracy": row["accuracy"],
        "interval": interval,
        "f1": row["f1"],
        "majority": majority,
        "errors_left": errors_left,
        "is_shortcut": errors_left <= SHORTCUT and interval[0] > majority,
    }


def by_value(values: Sequence[str], labels: np.ndarray) -> Rule:
    """A rule (train, test) -> guesses: the more frequent label of a value, or of all articles for a new value."""
    _, numbers = np.unique(np.array(values, dtype=object).astype(str), return_inverse=True)

    def guess(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        size = numbers.max() + 1
        commerce = np.bincount(numbers[train], weights=labels[train], minlength=size)
        share = commerce / np.maximum(np.bincount(numbers[train], minlength=size), 1)
        seen = np.isin(numbers[test], numbers[train])
        return np.where(seen, share[numbers[test]] > 0.5, labels[train].mean() > 0.5).astype(int)

    return guess


def by_number(values: np.ndarray, labels: np.ndarray) -> Rule:
    """A rule (train, test) -> guesses: a decision tree with at most eight ranges of the (n, 1) ``values``."""

    def guess(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=max(2, len(train) // 50), random_state=0)
        return tree.fit(values[train], labels[train]).predict(values[test])

    return guess if np.isfinite(values).any() else by_value([""] * len(labels), labels)


def by_phrase(present: csr_matrix, labels: np.ndarray) -> Rule:
    """A rule (train, test) -> guesses: whether the most predictive phrase is ``present`` (n, phrases), 0 or 1."""

    def guess(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        best = int(phrase_accuracy(present[train], labels[train]).argmax())
        used = present[:, [best]].toarray()[:, 0].astype(int)
        return by_value([str(flag) for flag in used], labels)(train, test)

    return guess


def phrase_matrix(articles: Sequence[Article]) -> tuple[csr_matrix, list[str]]:
    """(n, phrases) 0 or 1, and the phrases: one to three words, in at least 2 % of the articles and in three."""
    texts = [f"{a.title} {a.content}"[:PROBE_CHARACTERS] for a in articles]
    least = min(max(3, len(texts) // 50), len(texts))
    vectorizer = CountVectorizer(
        binary=True, ngram_range=(1, 3), min_df=least, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
    )
    try:
        present = vectorizer.fit_transform(texts)
    except ValueError:  # no phrase is that frequent
        return csr_matrix((len(texts), 1), dtype=np.float32), [""]
    return present, vectorizer.get_feature_names_out().tolist()


def phrase_accuracy(present: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """(phrases,) share of the labels that each phrase predicts on its own, fitted on the same articles."""
    commerce, used = present.T @ labels, np.asarray(present.sum(axis=0)).ravel()
    unused, rest = len(labels) - used, labels.sum() - commerce
    return (np.maximum(commerce, used - commerce) + np.maximum(rest, unused - rest)) / len(labels)


def telling_phrases(data: Labelled) -> list[PhraseRow]:
    """The phrases that predict the label best on their own, with the number of articles of each label that use them."""
    data = data.spaced(MAX_PHRASE_TEXTS)
    present, phrases = phrase_matrix(data.articles)
    accuracy = phrase_accuracy(present, data.labels)
    commerce, used = present.T @ data.labels, np.asarray(present.sum(axis=0)).ravel()
    best = np.lexsort((-used, -accuracy))[:MAX_PHRASES]
    return [
        {"phrase": phrases[i], "commerce": int(commerce[i]), "journalism": int(used[i] - commerce[i])}
        for i in best
        if phrases[i] and accuracy[i] > max(data.labels.mean(), 1 - data.labels.mean())
    ]
