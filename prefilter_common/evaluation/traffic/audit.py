"""A labelled sample of the traffic -> what each model does in production, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from prefilter_common.articles import COMMERCE, Article, labels_of, load_articles
from prefilter_common.errors import InputError
from prefilter_common.evaluation.slices import MIN_ARTICLES, Slice, article_slices, crossed_slices
from prefilter_common.statistics.comparison import ALPHA, mcnemar
from prefilter_common.statistics.metrics import CONFIDENCE
from prefilter_common.statistics.survey import Production, Sample, production

KEYS = ("stratum", "stratum_size", "copies", "why")


@dataclass(frozen=True)
class Audit:
    """The labelled articles of a sample; ``sample`` weights them, ``kind`` (n,) says why each was drawn.

    ``unlabelled`` is the share of the traffic in strata of which no article was labelled.
    """

    articles: list[Article]
    sample: Sample
    kind: np.ndarray
    unlabelled: float


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
    if len(np.unique([row.label for row in labelled])) < 2:
        raise InputError(f'{path}: needs articles of both labels; fill in "label": 0 (journalism) or 1 (commerce)')
    sizes = {row.extra["stratum"]: row.extra["stratum_size"] for row in rows}
    strata = sorted({row.extra["stratum"] for row in labelled})
    sample = Sample(
        stratum=np.array([strata.index(row.extra["stratum"]) for row in labelled]),
        sizes=np.array([sizes[stratum] for stratum in strata]),
        copies=np.array([row.extra["copies"] for row in labelled]),
    )
    kinds = sorted({row.extra["why"] for row in labelled})
    kind = np.array([kinds.index(row.extra["why"]) for row in labelled])
    return Audit(labelled, sample, kind, 1 - sum(map(sizes.__getitem__, strata)) / sum(sizes.values()))


def audit_section(
    audit: Audit, scores: Mapping[str, np.ndarray], thresholds: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """Precision, recall and false-positive rate in production, of the whole and by slice, and who is right.

    Args:
        scores: model -> (n,) P(commerce) of the labelled articles.
        thresholds: model -> its default threshold.
    """
    commerce = labels_of(audit.articles) == COMMERCE
    flags = {name: found >= thresholds[name] for name, found in scores.items()}
    parts = [part for part in article_slices(audit.articles) if part.by != "source"]
    parts += crossed_slices(audit.articles)
    return {
        "n_labelled": len(audit.articles),
        "n_commerce": int(commerce.sum()),
        "unlabelled_share": audit.unlabelled,
        "models": {
            name: {
                **_of(audit, commerce, flagged, None, seed),
                "slices": [
                    {"by": part.by, "value": part.value, **_of(audit, commerce, flagged, part, seed)} for part in parts
                ],
            }
            for name, flagged in flags.items()
        },
        "pairs": [_pair(audit, commerce, flags, pair) for pair in combinations(flags, 2)],
    }


def _of(audit: Audit, commerce: np.ndarray, flagged: np.ndarray, part: Slice | None, seed: int) -> dict[str, Any]:
    inside = np.ones(len(commerce), bool) if part is None else part.members
    found: Production = production(audit.sample, audit.kind, commerce, flagged, seed, inside)
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


def _pair(audit: Audit, commerce: np.ndarray, flags: Mapping[str, np.ndarray], pair: tuple[str, str]) -> dict[str, Any]:
    """Who is right where two models decide differently: McNemar's test on the labelled articles."""
    first, second = (flags[name] == commerce for name in pair)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    p = mcnemar(*only)
    better = pair[int(only[1] > only[0])] if p < ALPHA else None
    disputed = flags[pair[0]] != flags[pair[1]]
    by_slice = {part.name: int((disputed & part.members).sum()) for part in crossed_slices(audit.articles)}
    return {"models": list(pair), "n_disputed": sum(only), "disputed_by_slice": by_slice, "only_first_right": only[0],
            "only_second_right": only[1], "p": p, "better": better, "confidence": CONFIDENCE}  # fmt: skip
