"""What a run trains and validates on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from prefilter_common.articles import Article, capped, labels_of, load_articles, load_split
from prefilter_common.errors import InputError

# Of the scale of commerce_score, 0 to 10.
MIDDLE_SCORE = 5.0


@dataclass(frozen=True)
class Source:
    """Where the articles come from: the folder of the splits, caps for smoke runs, soft labels or a file of them."""

    data_dir: Path
    max_train_samples: int | None
    max_val_samples: int | None
    allow_overlap: bool
    soft_labels: Path | Literal[True] | None

    @property
    def files(self) -> dict[str, Path]:
        """Role -> file."""
        splits = {name: self.data_dir / f"{name}.jsonl" for name in ("train", "val")}
        return splits | ({"soft_labels": self.soft_labels} if isinstance(self.soft_labels, Path) else {})


@dataclass(frozen=True)
class Data:
    """Labelled articles, ``train`` and ``val``, and the n articles to fine-tune on.

    Those are ``train``, followed by others without a label; ``targets`` (n,) is what the model is to say of each: 0 or
    1, or a probability of commerce.
    """

    train: Sequence[Article]
    val: Sequence[Article]
    articles: Sequence[Article]
    targets: np.ndarray


def load(source: Source) -> Data:
    """Read and check everything. Raises InputError for bad files, and for articles of train that are in val or test."""
    from prefilter_common.splits.guard import require_disjoint

    train = capped(load_split(source.data_dir, "train"), source.max_train_samples)
    val = capped(load_split(source.data_dir, "val"), source.max_val_samples)
    require_disjoint(source.data_dir, source.allow_overlap)
    if source.soft_labels is None:
        return Data(train, val, train, labels_of(train))
    added: Sequence[Article] = ()
    if isinstance(source.soft_labels, Path):
        added = capped(_load_scored(source.soft_labels, source), source.max_train_samples)
    articles = [*train, *added]
    return Data(train, val, articles, soft_targets(articles))


def _load_scored(path: Path, source: Source) -> list[Article]:
    from prefilter_common.splits.guard import overlaps

    articles = load_articles(path)
    bare = [article.id for article in articles if article.commerce_score is None]
    if bare:
        raise InputError(
            f"{path}: {len(bare)} articles have no commerce_score, such as {bare[0]}; add it, or delete them"
        )
    held = {name: source.data_dir / f"{name}.jsonl" for name in ("val", "test")}
    splits = {"train": articles} | {name: load_articles(file) for name, file in held.items() if file.is_file()}
    for text in overlaps(splits):
        if not source.allow_overlap:
            raise InputError(f"{path}: with its articles in train, {text}; delete them, or pass --allow-overlap")
    return articles


def soft_targets(articles: Sequence[Article]) -> np.ndarray:
    """(n,) probability of commerce that each ``commerce_score`` stands for, float64; the label where there is none.

    The log-odds are the score's distance from the middle of its scale: 0.5 at 5, 0.88 at 7, 0.99 at 10. Where label and
    score contradict each other, somebody has corrected the label, and it counts.
    """

    def target(article: Article) -> float:
        score, label = article.commerce_score, article.label
        if score is not None and label in (None, int(score >= MIDDLE_SCORE)):
            return float(1 / (1 + np.exp(MIDDLE_SCORE - score)))
        return float(label or 0)

    return np.array([target(article) for article in articles])
