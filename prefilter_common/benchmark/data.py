"""The articles of a benchmark: which are timed, on which decisions are compared, and how long they are."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article, capped, cut, read_articles, spread_places
from prefilter_common.benchmark.fidelity import Tolerance, unchanged_needed
from prefilter_common.evaluation.traffic.coverage import distinct_texts, story

# Decisions are compared on as many other texts as the reference scores in a minute, since every configuration scores
# them too; but on at least 1,200, which show five changed decisions to be inside the default tolerance.
COMPARE_S = 60.0
MIN_MORE = 1_200
# An engine that changes half of what is tolerated is shown to be inside, in 19 of 20 cases, by this many times the
# texts that show it where no decision changes. More texts would hardly help.
ENOUGH = 11
# Stages are judged on a fourth of the training articles and on the later half of the traffic, and fitted and chosen on
# the others.
JUDGED = 0.25


@dataclass(frozen=True)
class Data:
    """The articles of one benchmark, all at the length that is benchmarked.

    ``timed``, a part of ``test``, are timed one at a time; ``val`` choose stages. ``more`` are other texts on which
    decisions are compared, by role: ``traffic``, ``train``, ``val``; on those in ``unseen``, (k,) bool, no stage is
    fitted or chosen. ``n_unread`` texts that the model cannot read are not compared. ``whole_train`` are the training
    articles in full: they calibrate int8, since a converted model is kept for benchmarks at every length, and a first
    stage learns more from them. ``lengths_like`` is the file to whose lengths the others were cut.
    """

    test: list[Article]
    timed: list[Article]
    train: list[Article] = field(default_factory=list)
    val: list[Article] = field(default_factory=list)
    traffic: list[Article] = field(default_factory=list)
    whole_train: list[Article] | None = None
    lengths_like: Path | None = None
    more: Mapping[str, Sequence[Article]] = field(default_factory=dict)
    unseen: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    n_unread: int = 0

    @property
    def fitting(self) -> list[Article]:
        """Training articles, in full, and traffic on which stages may be fitted and chosen: the others judge them."""
        found = [*_divided(self.whole_train or self.train)[0], *self._earlier_traffic]
        found = [found[i] for i in distinct_texts(found)[0].tolist()]
        # Where the test articles are cut, no text of theirs is the same as the whole one, but the story is.
        stories = {story(article) for article in [*self.test, *self.val]}
        return [article for article in found if story(article) not in stories]

    @property
    def _earlier_traffic(self) -> list[Article]:
        return self.traffic[: len(self.traffic) // 2]

    def comparing(self, limit: int, unread: Callable[[Sequence[Article]], np.ndarray]) -> "Data":
        """With ``more``: distinct texts that the test set lacks, at most ``limit``, traffic first; none that is
        ``unread``, (n,) bool of n articles: with every engine it scores the same.

        The rest is divided between validation articles, which the weights do not know, and training articles. Of
        traffic and training articles those come first on which no stage is fitted or chosen.
        """
        earlier, later = self._earlier_traffic, self.traffic[len(self.traffic) // 2 :]
        # A text that occurs twice counts where it is first: as one that a stage may be fitted or chosen on.
        fitting, held_out = _divided(self.train)
        parts = [self.test, fitting, earlier, self.val, later, held_out]
        together = [article for part in parts for article in part]
        distinct = distinct_texts(together)[0]
        left_out = unread([together[i] for i in distinct.tolist()])
        distinct = distinct[~left_out]
        of_part = np.searchsorted(np.cumsum([len(part) for part in parts]), distinct, side="right")
        fitting, earlier, val, later, held_out = (
            [together[i] for i in distinct[of_part == part].tolist()] for part in range(1, len(parts))
        )
        later = list(capped(later, limit))
        earlier = list(capped(earlier, limit - len(later)))
        rest = limit - len(later) - len(earlier)
        n_val = min(len(val), max(rest // 2, rest - len(held_out) - len(fitting)))
        held_out = list(capped(held_out, rest - n_val))
        fitting = list(capped(fitting, rest - n_val - len(held_out)))
        more = {"traffic": [*later, *earlier], "train": [*held_out, *fitting], "val": capped(val, n_val)}
        chosen = replace(self, more={role: part for role, part in more.items() if part})
        sizes = [len(later), len(earlier), len(held_out), len(fitting), n_val]
        unseen = np.repeat([True, False, True, False, False], sizes)
        # A stage has seen a text where it saw the same story, as in ``stages.soft_labels``.
        stories = {story(article) for article in [*self.fitting, *self.val]}
        other = np.array([story(article) not in stories for article in chosen.all_more], dtype=bool)
        return replace(chosen, unseen=unseen & other, n_unread=int(left_out.sum()))

    @property
    def all_more(self) -> list[Article]:
        """The articles of ``more``, one role after the other."""
        return [article for part in self.more.values() for article in part]


def _divided(train: Sequence[Article]) -> tuple[list[Article], list[Article]]:
    """What stages are fitted on, and what they are judged on."""
    judged = spread_places(train, math.ceil(JUDGED * len(train)))
    fitted = sorted({*range(len(train))} - {*judged})
    return [train[i] for i in fitted], [train[i] for i in judged]


def texts_worth_comparing(tolerance: Tolerance, articles_per_second: float) -> int:
    """How many other texts to compare decisions on, at the speed at which the reference scores articles."""
    enough = ENOUGH * max(unchanged_needed(tolerance.changed), unchanged_needed(tolerance.f1_loss))
    return min(enough, max(MIN_MORE, round(COMPARE_S * articles_per_second)))


def content_lengths(path: Path) -> list[int]:
    """Characters of content of every article in a file, sorted. Raises InputError."""
    return sorted(len(article.content) for article in read_articles(path))


def cut_like(articles: Sequence[Article], lengths: Sequence[int]) -> list[Article]:
    """Each article with its content cut, at a word, to one of ``lengths``, which are sorted.

    An article's id, or its place where it has none, decides which: it is cut alike in every run. A content that is
    shorter than that stays as it is.
    """
    copies = []
    for place, article in enumerate(articles):
        digest = hashlib.sha256(str(place if article.id is None else article.id).encode()).digest()
        drawn = lengths[int.from_bytes(digest[:8], "big") * len(lengths) // 2**64]
        copies.append(replace(article, content=cut(article.content, drawn)))
    return copies
