"""From the test set to production: precision where commerce is rare, what is blocked of 1,000 articles, and whose."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from prefilter_common.articles import JOURNALISM, Article, labels_of
from prefilter_common.evaluation.sections import Scored
from prefilter_common.evaluation.slices import MIN_ARTICLES, language_and_length_slices
from prefilter_common.evaluation.traffic.audit import AuditSection
from prefilter_common.evaluation.traffic.rows import FlagRate
from prefilter_common.evaluation.traffic.section import TrafficSection
from prefilter_common.statistics.intervals import effective_size, mid_p
from prefilter_common.statistics.metrics import Interval, as_interval, counts_at
from prefilter_common.statistics.operating_points import DEFAULT, MAX_BLOCKED
from prefilter_common.statistics.prevalence import (
    Costs,
    PerThousand,
    confusion_at,
    journalism_needed,
    per_thousand,
    precision_at,
    prevalence_from_flags,
    saving,
)

BEST_SAVING = "best_saving"
ESTIMATED, AUDITED = "estimated from the traffic", "found by the audit"


class Estimate(TypedDict):
    """The share of commerce in the traffic by one model's flag rate; None where a ``warning`` says why."""

    share: float | None
    interval: list[float] | None
    warning: str | None


class Share(TypedDict):
    """A share of commerce to show, with its interval where it is not assumed."""

    share: float
    interval: list[float] | None
    source: str


class PanelRow(TypedDict):
    """What one operating point would do where ``prevalence`` is commerce; ``source`` says where that share is from."""

    prevalence: float
    prevalence_interval: list[float] | None
    source: str
    point: str
    threshold: float
    precision: float | None
    recall: float | None
    false_positive_rate: float | None
    intervals: dict[str, list[float]]
    per_1000: dict[str, PerThousand]
    saving_per_1000: float | None
    saving_interval: list[float] | None


class BlockedRow(TypedDict):
    """How much of the journalism of one slice is blocked; ``enough`` is false for fewer than 20 articles of it."""

    by: str
    value: str
    n_journalism: int
    n_blocked: int
    rate: float
    interval: list[float]
    enough: bool


class ProductionRow(TypedDict):
    """What one model would do in production; ``blocked`` has the worst slice first."""

    prevalence_estimate: Estimate | None
    panel: list[PanelRow]
    blocked: list[BlockedRow]


class ProductionSection(TypedDict):
    """That of every model; ``journalism_needed`` by assumed share of commerce."""

    assumed: list[float]
    costs: Costs | None
    journalism_needed: dict[str, int]
    models: dict[str, ProductionRow]


def production_section(
    test: Sequence[Article],
    models: Mapping[str, Scored],
    traffic: TrafficSection | None,
    copies: np.ndarray | None,
    audit: AuditSection | None,
    assumed: Sequence[float],
    target_precision: float,
    costs: Costs | None,
) -> ProductionSection:
    """For each model and operating point, what it would do at each share of commerce.

    Args:
        traffic: the section of that name, for the flag rates; with ``copies``, how often each distinct text occurs.
        audit: the section of that name, for the share of commerce that it found.
        assumed: shares of commerce to show; that of the traffic is added where it can be estimated.
    """
    labels = labels_of(test)
    rows: dict[str, ProductionRow] = {}
    for name, model in models.items():
        rate = traffic and traffic["flag_rates"][name][DEFAULT]
        flags = None if model.traffic is None else model.traffic >= model.threshold
        estimate = _estimate(labels, model, rate, 0.0 if copies is None else effective_size(copies, flags))
        shares: list[Share] = [{"share": share, "source": "assumed", "interval": None} for share in assumed]
        if estimate and estimate["share"] is not None:
            shares.append({"share": estimate["share"], "interval": estimate["interval"], "source": ESTIMATED})
        found = audit["models"].get(name) if audit else None
        if found and found["prevalence"] is not None:
            shares.append({
                "share": found["prevalence"], "interval": found["intervals"]["prevalence"], "source": AUDITED,
            })  # fmt: skip
        rows[name] = {
            "prevalence_estimate": estimate,
            "panel": [
                _panel_row(labels, model.scores, point, threshold, share, costs)
                for share in shares
                for point, threshold in _points(model, share["share"], costs).items()
            ],
            "blocked": blocked_by_slice(test, model),
        }
    return {
        "assumed": list(assumed),
        "costs": costs,
        "journalism_needed": {str(share): journalism_needed(share, target_precision) for share in assumed},
        "models": rows,
    }


def _points(model: Scored, prevalence: float, costs: Costs | None) -> dict[str, float]:
    """The operating points, and that of the best saving, which depends on the share of commerce."""
    points = dict(model.thresholds)
    if costs and model.validation:
        best = best_saving_threshold(*model.validation, prevalence, costs)
        if best is not None:
            points.setdefault(BEST_SAVING, best)  # a point of this name may be the user's own
    return points


