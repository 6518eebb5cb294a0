"""The labels that somebody has filled in: which articles they are, and whether they measure anything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.evaluation.traffic.coverage import plain_text
from prefilter_common.statistics.survey import Sample

KEYS: Mapping[str, type[str] | type[int]] = {
    "stratum": str, "stratum_size": int, "copies": int, "why": str, "position": int
}  # fmt: skip
# With a larger share missing, the labels are a selection, and say nothing of the traffic as a whole.
MAX_MISSING = 0.02
# What ``why`` is in an audit sample.
DRAWN_BY_FLAGS = {"flagged", "not flagged"}
# Scores of one model on two machines, or with two engines, may differ by less.
SAME_SCORE = 1e-3


@dataclass(frozen=True)
class Audit:
    """The labelled articles of a sample; ``sample`` weights them, ``kind`` (n,) says why each was drawn.

    ``flags`` (n,) is what the model that drew it decided, from its ``scores`` and at ``threshold``; None for a review
    queue. ``unlabelled`` is the share of the traffic in strata of which no article was labelled, ``without`` the kinds
    of which none was, ``skipped`` the share of the rows without a label before the last one with a label: the rows of
    each kind are in random order, so labels from the first row on are a random sample, and labels picked out are not.
    """

    articles: list[Article]
    sample: Sample
    kind: np.ndarray
    flags: np.ndarray | None
    scores: np.ndarray
    threshold: float | None
    unlabelled: float
    without: list[str]
    skipped: float

    @property
    def random(self) -> bool:
        """Whether the labels are a random sample of the whole traffic, nearly without gaps."""
        return not self.without and max(self.unlabelled, self.skipped) <= MAX_MISSING

    @property
    def negligible(self) -> float:
        """How many of its articles do not change what it says."""
        return max(1, MAX_MISSING * len(self.articles))

    def found_in(self, articles: Sequence[Article]) -> int:
        """How many of its articles have the text of one of these."""
        texts = {plain_text(article) for article in articles}
        return sum(plain_text(article) in texts for article in self.articles)

    def drawn_by(self, scores: np.ndarray, threshold: float) -> bool:
        """Whether the model with these (n,) scores and this threshold drew the sample.

        With another threshold it may flag articles of a stratum of which none that it flags was drawn.
        """
        same = np.abs(scores - self.scores) < SAME_SCORE
        alike = self.flags is not None and np.array_equal(scores >= threshold, self.flags)
        return self.threshold in (None, threshold) and bool(same.all()) and alike  # None in files drawn earlier


def read_audit(path: Path) -> Audit:
    """The rows of ``audit_<model>.jsonl`` or ``review_queue_<model>.jsonl`` that have a label. Raises InputError."""
    rows = load_articles(path)
    _require_one_draw(path, rows)
    labelled = [row for row in rows if row.label is not None]
    if not labelled:
        raise InputError(f'{path}: no article has a label; fill in "label": 0 (journalism) or 1 (commerce)')
    kinds = sorted({row.extra["why"] for row in labelled})
    kind = np.array([kinds.index(row.extra["why"]) for row in labelled])
    # Rows may be left out of the file that is given back, in one of an earlier version without a trace.
    texts = rows[0].extra.get("texts") or _texts_by_kind(rows)
    there = _texts_by_kind(labelled)
    unlabelled = 1 - sum(there.values()) / sum(texts.values())
    without = sorted(texts.keys() - set(kinds))
    # The rows of an audit are in random order: those of a kind of which a stratum has no label are a sample of it all.
    whole = {why for why in DRAWN_BY_FLAGS & set(kinds) if there[why] < texts[why]}
    names = [row.extra["why"] if row.extra["why"] in whole else row.extra["stratum"] for row in labelled]
    sizes = {row.extra["stratum"]: row.extra["stratum_size"] for row in labelled} | {why: texts[why] for why in whole}
    strata = sorted(set(names))
    sample = Sample(
        stratum=np.array([strata.index(name) for name in names]),
        sizes=np.array([sizes[name] for name in strata]),
        copies=np.array([row.extra["copies"] for row in labelled]),
    )
    flags = np.array([row.extra["why"] == "flagged" for row in labelled]) if set(kinds) <= DRAWN_BY_FLAGS else None
    found = [row.extra.get("score") for row in labelled]
    scores = np.array([score if isinstance(score, int | float) else np.nan for score in found])
    threshold = rows[0].extra.get("threshold")
    return Audit(labelled, sample, kind, flags, scores, threshold, unlabelled, without, _skipped(rows))


def _require_one_draw(path: Path, rows: Sequence[Article]) -> None:
    """Raise InputError unless the rows are those of one file that ``audit_sample`` or ``review_queue`` has drawn."""
    first = rows[0].extra
    sizes: dict[str, int] = {}
    texts: set[tuple[str, str]] = set()
    positions: set[tuple[str, int]] = set()
    for number, row in enumerate(rows, start=1):
        where = f"{path}: article {number} ({row.id})"
        if bad := _invalid_key(dict(row.extra)):
            raise InputError(
                f"{where} has no valid {bad}; label a file that --audit or --traffic wrote, and leave its other keys "
                "alone"
            )
        size = sizes.setdefault(row.extra["stratum"], row.extra["stratum_size"])
        audit = row.extra["why"] in DRAWN_BY_FLAGS
        if (
            size != row.extra["stratum_size"]
            or (row.title, row.content) in texts
            or (row.extra["why"], row.extra.get("position")) in positions
            or audit != (first["why"] in DRAWN_BY_FLAGS)
            or any(row.extra.get(key) != first.get(key) for key in ("threshold", "texts"))
        ):
            raise InputError(
                f"{where} comes from a different draw than those before it; pass the rows of one file only"
            )
        texts.add((row.title, row.content))
        if "position" in row.extra:
            positions.add((row.extra["why"], row.extra["position"]))
    for why, n in _texts_by_kind(rows).items():
        if n > first.get("texts", {}).get(why, n):
            raise InputError(
                f'{path}: the strata of "{why}" have more texts, {n:,}, than it was drawn from; label a file that '
                "--audit or --traffic wrote, and leave its other keys alone"
            )


def _invalid_key(row: dict[str, Any]) -> str | None:
    """The first key with an impossible value; rows of earlier versions have neither ``position`` nor ``texts``."""
    known: dict[str, Any] = {"position": 1, "texts": {row.get("why"): 1}} | row
    for key, kind in KEYS.items():
        if type(known.get(key)) is not kind or known[key] <= kind():
            return key
    texts = known["texts"]
    counted = isinstance(texts, dict) and all(type(n) is int and n > 0 for n in texts.values())
    return None if counted and row["why"] in texts else "texts"


def _texts_by_kind(rows: Sequence[Article]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for why, _, size in {(row.extra["why"], row.extra["stratum"], row.extra["stratum_size"]) for row in rows}:
        found[why] += size
    return found


def _skipped(rows: Sequence[Article]) -> float:
    skipped = reached = 0
    for why in {row.extra["why"] for row in rows}:
        of_kind = [row for row in rows if row.extra["why"] == why]
        known = [row.extra.get("position", i) for i, row in enumerate(of_kind, start=1) if row.label is not None]
        last = max(known, default=0)
        reached += last
        skipped += last - len(known)
    return skipped / reached


def _none_of(kinds: Sequence[str]) -> str:
    return f", such as all that is {' or '.join(kinds)}" if kinds else ""


def usable_audit(
    audit: Audit | None, train: Sequence[Article] | None, traffic: Sequence[Article] | None
) -> tuple[Audit | None, bool, list[str]]:
    """What may be counted of the labels.

    Returns:
        The audit, but None where models may have learnt its labels; whether it was drawn from ``traffic``; and what it
        does not measure, a sentence each.
    """
    if audit is None:
        return None, False, []
    if train and (known := audit.found_in(train)) > audit.negligible:
        learnt = (
            f"{known} of the {len(audit.articles)} labelled articles of --audited are training articles, and models "
            "may have learnt their labels, so none is counted; draw a sample from traffic that nobody has trained on"
        )
        return None, False, [learnt]
    doubts = []
    of_traffic = traffic is not None and len(audit.articles) - audit.found_in(traffic) <= audit.negligible
    if traffic and not of_traffic:
        doubts.append(
            "the labelled articles of --audited are not among those of --traffic, and measure the traffic that they "
            "were drawn from; pass both of the same week"
        )
    if audit.flags is not None and not audit.random:
        remedy = "fill them in from the first row on, without gaps, and pass the whole file"
        if audit.skipped <= MAX_MISSING and not audit.without:
            remedy = "label more rows, in the order of the file, until every part has one"
        doubts.append(
            "the labels of --audited are not a random sample, and measure neither precision nor recall: "
            f"{audit.skipped:.0%} of the rows before the last label have none or are gone, and {audit.unlabelled:.0%} "
            f"of the traffic is in parts without one{_none_of(audit.without)}; {remedy}"
        )
    return audit, of_traffic, doubts
