"""A labelled sample of the traffic -> what each model does in production, with intervals."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypedDict

import numpy as np

from prefilter_common.articles import COMMERCE, labels_of
from prefilter_common.evaluation.slices import MIN_ARTICLES, Slice, language_and_length_slices
from prefilter_common.evaluation.traffic.answers import Audit
from prefilter_common.evaluation.traffic.flags import traffic_slices
from prefilter_common.statistics.comparison import ALPHA, mcnemar
from prefilter_common.statistics.metrics import CONFIDENCE
from prefilter_common.statistics.survey import Production, difference, production


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
    """That of all labelled articles, and by slice, the worst first; ``drew_sample`` whether its flags drew them."""

    drew_sample: bool
    slices: list[AuditSliceRow]


class PairAudit(TypedDict):
    """Who is right where two models decide differently; ``better`` is None where the labels do not say.

    ``p`` is multiplied by the number of pairs (Bonferroni).
    """

    models: list[str]
    n_disputed: int
    disputed_by_slice: dict[str, int]
    only_first_right: int
    only_second_right: int
    p: float
    better: str | None
    confidence: float


class AuditSection(TypedDict):
    """What the labelled articles of the traffic say; see ``audit_section``, and ``Audit`` for the two shares.

    ``of_traffic`` says whether they were drawn from the traffic of this run.
    """

    n_labelled: int
    n_commerce: int
    random_sample: bool
    unlabelled_share: float
    skipped_share: float
    of_traffic: bool
    models: dict[str, AuditedModel]
    pairs: list[PairAudit]


def audit_section(
    audit: Audit, scores: Mapping[str, np.ndarray], thresholds: Mapping[str, float], main: str, of_traffic: bool,
    seed: int,
) -> AuditSection:  # fmt: skip
    """Precision, recall and false-positive rate in production, of the whole and by slice, and who is right.

    ``models`` is empty where the labels are no random sample of the traffic; who is right where two models differ can
    be told all the same.

    Args:
        scores: model -> (n,) P(commerce) of the labelled articles.
        thresholds: model -> its default threshold.
        main: the traffic's main language, by which ``traffic_slices`` names its slices.
        of_traffic: whether the labelled articles were drawn from the traffic of this run.
    """
    commerce = labels_of(audit.articles) == COMMERCE
    flags = {name: found >= thresholds[name] for name, found in scores.items()}
    by_flags = {name: audit.drawn_by(found, thresholds[name]) for name, found in scores.items()}
    parts = language_and_length_slices(audit.articles)
    named = traffic_slices(audit.articles, main)
    return {
        "n_labelled": len(audit.articles),
        "n_commerce": int(commerce.sum()),
        "random_sample": audit.random,
        "unlabelled_share": audit.unlabelled,
        "skipped_share": audit.skipped,
        "of_traffic": of_traffic,
        "models": {
            name: {
                **_of(audit, commerce, flagged, by_flags[name], None, seed),
                "drew_sample": by_flags[name],
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
    members = None if part is None else part.members
    found: Production = production(audit.sample, audit.kind, commerce, flagged, by_flags, seed, members)
    inside = np.ones(len(commerce), bool) if members is None else members
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

    Articles that only one of the two flags, or those of a rare language, may have been drawn more often than others. So
    a model is better where the difference in the whole traffic is not 0 either.
    """
    first, second = (flags[name] == commerce for name in pair)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    p = min(1.0, math.comb(len(flags), 2) * mcnemar(*only))
    low, high = difference(audit.sample, audit.kind, first, second, seed)
    better = pair[0] if only[0] > only[1] and low > 0 else pair[1] if only[1] > only[0] and high < 0 else None
    disputed = flags[pair[0]] != flags[pair[1]]
    by_slice = {part.name: int((disputed & part.members).sum()) for part in parts}
    return {"models": list(pair), "n_disputed": sum(only), "disputed_by_slice": by_slice, "only_first_right": only[0],
            "only_second_right": only[1], "p": p, "better": better if p < ALPHA else None,
            "confidence": CONFIDENCE}  # fmt: skip
