"""A labelled sample of the traffic -> what each model does in production, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypedDict

import numpy as np

from prefilter_common.articles import COMMERCE, Article, labels_of, load_articles
from prefilter_common.errors import InputError
from prefilter_common.evaluation.slices import MIN_ARTICLES, Slice, article_slices, crossed_slices
from prefilter_common.evaluation.traffic.flags import traffic_slices
from prefilter_common.statistics.comparison import ALPHA, mcnemar
from prefilter_common.statistics.metrics import CONFIDENCE
from prefilter_common.statistics.survey import Production, Sample, difference, production

KEYS = ("stratum", "stratum_size", "copies", "why")
# With a larger share missing, the labels are a selection, and say nothing of the traffic as a whole.
MAX_MISSING = 0.02
# What ``why`` is in an audit sample.
DRAWN_BY_FLAGS = {"flagged", "not flagged"}
# Scores of one model on two machines, or with two engines, may differ by less.
SAME_SCORE = 1e-3


@dataclass(frozen=True)
class Audit:
    """The labelled articles of a sample; ``sample`` weights them, ``kind`` (n,) says why each was drawn.

    ``flags`` (n,) is what the model that drew it decided, from its ``scores``; None for a review queue.
    ``unlabelled`` is the share of the traffic in strata of which no article was labelled, ``skipped`` the share of the
    rows without a label before the last one with a label: the rows of each kind are in random order, so labels from the
    first row on are a random sample, and labels picked out are not.
    """

    articles: list[Article]
    sample: Sample
    kind: np.ndarray
    flags: np.ndarray | None
    scores: np.ndarray
    unlabelled: float
    skipped: float

    @property
    def random(self) -> bool:
        """Whether the labels are a random sample of the whole traffic, nearly without gaps."""
        return max(self.unlabelled, self.skipped) <= MAX_MISSING

    def drawn_by(self, scores: np.ndarray, flags: np.ndarray) -> bool:
        """Whether the model with these (n,) scores and decisions drew the sample."""
        same = np.abs(scores - self.scores) < SAME_SCORE
        return self.flags is not None and bool(same.all()) and np.array_equal(flags, self.flags)


class AuditRow(Production):
    """What an audit says of one model, in a slice or in all; ``enough`` is false for fewer than 20 articles."""

    n: int
    n_commerce: int
    n_flagged: int
    enough: bool
    f1: float


class AuditSliceRow(AuditRow):
    """That of one slice."""

    by: str
    value: str


class AuditedModel(AuditRow):
    """That of all labelled articles, and by slice, the worst first."""

    slices: list[AuditSliceRow]


class PairAudit(TypedDict):
    """Who is right where two models decide differently; ``better`` is None where the labels do not say."""

    models: list[str]
    n_disputed: int
    disputed_by_slice: dict[str, int]
    only_first_right: int
    only_second_right: int
    p: float
    better: str | None
    confidence: float


class AuditSection(TypedDict):
    """What the labelled articles of the traffic say; see ``audit_section``, and ``Audit`` for the two shares."""

    n_labelled: int
    n_commerce: int
    random_sample: bool
    unlabelled_share: float
    skipped_share: float
    models: dict[str, AuditedModel]
    pairs: list[PairAudit]


def sample_warnings(audit: Audit | None) -> list[str]:
    """Why the labels of an audit sample measure nothing, in a sentence."""
    if audit is None or audit.flags is None or audit.random:
        return []
    return [
        f"the labels of --audited are no random sample, and measure neither precision nor recall: {audit.skipped:.0%} "
        f"of the rows before the last label have none, and {audit.unlabelled:.0%} of the traffic is in parts without "
        "one; fill them in from the first row on, without gaps"
    ]


def read_audit(path: Path) -> Audit:
    """The rows of ``audit_<model>.jsonl`` or ``review_queue_<model>.jsonl`` that have a label. Raises InputError."""
    rows = load_articles(path)
    for number, row in enumerate(rows, start=1):
        bad = [key for key in KEYS if key not in row.extra]
        if bad or not all(type(row.extra[key]) is int and row.extra[key] > 0 for key in ("stratum_size", "copies")):
            raise InputError(
                f"{path}: article {number} ({row.id}) has no valid {bad[0] if bad else 'stratum_size and copies'}; "
                "label a file that --audit or --traffic wrote, and leave its other keys alone"
            )
    labelled = [row for row in rows if row.label is not None]
    if not labelled:
        raise InputError(f'{path}: no article has a label; fill in "label": 0 (journalism) or 1 (commerce)')
    sizes = {row.extra["stratum"]: row.extra["stratum_size"] for row in rows}
    strata = sorted({row.extra["stratum"] for row in labelled})
    sample = Sample(
        stratum=np.array([strata.index(row.extra["stratum"]) for row in labelled]),
        sizes=np.array([sizes[stratum] for stratum in strata]),
        copies=np.array([row.extra["copies"] for row in labelled]),
    )
    kinds = sorted({row.extra["why"] for row in labelled})
    kind = np.array([kinds.index(row.extra["why"]) for row in labelled])
    unlabelled = 1 - sum(map(sizes.__getitem__, strata)) / sum(sizes.values())
    flags = np.array([row.extra["why"] == "flagged" for row in labelled]) if set(kinds) <= DRAWN_BY_FLAGS else None
    found = [row.extra.get("score") for row in labelled]
    scores = np.array([score if isinstance(score, int | float) else np.nan for score in found])
    return Audit(labelled, sample, kind, flags, scores, unlabelled, _skipped(rows))


def _skipped(rows: Sequence[Article]) -> float:
    skipped = reached = 0
    for why in {row.extra["why"] for row in rows}:
        answered = [row.label is not None for row in rows if row.extra["why"] == why]
        last = max((i for i, known in enumerate(answered, start=1) if known), default=0)
        reached += last
        skipped += last - sum(answered)
    return skipped / reached


def audit_section(
    audit: Audit, scores: Mapping[str, np.ndarray], thresholds: Mapping[str, float], main: str, seed: int
) -> AuditSection:
    """Precision, recall and false-positive rate in production, of the whole and by slice, and who is right.

    ``models`` is empty where the labels are no random sample of the traffic; who is right where two models differ can
    be told all the same.

    Args:
        scores: model -> (n,) P(commerce) of the labelled articles.
        thresholds: model -> its default threshold.
        main: the traffic's main language, by which ``traffic_slices`` names its slices.
    """
    commerce = labels_of(audit.articles) == COMMERCE
    flags = {name: found >= thresholds[name] for name, found in scores.items()}
    by_flags = {name: audit.drawn_by(scores[name], flagged) for name, flagged in flags.items()}
    parts = [part for part in article_slices(audit.articles) if part.by != "source"]
    parts += crossed_slices(audit.articles)
    named = traffic_slices(audit.articles, main)
    return {
        "n_labelled": len(audit.articles),
        "n_commerce": int(commerce.sum()),
        "random_sample": audit.random,
        "unlabelled_share": audit.unlabelled,
        "skipped_share": audit.skipped,
        "models": {
            name: {
                **_of(audit, commerce, flagged, by_flags[name], None, seed),
                "slices": _by_slice(audit, commerce, flagged, by_flags[name], parts, seed),
            }
            for name, flagged in flags.items()
            if audit.random
        },
        "pairs": [_pair(audit, commerce, flags, pair, named, seed) for pair in combinations(flags, 2)],
    }


def _by_slice(
    audit: Audit, commerce: np.ndarray, flagged: np.ndarray, by_flags: bool, parts: Sequence[Slice], seed: int
) -> list[AuditSliceRow]:
    """The slices in which the most journalism is blocked first, and those too small to judge last."""
    rows: list[AuditSliceRow]
    rows = [
        {"by": part.by, "value": part.value, **_of(audit, commerce, flagged, by_flags, part, seed)} for part in parts
    ]
    return sorted(rows, key=lambda row: (not row["enough"], -(row["false_positive_rate"] or 0.0), -row["n"]))


def _of(
    audit: Audit, commerce: np.ndarray, flagged: np.ndarray, by_flags: bool, part: Slice | None, seed: int
) -> AuditRow:
    inside = np.ones(len(commerce), bool) if part is None else part.members
    found: Production = production(audit.sample, audit.kind, commerce, flagged, by_flags, seed, inside)
    precision, recall = found["precision"], found["recall"]
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else 0.0
    return {
        "n": int(inside.sum()),
        "n_commerce": int(commerce[inside].sum()),
        "n_flagged": int(flagged[inside].sum()),
        "enough": int(inside.sum()) >= MIN_ARTICLES,
        "f1": f1,
        **found,
    }


def _pair(
    audit: Audit, commerce: np.ndarray, flags: Mapping[str, np.ndarray], pair: tuple[str, str], parts: Sequence[Slice],
    seed: int,
) -> PairAudit:  # fmt: skip
    """Who is right where two models decide differently: McNemar's test on the labelled articles.

    Articles that only one of the two flags may have been drawn more often than those that only the other does. So a
    model is better where the weights agree and, by an audit sample, the difference in the whole traffic is not 0.
    """
    first, second = (flags[name] == commerce for name in pair)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    p = mcnemar(*only)
    if audit.flags is None:  # a review queue, which is drawn from what models dispute
        low = high = float((audit.sample.weights * (first.astype(int) - second)).sum())
    else:
        low, high = difference(audit.sample, audit.kind, first, second, seed)
    better = pair[0] if only[0] > only[1] and low > 0 else pair[1] if only[1] > only[0] and high < 0 else None
    disputed = flags[pair[0]] != flags[pair[1]]
    by_slice = {part.name: int((disputed & part.members).sum()) for part in parts}
    return {"models": list(pair), "n_disputed": sum(only), "disputed_by_slice": by_slice, "only_first_right": only[0],
            "only_second_right": only[1], "p": p, "better": better if p < ALPHA else None,
            "confidence": CONFIDENCE}  # fmt: skip
