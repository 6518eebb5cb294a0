"""Two models on the same unlabelled articles: where do they decide differently, and is that more than chance?

Equal F1 on a test set does not mean equal decisions in production, where articles are shorter and in other languages.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from prefilter_common.articles import Article
from prefilter_common.evaluation.slices import (
    CHARACTER_EDGES,
    CROSSED,
    MIN_ARTICLES,
    SHORT,
    Slice,
    characters,
    length_slices,
    slices_by,
)
from prefilter_common.evaluation.traffic.rows import (
    Disagreement,
    FlagComparison,
    FlagRate,
    FlagRow,
    PointComparison,
    TrafficPair,
)
from prefilter_common.language import languages
from prefilter_common.statistics.comparison import ALPHA, detectable_difference, holm, mcnemar
from prefilter_common.statistics.intervals import weighted_share
from prefilter_common.statistics.metrics import as_interval, wilson

MAX_DISAGREEMENTS = 15  # in each direction
# Of the articles that either model flags, the share that both flag. Two models that are right about 97 of 100 articles
# of each label share 45 % where 5 % is commerce; below a third, at least one of them is mostly wrong or misses most.
LEAST_OVERLAP = 1 / 3
OVERLAP_CONFIDENCE = 0.99
# How much of the 5 % of false alarms each test may use: all articles; the slices where all articles show a difference
# already, and where they do not. With the overlap that is 3 to 3.5 % at most; in simulations of equally good models
# with 300 to 5,000 articles 1.2 to 2.6 %.
WHOLE, NAMED, SLICES_ALONE = 1 / 2, 1 / 2, 1 / 10


def main_language(articles: Sequence[Article]) -> str:
    """The most frequent one."""
    return slices_by("language", languages(articles))[0].value


def traffic_slices(articles: Sequence[Article], main: str) -> list[Slice]:
    """By language, by length, and by both in four slices: the ``main`` language or not, short or not."""
    spoken, lengths = languages(articles), characters(articles)
    crossed = [
        f"{main if language == main else f'not {main}'}, {'short' if length < SHORT else 'long'}"
        for language, length in zip(spoken, lengths, strict=True)
    ]
    return [
        *slices_by("language", spoken),
        *length_slices("characters", lengths, CHARACTER_EDGES),
        *slices_by(CROSSED, crossed),
    ]


def flag_rates(scores: np.ndarray, thresholds: Mapping[str, float], copies: np.ndarray) -> dict[str, FlagRate]:
    """Share of the articles flagged at each operating point, from (n,) scores and copies of distinct texts."""
    rates: dict[str, FlagRate] = {}
    for name, threshold in thresholds.items():
        flagged = scores >= threshold
        rate, interval = weighted_share(flagged, copies)
        rates[name] = {
            "threshold": threshold,
            "n_flagged": int(copies[flagged].sum()),
            "n_flagged_distinct": int(flagged.sum()),
            "rate": rate,
            "interval": as_interval(*interval),
        }
    return rates


def compare_traffic(
    articles: Sequence[Article],
    scores: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Mapping[str, float]],
    slices: Sequence[Slice],
) -> TrafficPair:
    """Two models, at every operating point that both have.

    Args:
        articles: n articles with distinct texts; labels are not used.
        scores: the two models' names -> (n,) P(commerce).
        thresholds: model -> operating point -> threshold.
        slices: of the articles, from ``traffic_slices``.
    """
    (a, scores_a), (b, scores_b) = scores.items()
    shared = [point for point in thresholds[a] if point in thresholds[b]]
    correlation = float(spearmanr(scores_a, scores_b).statistic) if _vary(scores_a, scores_b) else None
    points: dict[str, PointComparison] = {}
    for point in shared:
        flags_a, flags_b = scores_a >= thresholds[a][point], scores_b >= thresholds[b][point]
        compared = compare_flags((a, b), flags_a, flags_b, slices)
        points[point] = {
            "thresholds": [thresholds[a][point], thresholds[b][point]],
            **compared,
            "disagreements": {
                a: _disagreements(articles, flags_a & ~flags_b, scores_a, scores_b),
                b: _disagreements(articles, flags_b & ~flags_a, scores_a, scores_b),
            },
        }
    return {"models": [a, b], "n_articles": len(articles), "rank_correlation": correlation, "points": points}


def compare_flags(names: tuple[str, str], a: np.ndarray, b: np.ndarray, slices: Sequence[Slice]) -> FlagComparison:
    """Two (n,) bool decisions on distinct texts: flag rates, agreement, and the slices in which they differ.

    They differ beyond chance where McNemar's exact test of the articles flagged by only one of the two says so, of all
    articles at 0.025, or of a slice after Holm's correction for the number of slices, at 0.005; or where clearly less
    than a third of what either flags is flagged by both. Where all articles show a difference, a slice is named at
    0.025, since that raises no further alarm; if none reaches that, one that would without the correction.
    ``p_adjusted`` is scaled so that 0.05 is the limit of each.
    """
    whole, *parts = [Slice("all", "articles", np.ones(len(a), bool)), *slices]
    rows = [_flag_row(part, a, b) for part in (whole, *parts)]
    judged = [row for row in rows[1:] if row["enough"]]
    p_slices = [mcnemar(row["only_first"], row["only_second"]) for row in judged]
    p_whole = min(mcnemar(rows[0]["only_first"], rows[0]["only_second"]) / WHOLE, 1.0)
    rows[0]["p_adjusted"] = p_whole
    for row, p in zip(judged, holm(p_slices), strict=True):
        row["p_adjusted"] = min(float(p) / (NAMED if p_whole < ALPHA else SLICES_ALONE), 1.0)
    different = [row for row in judged if (row["p_adjusted"] or 0.0) < ALPHA]
    # Where all articles show a difference and no slice does, a slice that would alone still says where to look.
    hints = [row for row, p in zip(judged, p_slices, strict=True) if p < ALPHA] if p_whole < ALPHA else []
    # Not the lowest p, which is that of the largest slice: the widest gap is that of the most specific one.
    worst = max(different or hints, key=lambda row: abs(row["difference"]), default=None)
    both, either = int((a & b).sum()), int((a | b).sum())
    apart = bool(wilson(both, either, OVERLAP_CONFIDENCE)[1] < LEAST_OVERLAP)
    compared: FlagComparison = {
        **rows[0],
        "agreement": float((a == b).mean()),
        "kappa": float(cohen_kappa_score(a, b)) if _vary(np.concatenate([a, b])) else None,
        "both": both,
        "either": either,
        "overlap_interval": as_interval(*wilson(both, either)),
        "detectable": detectable_difference(rows[0]["only_first"], rows[0]["only_second"], len(a), ALPHA * WHOLE),
        "slices": rows[1:],
        "worst_slice": None if worst is None else f"{worst['by']} {worst['value']}",
        "flag_apart": apart,
        "differ": bool(different) or p_whole < ALPHA or apart,
        "verdict": "",
    }
    compared["verdict"] = _verdict_on_traffic(names, compared, worst)
    return compared


def _flag_row(part: Slice, a: np.ndarray, b: np.ndarray) -> FlagRow:
    a, b = a[part.members], b[part.members]
    return {
        "by": part.by,
        "value": part.value,
        "n": len(a),
        "enough": len(a) >= MIN_ARTICLES,
        "rates": [float(a.mean()), float(b.mean())],
        "intervals": [as_interval(*wilson(flags.sum(), len(flags))) for flags in (a, b)],
        "difference": float(a.mean() - b.mean()),
        "only_first": int((a & ~b).sum()),
        "only_second": int((b & ~a).sum()),
        "p_adjusted": None,
    }


def _verdict_on_traffic(names: tuple[str, str], compared: FlagComparison, worst: FlagRow | None) -> str:
    def rates(row: FlagRow) -> str:
        return f"{row['rates'][0]:.1%} against {row['rates'][1]:.1%}"

    flags = f"they flag {rates(compared)} of {compared['n']:,} distinct articles"
    shared = f"both flag {compared['both']:,} of the {compared['either']:,} articles that at least one flags"
    if not compared["differ"]:
        points = f"a difference of {100 * compared['detectable']:.1f} points would have been seen with 80 % power"
        seen = points if compared["detectable"] < 1 else "so few articles cannot show any difference"
        return f"{names[0]} and {names[1]}: no difference shown; {flags}, and {shared}; {seen}"
    where = f"; most clearly in {worst['by']} {worst['value']}: {rates(worst)} of {worst['n']:,}" if worst else ""
    apart = f"; {shared}" if compared["flag_apart"] else ""
    return f"{names[0]} and {names[1]} DIFFER: {flags}{where}{apart}"


def _disagreements(articles: Sequence[Article], which: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[Disagreement]:
    """The articles whose scores lie furthest apart, with both scores."""
    where = np.flatnonzero(which)
    furthest = where[np.argsort(-np.abs(a[where] - b[where]), kind="stable")][:MAX_DISAGREEMENTS]
    lengths = characters([articles[i] for i in furthest])
    return [
        {
            "id": articles[i].id,
            "title": articles[i].title[:200],
            "language": articles[i].language,
            "characters": int(length),
            "scores": [round(float(a[i]), 4), round(float(b[i]), 4)],
        }
        for i, length in zip(furthest, lengths, strict=True)
    ]


def _vary(*arrays: np.ndarray) -> bool:
    return all(array.min() != array.max() for array in arrays)
