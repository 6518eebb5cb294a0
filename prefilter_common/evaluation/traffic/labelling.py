"""Which articles of the traffic to label: the review queue, to learn from, and the audit sample, to measure with.

Both are stratified random samples. Each row names its stratum, the stratum's size and the probability with which it was
drawn, so either, given back with labels, says what a model does to the whole traffic; and its place in the sample, so
that rows which were left out do not go unnoticed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.evaluation.slices import length_and_language
from prefilter_common.files import parse_json
from prefilter_common.statistics.survey import allocate

UNCERTAIN = (0.1, 0.9)
# At most this many articles of a review queue for each reason.
QUOTAS = {"models disagree": 250, "uncertain": 150, "random": 100}
# Disputed articles whose scores lie at least this far apart are drawn apart from the others.
FAR_APART = 0.5
# Strata expected to get fewer rows than this are drawn together: none is left without a row.
FEWEST = 2


class LabelRow(TypedDict):
    """One line of ``review_queue_<model>.jsonl`` or ``audit_<model>.jsonl``: an article whose label is to be filled in.

    ``stratum_size`` and ``copies`` count distinct texts of the stratum, and articles with this text, ``texts`` the
    distinct texts of the traffic for each ``why``; ``position`` counts the rows of the same ``why``, from 1. An audit
    sample has the ``threshold`` of the model that drew it.
    """

    id: str | None
    title: str
    content: str
    label: None
    language: str | None
    source: str | None
    score: float
    threshold: NotRequired[float]
    why: str
    position: NotRequired[int]
    texts: NotRequired[dict[str, int]]
    stratum: str
    stratum_size: int
    inclusion_probability: float
    copies: int


def require_unlabelled(paths: Iterable[Path]) -> None:
    """Raise InputError where a file that will be written contains labels, which are hours of work.

    A line that is not what was written there may be a label with a slip of the hand in it.
    """
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError:
            continue  # there is none
        for number, line in enumerate(lines, start=1):
            if line.strip() and not _without_label(line):
                raise InputError(
                    f"{path}, line {number}: has a label, or was changed by hand, and this run would overwrite it; "
                    f"move the file out of {path.parent}"
                )


def _without_label(line: bytes) -> bool:
    try:
        row = parse_json(line.decode())
    except ValueError:
        return False
    return isinstance(row, dict) and row.get("label") is None


def audit_sample(
    articles: Sequence[Article], copies: np.ndarray, scores: np.ndarray, threshold: float,
    sizes: tuple[int, int], seed: int,
) -> list[LabelRow]:  # fmt: skip
    """Flagged and unflagged articles at random, in proportion to language and length, in random order.

    Any first part of the rows, once labelled, is itself such a sample.

    Args:
        articles: n distinct texts.
        copies: (n,) how many articles have each text.
        scores: (n,) P(commerce).
        sizes: how many flagged and how many unflagged articles to draw.
    """
    rng = np.random.default_rng(seed)
    flagged = scores >= threshold
    cells = np.array(length_and_language(articles), object)
    kinds = {"flagged": (flagged, sizes[0]), "not flagged": (~flagged, sizes[1])}
    rows = []
    for why, (among, n) in kinds.items():
        rows += _draw(rng, articles, copies, scores, why, _cells_of(cells, among, n), n, evenly=False)
    for row in rows:
        row["threshold"] = threshold
    return _numbered([rows[i] for i in rng.permutation(len(rows))], {why: among for why, (among, _) in kinds.items()})


def review_queue(
    articles: Sequence[Article], copies: np.ndarray, scores: np.ndarray, gaps: np.ndarray, disputed: np.ndarray,
    seed: int,
) -> list[LabelRow]:  # fmt: skip
    """The articles whose labels would teach the model the most, at most 500.

    Half are articles that another model decides differently (query by committee, Seung et al. 1992), evenly from every
    language and length and from large and small disagreements, since a model that is surely wrong is wrong where its
    score is extreme. Then some that score 0.1 to 0.9 (uncertainty sampling, Lewis and Gale 1994), then a random part of
    the rest, marked ``random``.

    Args:
        articles: n distinct texts.
        copies: (n,) how many articles have each text.
        scores: (n,) calibrated P(commerce) of the model.
        gaps: (n,) largest distance to another model's score.
        disputed: (n,) bool, decided differently by another model.
    """
    rng = np.random.default_rng(seed)
    cells = np.array(length_and_language(articles), object)
    uncertain = (scores >= UNCERTAIN[0]) & (scores <= UNCERTAIN[1]) & ~disputed
    apart = np.where(gaps >= FAR_APART, ", far apart", ", close")
    kinds = {
        "models disagree": (disputed, cells + apart.astype(object), True),
        "uncertain": (uncertain, cells, True),
        "random": (~disputed & ~uncertain, cells, False),
    }
    rows: list[LabelRow] = []
    spare = 0
    for why, (among, strata, evenly) in kinds.items():
        # What the disputed do not need goes to the uncertain; the random part stays as large as it is.
        quota = QUOTAS[why] + (spare if why == "uncertain" else 0)
        drawn = _draw(rng, articles, copies, scores, why, _cells_of(strata, among, quota), quota, evenly)
        spare = quota - len(drawn)
        rows += [drawn[i] for i in rng.permutation(len(drawn))]
    return _numbered(rows, {why: among for why, (among, _, _) in kinds.items()})


def _numbered(rows: list[LabelRow], kinds: Mapping[str, np.ndarray]) -> list[LabelRow]:
    texts = {why: int(among.sum()) for why, among in kinds.items() if among.any()}
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["why"]] += 1
        row["position"], row["texts"] = seen[row["why"]], texts
    return rows


def _cells_of(cells: np.ndarray, among: np.ndarray, n: int) -> Mapping[str, np.ndarray]:
    """Stratum -> indices of its articles; strata too small to get rows of their own are one, ``other``."""
    where = np.flatnonzero(among)
    if not len(where):
        return {}
    names, index, counts = np.unique(cells[where].astype(str), return_inverse=True, return_counts=True)
    small = counts * n < FEWEST * len(where)
    found = {str(name): where[index == i] for i, name in enumerate(names) if not small[i]}
    if small.any():
        found["other"] = where[small[index]]
    return found


def _draw(
    rng: np.random.Generator, articles: Sequence[Article], copies: np.ndarray, scores: np.ndarray, why: str,
    strata: Mapping[str, np.ndarray], n: int, evenly: bool,
) -> list[LabelRow]:  # fmt: skip
    sizes = np.array([len(members) for members in strata.values()], int)
    rows: list[LabelRow] = []
    for (name, members), k in zip(strata.items(), allocate(sizes, n, evenly), strict=True):
        for i in rng.choice(members, int(k), replace=False).tolist():
            a = articles[i]
            # With its other keys, such as the date that decides whether it may be merged into the training articles.
            more: Any = {key: value for key, value in a.extra.items() if key not in LabelRow.__annotations__}
            rows.append({
                **more, "id": a.id, "title": a.title, "content": a.content, "label": None, "language": a.language,
                "source": a.source, "score": round(float(scores[i]), 6), "why": why, "stratum": f"{why}: {name}",
                "stratum_size": len(members), "inclusion_probability": round(int(k) / len(members), 8),
                "copies": int(copies[i]),
            })  # fmt: skip
    return rows
