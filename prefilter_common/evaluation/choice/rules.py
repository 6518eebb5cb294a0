"""Which model to ship: the success criteria and decision rules of TRAINING_PLAN.md."""

from collections.abc import Mapping

from prefilter_common.operating_points import DEFAULT

CRITERIA = {
    # (minimum, target)
    "f1": (0.90, 0.95),
    "precision": (0.90, 0.95),
    "recall": (0.85, 0.90),
    "cpu_ms": (100, 50),
}
QUALITY = ("f1", "precision", "recall")


def choose(models: Mapping[str, dict]) -> dict:
    """Apply the rules to models at their default operating point.

    The other points are not looked at: to pick among them by their test figures would be to tune on the test set.
    Several meet the targets: the fastest. Otherwise, of those that meet the minimum, the one with the highest
    precision, since blocking journalism is worse than letting commerce through. None does: say so. A latency that was
    not measured is taken as met, and the reason says so.

    Args:
        models: name -> ``operating_points`` (name -> metrics with ``intervals``), ``cpu_ms`` (mean milliseconds an
            article, or None) and ``beats_floor`` (None where there is no floor).

    Returns:
        ``selected`` model and ``operating_point`` (None where none meets the minimum), its ``tier``, the ``reason``
        in a sentence, ``cautions``, the ``criteria``, and for every model what it misses.
    """
    assessed = {}
    for name, model in models.items():
        metrics = model["operating_points"][DEFAULT]
        values = {**{key: metrics[key] for key in QUALITY}, "cpu_ms": model["cpu_ms"]}
        misses = {tier: _missed(values, i) for i, tier in enumerate(("minimum", "target"))}
        tier = "none" if misses["minimum"] else "minimum" if misses["target"] else "target"
        assessed[name] = {"operating_point": DEFAULT, "tier": tier, **values, "misses": misses}
    candidates = [{"model": name, **row} for name, row in assessed.items()]
    result = {"criteria": {key: {"minimum": low, "target": high} for key, (low, high) in CRITERIA.items()}}
    passing = [c for c in candidates if c["tier"] != "none"]
    if not passing:
        return {
            "selected": None, "operating_point": None, "tier": "none", "reason": _none_reason(candidates),
            "cautions": [], **result, "models": assessed,
        }  # fmt: skip
    targets = [c for c in passing if c["tier"] == "target"]
    if targets:
        best = min(targets, key=lambda c: (_ms(c), -c["precision"], -c["f1"]))
    else:
        best = min(passing, key=lambda c: (-c["precision"], -c["f1"], _ms(c)))
    return {
        "selected": best["model"], "operating_point": best["operating_point"], "tier": best["tier"],
        "reason": _reason(best, len(targets), len(passing)), "cautions": _cautions(best, models[best["model"]]),
        **result, "models": assessed,
    }  # fmt: skip


def _missed(values: Mapping[str, float | None], tier: int) -> list[str]:
    missed = [key for key in QUALITY if values[key] < CRITERIA[key][tier]]
    ms = values["cpu_ms"]
    return missed + (["cpu_ms"] if ms is not None and ms >= CRITERIA["cpu_ms"][tier] else [])


def _ms(candidate: dict) -> float:
    return float("inf") if candidate["cpu_ms"] is None else candidate["cpu_ms"]


def _figures(c: dict) -> str:
    latency = "CPU latency not measured" if c["cpu_ms"] is None else f"{c['cpu_ms']:.0f} ms on the CPU"
    return f"precision {c['precision']:.1%}, recall {c['recall']:.1%}, F1 {c['f1']:.1%}, {latency}"


def _reason(best: dict, n_targets: int, n_passing: int) -> str:
    where = f"{best['model']} at its {best['operating_point']} threshold ({_figures(best)})"
    if best["tier"] == "target":
        others = f"and is the fastest of the {n_targets} that do" if n_targets > 1 else "and is the only one that does"
        return f"{where} meets every target that was measured {others}."
    missed = ", ".join(_shown(key) for key in best["misses"]["target"])
    others = f"; of the {n_passing} that do it has the highest precision" if n_passing > 1 else ""
    return f"{where} meets the minimum, though not the target for {missed}{others}."


def _none_reason(candidates: list[dict]) -> str:
    if not candidates:
        return "No model could be evaluated."
    closest = min(candidates, key=lambda c: (len(c["misses"]["minimum"]), -c["precision"], -c["f1"]))
    missed = ", ".join(_shown(key) for key in closest["misses"]["minimum"])
    mend = "a faster engine is needed" if closest["misses"]["minimum"] == ["cpu_ms"] else "more data is needed"
    return (
        f"None meets the minimum: {mend}. Closest is {closest['model']} ({_figures(closest)}), which misses {missed}."
    )


def _cautions(best: dict, model: dict) -> list[str]:
    cautions = []
    intervals = model["operating_points"][best["operating_point"]]["intervals"]
    for key in QUALITY:
        if intervals[key][0] < CRITERIA[key][0]:
            cautions.append(
                f"{_shown(key)} may be below the minimum of {CRITERIA[key][0]:.0%}: its interval begins at "
                f"{intervals[key][0]:.1%}; more test articles would tell"
            )
    if best["cpu_ms"] is None:
        cautions.append(
            "CPU latency was not measured: run python benchmark_inference.py on the machine that will serve"
        )
    if model["beats_floor"] is False:
        cautions.append("it does not beat TF-IDF with logistic regression, which is far cheaper")
    return cautions


def _shown(key: str) -> str:
    return {"f1": "F1", "cpu_ms": "CPU latency"}.get(key, key)
