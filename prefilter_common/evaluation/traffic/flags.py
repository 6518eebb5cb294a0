"""Two models on the same unlabelled articles: where do they decide differently, and is that more than chance?

Equal F1 on a test set does not mean equal decisions in production, where articles are shorter and in other languages.
Pure functions over numpy arrays.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from prefilter_common.articles import Article
from prefilter_common.comparison import ALPHA, holm, mcnemar
from prefilter_common.metrics import as_interval, wilson
from prefilter_common.slices import (
    CHARACTERS,
    MIN_ARTICLES,
    Slice,
    buckets,
    characters,
    languages,
    slices_by,
)

SHORT = 250  # characters; most of what a feed delivers
MAX_DISAGREEMENTS = 15  # in each direction
UNCERTAIN = (0.1, 0.9)
MAX_REVIEW = 500


def traffic_slices(articles: Sequence[Article]) -> list[Slice]:
    """By language, by length, and by both in four: the main language or not, short or not."""
    spoken, lengths = languages(articles), characters(articles)
    by_language = slices_by("language", spoken)
    main = by_language[0].value
    crossed = [
        f"{main if language == main else f'not {main}'}, {'short' if length < SHORT else 'long'}"
        for language, length in zip(spoken, lengths, strict=True)
    ]
    return [
        *by_language,
        *slices_by("characters", buckets(lengths, CHARACTERS)),
        *slices_by("language and length", crossed),
    ]


def flag_rates(scores: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, dict]:
    """Share of the (n,) articles called commerce at each operating point, with its interval."""
    rates = {}
    for name, threshold in thresholds.items():
        flagged = int((scores >= threshold).sum())
        interval = as_interval(*wilson(flagged, len(scores)))
        rates[name] = {
            "threshold": threshold, "n_flagged": flagged, "rate": flagged / len(scores), "interval": interval,
        }  # fmt: skip
    return rates


def compare_traffic(
    articles: Sequence[Article],
    scores: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Mapping[str, float]],
    slices: Sequence[Slice],
) -> dict:
    """Two models, at every operating point that both have.

    Args:
        articles: n articles; labels are not used.
        scores: the two models' names -> (n,) P(commerce).
        thresholds: model -> operating point -> threshold.
        slices: of the articles, from ``traffic_slices``.
    """
    (a, scores_a), (b, scores_b) = scores.items()
    shared = [point for point in thresholds[a] if point in thresholds[b]]
    correlation = float(spearmanr(scores_a, scores_b).statistic) if _vary(scores_a, scores_b) else None
    points = {}
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


def compare_flags(names: tuple[str, str], a: np.ndarray, b: np.ndarray, slices: Sequence[Slice]) -> dict:
    """Two (n,) bool decisions: flag rates, agreement, Cohen's kappa (1960), and the slices in which they differ.

    A difference is beyond chance where McNemar's exact test of the articles flagged by only one of the two gives
    p < 0.05 after Holm's correction for the number of slices judged plus the whole.
    """
    whole, *parts = [Slice("all", "articles", np.ones(len(a), bool)), *slices]
    rows = [_flag_row(part, a, b) for part in (whole, *parts)]
    judged = [rows[0], *(row for row in rows[1:] if row["enough"])]
    for row, p in zip(judged, holm([mcnemar(row["only_first"], row["only_second"]) for row in judged]), strict=True):
        row["p_adjusted"] = float(p)
    different = [row for row in judged[1:] if row["p_adjusted"] < ALPHA]
    # The least likely first; p-values of thousands of articles can all be 0.0, then the widest gap.
    worst = min(different, key=lambda row: (row["p_adjusted"], -abs(row["difference"])), default=None)
    kappa = float(cohen_kappa_score(a, b)) if _vary(np.concatenate([a, b])) else None
    return {
        **rows[0],
        "agreement": float((a == b).mean()),
        "kappa": kappa,
        "slices": rows[1:],
        "worst_slice": None if worst is None else f"{worst['by']} {worst['value']}",
        "differ": worst is not None or rows[0]["p_adjusted"] < ALPHA,
        "verdict": _verdict(names, rows[0], worst),
    }


def _flag_row(part: Slice, a: np.ndarray, b: np.ndarray) -> dict:
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


def _verdict(names: tuple[str, str], whole: dict, worst: dict | None) -> str:
    def rates(row: dict) -> str:
        return f"{row['rates'][0]:.1%} against {row['rates'][1]:.1%}"

    pair = f"{names[0]} and {names[1]}"
    if worst is None and whole["p_adjusted"] >= ALPHA:
        return f"{pair} flag alike: {rates(whole)} of {whole['n']:,} articles, no slice differs beyond chance"
    where = f"; most clearly in {worst['by']} {worst['value']}: {rates(worst)} of {worst['n']:,}" if worst else ""
    return f"{pair} DIFFER: they flag {rates(whole)} of {whole['n']:,} articles{where}"


def _disagreements(articles: Sequence[Article], which: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[dict]:
    """The articles in which the scores lie furthest apart, both scores beside them."""
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


def review_queue(articles: Sequence[Article], scores: np.ndarray, disputed: np.ndarray) -> list[dict]:
    """The articles whose labels would teach the most, the most informative first, at most 500.

    Those that another model decides otherwise (query by committee, Seung et al. 1992) come first, then those in the
    uncertain band from 0.1 to 0.9 (uncertainty sampling, Lewis and Gale 1994); within each the nearest to 0.5. A text
    that occurs twice is asked for once.

    Args:
        scores: (n,) calibrated P(commerce) of the model that is to learn.
        disputed: (n,) bool, decided otherwise by another model.
    """
    uncertain = (scores >= UNCERTAIN[0]) & (scores <= UNCERTAIN[1])
    distance = np.abs(scores - 0.5)
    rows, seen = [], set()
    for i in np.lexsort((distance, ~disputed)):
        article = articles[i]
        text = (article.title, article.content)
        if not (disputed[i] or uncertain[i]) or text in seen:
            continue
        seen.add(text)
        rows.append({
            "id": article.id, "title": article.title, "content": article.content, "label": None,
            "language": article.language, "source": article.source, "score": round(float(scores[i]), 6),
            "why": "models disagree" if disputed[i] else "uncertain",
        })  # fmt: skip
        if len(rows) == MAX_REVIEW:
            break
    return rows


def _vary(*arrays: np.ndarray) -> bool:
    return all(array.min() != array.max() for array in arrays)
