"""Which model to ship: the success criteria and decision rules of TRAINING_PLAN.md."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from prefilter_common.evaluation.choice.figures import Assessment, Candidate, Figures, measure_name, ranked_alike
from prefilter_common.evaluation.choice.objections import Objection, differing, objections_to
from prefilter_common.evaluation.traffic.audit import AuditedModel, AuditSection
from prefilter_common.evaluation.traffic.section import TrafficSection
from prefilter_common.statistics.comparison import Comparison
from prefilter_common.statistics.operating_points import DEFAULT

CRITERIA = {
    # (minimum, target)
    "f1": (0.90, 0.95),
    "precision": (0.90, 0.95),
    "recall": (0.85, 0.90),
    "cpu_ms": (100, 50),
}
Measure = Literal["f1", "precision", "recall"]
MEASURES: tuple[Measure, ...] = ("f1", "precision", "recall")


class Choice(TypedDict):
    """The model to ship; see ``choose``."""

    selected: str | None
    operating_point: str | None
    favourite: str | None
    tier: str
    shown: bool
    reason: str
    objections: list[Objection]
    cautions: list[str]
    criteria: dict[str, dict[str, float]]
    models: dict[str, Assessment]


def choose(
    models: Mapping[str, Figures],
    comparison: Comparison | None = None,
    traffic: TrafficSection | None = None,
    audit: AuditSection | None = None,
    queues: Mapping[str, str] | None = None,
) -> Choice:
    """Apply the rules to models at their default operating point.

    The other points are ignored: picking among them by their test figures would be tuning on the test set. Figures of
    an audit go before those of the test set. Several meet the targets: the fastest. Otherwise, of those that meet the
    targets or, if none does, the minimum, the one with the highest precision, since blocking journalism is worse than
    letting commerce through; of equally precise ones that with the highest F1. Speed decides only between models that
    do not differ on the traffic and were timed alike. A latency that was not measured counts as met. Nothing is
    selected while ``objections`` stand against the favourite.

    Args:
        models: by name.
        comparison, traffic, audit: the sections of the results, or None.
        queues: model -> the file of its review queue.

    Returns:
        ``selected`` model and ``operating_point`` (None where there is none), the ``favourite`` of the figures, its
        ``tier``, the ``reason`` in a sentence, ``objections``, ``cautions``, ``shown`` (every interval lies above the
        minimum), the ``criteria``, and for every model what it misses and whether that is shown.
    """
    assessed = {name: _assess(model, audit["models"].get(name) if audit else None) for name, model in models.items()}
    candidates: list[Candidate] = [{"model": name, **row} for name, row in assessed.items()]
    criteria = {key: {"minimum": float(low), "target": float(high)} for key, (low, high) in CRITERIA.items()}
    passing = [c for c in candidates if c["tier"] != "none"]
    pairs = [(pair["better"], pair["models"]) for pair in (audit["pairs"] if audit else ()) if pair["better"]]
    decided = [(winner, next(name for name in both if name != winner)) for winner, both in pairs]
    worse = {loser for winner, loser in decided if assessed[winner]["tier"] != "none"}
    passing = [c for c in passing if c["model"] not in worse] or passing
    if not passing:
        return {
            "selected": None, "operating_point": None, "favourite": None, "tier": "none", "shown": False,
            "reason": _none_reason(candidates), "objections": [], "cautions": [], "criteria": criteria,
            "models": assessed,
        }  # fmt: skip
    rivals = ranked_alike([c for c in passing if c["tier"] == "target"] or passing, models, audit)
    timed_on = {c["model"]: models[c["model"]]["timed_on"] for c in rivals if c["cpu_ms"] is not None}
    unlike = timed_on if len(set(timed_on.values())) > 1 else {}
    best, by_speed = _favourite(rivals, bool(unlike or differing(traffic, {c["model"] for c in rivals})))
    objections = objections_to(best["model"], set(models), assessed, comparison, traffic, audit, queues or {})
    better_than = [c["model"] for c in candidates if (best["model"], c["model"]) in decided and c["tier"] != "none"]
    unfit = [c for c in candidates if (c["model"], best["model"]) in decided and c["tier"] == "none"]
    reason = _reason(best, rivals, better_than, candidates, by_speed)
    return {
        "selected": None if objections else best["model"],
        "operating_point": None if objections else best["operating_point"],
        "favourite": best["model"],
        "tier": "undecided" if objections else best["tier"],
        "shown": all(state == "shown" for state in best["states"].values()),
        "reason": f"None yet. On the figures alone: {reason}" if objections else reason,
        "objections": objections,
        "cautions": _cautions(best, rivals, [] if objections else unfit, models[best["model"]], traffic, unlike),
        "criteria": criteria,
        "models": assessed,
    }


def _favourite(rivals: Sequence[Candidate], apart: bool) -> tuple[Candidate, bool]:
    """The best of models that meet as much, and whether speed decided.

    Speed says nothing of models that are ``apart``, not even between equally good ones: they differ on the traffic, or
    were not timed alike.
    """
    by_speed = rivals[0]["tier"] == "target" and not apart and all(c["cpu_ms"] is not None for c in rivals)
    if by_speed:
        return min(rivals, key=lambda c: (_ms(c), -c["precision"], -c["f1"])), True
    return min(rivals, key=lambda c: (-c["precision"], -c["f1"], 0 if apart else _ms(c))), False


def _assess(model: Figures, audited: AuditedModel | None) -> Assessment:
    """A model's figures, and which criteria they meet; the audit's where it has 20 articles, some of them commerce."""
    metrics = model["operating_points"][DEFAULT]
    source, intervals = "test", dict(metrics["intervals"])
    values: dict[Measure, float] = {key: metrics[key] for key in MEASURES}
    if audited and audited["enough"] and audited["recall"] is not None:
        source = "audit"
        # Of a model that flags none of the commerce that was found, there may be no precision.
        values = {"f1": audited["f1"], "precision": audited["precision"] or 0.0, "recall": audited["recall"]}
        # No interval of F1 is estimated: it rises with both, hence lies between that of their lower limits and that of
        # their upper ones.
        intervals = {key: audited["intervals"][key] for key in ("precision", "recall")}
        limits = zip(*intervals.values(), strict=True)
        intervals["f1"] = [2 * p * r / (p + r) if p + r else 0.0 for p, r in limits]
    values = {key: round(value, 9) for key, value in values.items()}  # a weighted 18 of 20 may be 0.8999999999999999
    misses = {tier: _missed(values, model["cpu_ms"], i) for i, tier in enumerate(("minimum", "target"))}
    tier = "none" if misses["minimum"] else "minimum" if misses["target"] else "target"
    states: dict[str, str] = {key: state_of(values[key], intervals[key], CRITERIA[key][0]) for key in MEASURES}
    return {"operating_point": DEFAULT, "tier": tier, "f1": values["f1"], "precision": values["precision"],
            "recall": values["recall"], "cpu_ms": model["cpu_ms"], "intervals": intervals, "source": source,
            "misses": misses, "states": states}  # fmt: skip


def state_of(value: float, interval: Sequence[float], criterion: float) -> str:
    """``shown`` where the whole interval meets the criterion, ``missed`` where the value does not; or ``not shown``."""
    return "missed" if value < criterion else "shown" if interval[0] >= criterion else "not shown"


def _missed(values: Mapping[Measure, float], ms: float | None, tier: int) -> list[str]:
    slow = ms is not None and ms >= CRITERIA["cpu_ms"][tier]
    return [*(key for key in MEASURES if values[key] < CRITERIA[key][tier]), *(["cpu_ms"] if slow else [])]


def _ms(candidate: Candidate) -> float:
    return float("inf") if candidate["cpu_ms"] is None else candidate["cpu_ms"]


def _figures(c: Candidate) -> str:
    latency = "CPU latency not measured" if c["cpu_ms"] is None else f"{c['cpu_ms']:.0f} ms on the CPU"
    source = " in the audit" if c["source"] == "audit" else ""
    return f"precision {c['precision']:.1%}, recall {c['recall']:.1%}, F1 {c['f1']:.1%}{source}, {latency}"


def _reason(
    best: Candidate, rivals: Sequence[Candidate], beaten: Sequence[str], everyone: Sequence[Candidate], by_speed: bool
) -> str:
    lead = _lead(best, rivals, beaten, everyone, by_speed)
    where = f"{best['model']} at its {best['operating_point']} threshold ({_figures(best)})"
    if best["tier"] == "target":
        return f"{where} meets every target that was measured{lead}."
    missed = ", ".join(measure_name(key) for key in best["misses"]["target"])
    return f"{where} meets the minimum{lead}, though not the target for {missed}."


def _lead(
    best: Candidate, rivals: Sequence[Candidate], beaten: Sequence[str], everyone: Sequence[Candidate], by_speed: bool
) -> str:
    """What sets it apart from the others that meet as much."""
    if len(rivals) == 1 and beaten:
        return f" and according to the labelled articles is right more often than {', '.join(beaten)}"
    if len(rivals) == 1:
        alike = sum(c["tier"] in (best["tier"], "target") for c in everyone)
        if alike > 1:
            shown = "which the labelled articles do not show to be wrong more often than another"
            return f" and is the only one of the {alike} that do {shown}"
        return "" if len(everyone) == 1 else " and is the only one that does"
    others = [c for c in rivals if c is not best]
    if by_speed:
        return f" and is the fastest of the {len(rivals)} that do"
    if all(c["precision"] < best["precision"] for c in others):
        return f" and has the highest precision of the {len(rivals)} that do"
    return f" and none of the {len(rivals)} that do has a higher precision"


def _none_reason(candidates: list[Candidate]) -> str:
    if not candidates:
        return "No model could be evaluated."
    closest = min(candidates, key=lambda c: (len(c["misses"]["minimum"]), -c["precision"], -c["f1"]))
    missed = _missing(closest)
    fix = "a faster engine is needed" if closest["misses"]["minimum"] == ["cpu_ms"] else "more data is needed"
    return f"None meets the minimum: {fix}. Closest is {closest['model']} ({_figures(closest)}), which misses {missed}."


def _cautions(
    best: Candidate, rivals: Sequence[Candidate], unfit: Sequence[Candidate], model: Figures,
    traffic: TrafficSection | None, unlike: Mapping[str, str | None],
) -> list[str]:  # fmt: skip
    cautions = [
        f"according to the labelled articles {c['model']} is right more often, though it misses the minimum for "
        f"{_missing(c)}"
        for c in unfit
    ]
    for key, state in best["states"].items():
        if state == "not shown":
            cautions.append(
                f"{measure_name(key)} may be below the minimum of {CRITERIA[key][0]:.0%}: its interval begins at "
                f"{best['intervals'][key][0]:.1%}; more {best['source']} articles would tell"
            )
    if not traffic and best["source"] == "test":
        cautions.append("it was judged on test articles only: pass --traffic with recent articles of your own")
    elif not traffic:
        cautions.append("it was not compared on recent articles of your own: pass --traffic")
    elif best["source"] == "test":
        cautions.append("its precision in production was not measured: draw a sample with --audit, and label it")
    if unmeasured := ", ".join(c["model"] for c in rivals if c["cpu_ms"] is None):
        cautions.append(
            f"CPU latency was not measured ({unmeasured}): run python benchmark_inference.py on the machine that will "
            "serve"
        )
    if unlike:
        how = "; ".join(f"{name}: {on or 'unknown'}" for name, on in unlike.items())
        cautions.append(f"CPU latencies cannot be compared, and decided nothing ({how}): benchmark each model alike")
    if model["timed_with"] and best["cpu_ms"] is not None:
        judged = "its other figures are of the engine that evaluation ran, every article read in full"
        cautions.append(f"its latency is that of {model['timed_with']}; {judged}")
    if model["beats_floor"] is False:
        cautions.append("it does not beat TF-IDF with logistic regression, which is far cheaper")
    return cautions


def _missing(model: Assessment) -> str:
    return ", ".join(measure_name(key) for key in model["misses"]["minimum"])
