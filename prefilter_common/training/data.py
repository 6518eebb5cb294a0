"""What a run trains and validates on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from prefilter_common.articles import Article, capped, labels_of, load_articles, load_split
from prefilter_common.errors import InputError
from prefilter_common.models.base_models import require_checkpoint

log = logging.getLogger(__name__)

# Of the scale of commerce_score, 0 to 10.
MIDDLE_SCORE = 5.0


@dataclass(frozen=True)
class Source:
    """Where articles and targets come from.

    The folder of the splits, caps for smoke runs, soft labels or a file of them, the model directories of teachers,
    articles that only these have labelled, and articles whose tokens the model is to know.
    """

    data_dir: Path
    max_train_samples: int | None
    max_val_samples: int | None
    allow_overlap: bool
    soft_labels: Path | Literal[True] | None
    teacher: Sequence[Path] | None = None
    unlabelled: Path | None = None
    vocabulary_from: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Role -> file."""
        splits = {name: self.data_dir / f"{name}.jsonl" for name in ("train", "val")}
        more = {
            "soft_labels": self.soft_labels,
            "unlabelled": self.unlabelled,
            "vocabulary_from": self.vocabulary_from,
        }
        return splits | {role: path for role, path in more.items() if isinstance(path, Path)}

    @property
    def paths(self) -> list[Path]:
        """All that is read."""
        return [self.data_dir, *self.files.values(), *(self.teacher or ())]


@dataclass(frozen=True)
class Data:
    """Labelled articles, ``train`` and ``val``, and the n articles to fine-tune on.

    Those are ``train``, followed by others without a label; ``targets`` (n,) is what the model is to say of each: 0 or
    1, or a probability of commerce. ``teacher`` are model directories whose scores join, or replace, the targets
    (``compression.distillation``). ``vocabulary`` are articles whose tokens the model is to know besides those of the
    others; None where it keeps every token.
    """

    train: Sequence[Article]
    val: Sequence[Article]
    articles: Sequence[Article]
    targets: np.ndarray
    teacher: Sequence[Path] = ()
    vocabulary: Sequence[Article] | None = None


def load(source: Source) -> Data:
    """Read and check everything. Raises InputError for bad files, and for articles of train that are in val or test."""
    from prefilter_common.splits.guard import require_disjoint

    for directory in source.teacher or ():
        require_checkpoint(directory)
    for path in source.files.values():
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a regular file, and is read more than once; save its rows to one first")
    whole = load_split(source.data_dir, "train")
    train = capped(whole, source.max_train_samples)
    val = capped(load_split(source.data_dir, "val"), source.max_val_samples)
    require_disjoint(source.data_dir, source.allow_overlap)
    scored = _load_more(source.soft_labels, source, whole) if isinstance(source.soft_labels, Path) else []
    bare = [article.id for article in scored if article.commerce_score is None]
    if bare:
        raise InputError(
            f"{source.soft_labels}: {len(bare)} articles have no commerce_score, such as {bare[0]}; add it, or delete "
            "them"
        )
    targets = labels_of(train) if source.soft_labels is None else soft_targets([*train, *scored])
    unlabelled: list[Article] = []
    if source.unlabelled:  # what its articles say of themselves is not heard
        more = _load_more(source.unlabelled, source, whole)
        unlabelled = [replace(article, label=None, commerce_score=None) for article in more]
        targets = np.concatenate([targets, np.full(len(unlabelled), 0.5)])
    articles = [*train, *scored, *unlabelled]
    vocabulary = load_articles(source.vocabulary_from) if source.vocabulary_from else None
    return Data(train, val, articles, targets, source.teacher or (), vocabulary)


def require_both_labels(data: Data) -> None:
    """Raise InputError where a cap leaves a split with one label, from which no probe can be fitted."""
    for name, articles in (("train", data.train), ("val", data.val)):
        if len(np.unique(labels_of(articles))) < 2:
            raise InputError(f"--max-{name}-samples {len(articles)}: leaves one label of {name}.jsonl; pass more")


def _load_more(path: Path, source: Source, train: Sequence[Article]) -> Sequence[Article]:
    """The articles of a file that are trained on besides those of ``train``, whose labels somebody may have corrected
    since the file was written.
    """
    from prefilter_common.splits.guard import overlaps
    from prefilter_common.splits.shingles import normalised

    articles = load_articles(path)
    held = {name: source.data_dir / f"{name}.jsonl" for name in ("val", "test")}
    splits = {"train": articles} | {name: load_articles(file) for name, file in held.items() if file.is_file()}
    for text in overlaps(splits):
        if not source.allow_overlap:
            raise InputError(f"{path}: with its articles in train, {text}; delete them, or pass --allow-overlap")
    known = {normalised(f"{article.title} {article.content}") for article in train}
    new = [article for article in articles if normalised(f"{article.title} {article.content}") not in known]
    if left_out := len(articles) - len(new):
        log.info(f"{path}: {left_out} articles are left out, since train.jsonl has them")
    return capped(new, source.max_train_samples)


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
