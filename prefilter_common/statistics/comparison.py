"""Two models on the same articles: is one better, or is it chance? Pure functions over numpy arrays."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, norm

from prefilter_common.articles import COMMERCE
from prefilter_common.metrics import CONFIDENCE, as_interval

ALPHA = 1 - CONFIDENCE
POWER = 0.8
RESAMPLES = 10_000


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test (McNemar 1947): p of the split between the articles on which only one is right.

    The articles on which both are right or both wrong say nothing about which is better, so the test is the binomial
    one on the rest. 1.0 where there are none.
    """
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """(k,) p-values, corrected for k tests in a row (Holm 1979): any below alpha keeps the chance of even one false
    alarm among the k below alpha."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def paired_f1_difference(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, seed: int
) -> tuple[float, list[float], float]:
    """F1 of decisions ``a`` minus F1 of decisions ``b``, its percentile-bootstrap interval, and a two-sided p-value.

    Articles are resampled within each label, both decisions of an article together (Efron and Tibshirani 1993, ch. 16).
    An article matters only by its label and the two decisions, so a resample is one multinomial draw for each label.
    """
    rng = np.random.default_rng(seed)
    kind = 2 * a.astype(int) + b.astype(int)  # 0 neither, 1 only b, 2 only a, 3 both
    counts = [np.bincount(kind[labels == label], minlength=4) for label in (0, 1)]
    drawn = [rng.multinomial(c.sum(), c / max(c.sum(), 1), size=RESAMPLES) if c.sum() else c[None] for c in counts]
    observed = float(_f1_gap(*(c[None] for c in counts))[0])
    gaps = _f1_gap(*drawn)
    low, high = np.quantile(gaps, [ALPHA / 2, 1 - ALPHA / 2])
    tail = min((gaps <= 0).sum(), (gaps >= 0).sum())
    return observed, as_interval(low, high), min(1.0, 2 * (tail + 1) / (len(gaps) + 1))


def _f1_gap(journalism: np.ndarray, commerce: np.ndarray) -> np.ndarray:
    n_commerce = commerce.sum(axis=1)

    def f1(kinds: list[int]) -> np.ndarray:
        tp = commerce[:, kinds].sum(axis=1)
        return 2 * tp / np.maximum(n_commerce + tp + journalism[:, kinds].sum(axis=1), 1)

    return f1([2, 3]) - f1([1, 3])


def articles_needed(only_a: int, only_b: int, n: int, alpha: float = ALPHA) -> int | None:
    """How many articles would show the difference seen on these ``n`` with a power of 80 %.

    The sample size of McNemar's test (Miettinen 1968; Connor 1987). None where both are right equally often: then
    there is no difference to go by.
    """
    discordant, difference = (only_a + only_b) / n, abs(only_a - only_b) / n
    if difference == 0:
        return None
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(POWER)
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
    return max(n + 1, math.ceil((root / difference) ** 2))


def compare_with_best(
    labels: np.ndarray, decisions: Mapping[str, np.ndarray], f1: Mapping[str, float], seed: int
) -> dict:
    """Every model against the one with the highest F1, on the same articles.

    A difference counts as supported where both the bootstrap of the F1 difference and McNemar's test say so after
    Holm's correction for the number of models.

    Args:
        labels: (n,) 0 or 1.
        decisions: model -> (n,) bool, called commerce.
        f1: model -> F1 of those decisions.

    Returns:
        ``best``, ``n_articles`` and ``models``: for each of the others the difference, the tests and a ``verdict``.
    """
    if not decisions:
        return {"best": None, "n_articles": len(labels), "models": {}}
    best = max(f1, key=f1.__getitem__)
    others = [name for name in decisions if name != best]
    right = {name: decided == (labels == COMMERCE) for name, decided in decisions.items()}
    rows = {}
    for name in others:
        only_best = int((right[best] & ~right[name]).sum())
        only_this = int((right[name] & ~right[best]).sum())
        gap, interval, p_bootstrap = paired_f1_difference(labels, decisions[best], decisions[name], seed)
        rows[name] = {
            "f1_difference": gap,
            "f1_difference_interval": interval,
            "only_best_right": only_best,
            "only_this_right": only_this,
            "p_bootstrap": p_bootstrap,
            "p_mcnemar": mcnemar(only_best, only_this),
        }
    adjusted = holm([max(row["p_bootstrap"], row["p_mcnemar"]) for row in rows.values()])
    for name, p in zip(others, adjusted, strict=True):
        row = rows[name]
        needed = articles_needed(row["only_best_right"], row["only_this_right"], len(labels), ALPHA / len(others))
        row.update(p_adjusted=float(p), best_is_better=bool(p < ALPHA))
        row["articles_needed"] = None if row["best_is_better"] else needed
        row["verdict"] = _verdict(best, name, row, len(labels))
    return {"best": best, "n_articles": len(labels), "models": rows}


def _verdict(best: str, name: str, row: dict, n: int) -> str:
    if row["best_is_better"]:
        low, high = row["f1_difference_interval"]
        points = f"{100 * row['f1_difference']:.1f} points of F1, 95 % {100 * low:.1f} to {100 * high:.1f}"
        return f"{best} is better than {name}: {points}; p {row['p_adjusted']:.2g}"
    if row["articles_needed"] is None:
        tell = "equally often right here, so no number can be named that would tell"
    else:
        tell = f"about {row['articles_needed']:,} would be needed to tell, if the difference seen is real"
    return f"{best} and {name}: not distinguishable on these {n} articles; {tell}"