def best_saving_threshold(labels: np.ndarray, scores: np.ndarray, prevalence: float, costs: Costs) -> float | None:
    """The threshold with the highest expected saving on (n,) validation articles that blocks at most 5 % of the
    journalism there, whatever the costs; None where none saves anything.

    Half a false alarm is added, or else a few journalism articles without one would show that there never is one.
    """
    present = np.unique(scores)
    candidates = (present[1:] + present[:-1]) / 2
    tp, fp, fn, tn = counts_at(labels, scores, candidates)
    found, blocked = tp / np.maximum(tp + fn, 1), (fp + 0.5) / (fp + tn + 1)
    gain = prevalence * found * costs["per_article"]
    loss = (1 - prevalence) * blocked * (costs["of_blocking"] - costs["per_article"])
    total = np.where(fp <= MAX_BLOCKED * (fp + tn), gain - loss, -np.inf)
    if total.max(initial=0) <= 0:
        return None
    return round(float(candidates[total.argmax()]), 12)  # as in choose_thresholds


def _estimate(labels: np.ndarray, model: Scored, rate: FlagRate | None, n_effective: float) -> Estimate | None:
    """The share of commerce in the traffic, from the flag rate; with a warning where it cannot be believed."""
    if not rate:
        return None
    confusion = confusion_at(labels, model.scores, model.threshold)
    found = prevalence_from_flags(rate["rate"], n_effective, confusion)
    warning = None
    unlike = "by the test set: the traffic is of another kind, and no share of commerce fits both"
    if found and found[1][1] < 1e-9:
        low, high = (float(limit) for limit in mid_p(confusion["fp"], confusion["n_journalism"]))
        alone = f"less than the {low:.1%} to {high:.1%} that false alarms alone would give"
        warning = f"it flags {rate['rate']:.1%} of the traffic, {alone} {unlike}"
    elif found and found[1][0] > 1 - 1e-9:
        low, high = (float(limit) for limit in mid_p(confusion["tp"], confusion["n_commerce"]))
        all_commerce = f"more than the {low:.1%} to {high:.1%} that it would flag if all of it were commerce,"
        warning = f"it flags {rate['rate']:.1%} of the traffic, {all_commerce} {unlike}"
    elif found is None:
        warning = "it flags journalism at least as often as commerce on the test set: no share can be estimated"
    if found is None or warning:
        return {"share": None, "interval": None, "warning": warning}
    return {"share": found[0], "interval": as_interval(*found[1]), "warning": None}


def _panel_row(
    labels: np.ndarray, scores: np.ndarray, point: str, threshold: float, share: Share, costs: Costs | None
) -> PanelRow:
    confusion = confusion_at(labels, scores, threshold)
    # Where the share is an estimate, the limits are the widest that one within its interval would give.
    shares = [share["share"], *(share["interval"] or ())]
    precisions = [precision_at(each, confusion) for each in shares]
    thousands = [per_thousand(each, confusion) for each in shares]
    savings = [saving(each, confusion, costs) for each in shares] if costs else []
    n_commerce, n_journalism = confusion["n_commerce"], confusion["n_journalism"]
    return {
        "prevalence": share["share"],
        "prevalence_interval": share["interval"],
        "source": share["source"],
        "point": point,
        "threshold": threshold,
        "precision": precisions[0][0],
        "recall": confusion["tp"] / n_commerce if n_commerce else None,
        "false_positive_rate": confusion["fp"] / n_journalism if n_journalism else None,
        "intervals": {
            "precision": _widest([limits for _, limits in precisions]),
            "recall": as_interval(*mid_p(confusion["tp"], n_commerce)),
            "false_positive_rate": as_interval(*mid_p(confusion["fp"], n_journalism)),
        },
        "per_1000": {
            name: {"value": found["value"], "interval": _widest([each[name]["interval"] for each in thousands])}
            for name, found in thousands[0].items()
        },
        "saving_per_1000": savings[0][0] if savings else None,
        "saving_interval": _widest([limits for _, limits in savings]) if savings else None,
    }


def _widest(intervals: Sequence[Sequence[float] | Interval]) -> list[float]:
    return as_interval(min(float(low) for low, _ in intervals), max(float(high) for _, high in intervals))


def blocked_by_slice(test: Sequence[Article], model: Scored) -> list[BlockedRow]:
    """Share of the journalism that is blocked, by language, by length and by both at once, the worst first."""
    journalism, blocked = labels_of(test) == JOURNALISM, model.decisions
    rows: list[BlockedRow] = []
    for part in language_and_length_slices(test):
        n, k = int((part.members & journalism).sum()), int((part.members & journalism & blocked).sum())
        if n:
            rows.append({
                "by": part.by, "value": part.value, "n_journalism": n, "n_blocked": k, "rate": k / n,
                "interval": as_interval(*mid_p(k, n)), "enough": n >= MIN_ARTICLES,
            })  # fmt: skip
    return sorted(rows, key=lambda row: (not row["enough"], -row["rate"], -row["n_journalism"]))


def production_warnings(section: ProductionSection) -> list[str]:
    """Why an estimate is missing, one sentence each."""
    return [
        f"{name}: {row['prevalence_estimate']['warning']}"
        for name, row in section["models"].items()
        if row["prevalence_estimate"] and row["prevalence_estimate"]["warning"]
    ]
