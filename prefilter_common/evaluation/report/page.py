"""Numbers -> the page that people read: one self-contained HTML file, drawn by page.html.j2."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from prefilter_common.evaluation.choice.figures import measure_name
from prefilter_common.evaluation.report.content import Results
from prefilter_common.evaluation.report.plots import Axes, near_one
from prefilter_common.evaluation.traffic.rows import TrafficPair
from prefilter_common.evaluation.traffic.section import TrafficSection
from prefilter_common.page import render_page, span

# Up to this many pairs of models the traffic section shows each in full; of more, only those with the chosen model.
ALL_PAIRS = 3
SWEPT: tuple[Literal["precision", "recall"], ...] = ("precision", "recall")
POINT_NAMES = {
    "default": "default",
    "best_f1": "best F1",
    "high_precision": "high precision",
    "best_saving": "best saving",
}
QUALITY: tuple[Literal["f1", "precision", "recall", "accuracy"], ...] = ("f1", "precision", "recall", "accuracy")


def write_page(path: Path, results: Results) -> None:
    """Write ``results``, the content of evaluation_results.json, as an HTML page.

    Texts are hostile input: everything is escaped.
    """
    template = Path(__file__).with_name("page.html.j2")
    render_page(path, template, _context(results), FILTERS)


def _context(results: Results) -> dict[str, Any]:
    """What the template draws: the results by section, models in the order of their F1, and the plots' axes."""
    rows, choice, traffic = results["models"], results["_choice"], results["_traffic"]
    models = dict(sorted(((n, r) for n, r in rows.items() if "error" not in r), key=lambda item: -item[1]["f1"]))
    shown_first = choice["favourite"] or results["_comparison"]["best"]
    intervals = [row["intervals"] for row in models.values()]
    intervals += [results["_baseline"]["intervals"]] if results["_baseline"] else []
    # Where nothing is flagged any more, a precision of 0 would be drawn that nobody saw.
    sweeps = {name: [step for step in row["sweep"] if step["recall"] > 0] for name, row in models.items()}
    operating = [point for row in models.values() for point in row["operating_points"].values()]
    corner = near_one(point[key] for point in operating for key in SWEPT)
    # Of all thresholds, so that every operating point lies inside, wherever it is.
    curves = {
        name: {key: [(step[0], step[1 + i]) for step in row["pr_curve"] if step[2] > 0] for i, key in enumerate(SWEPT)}
        for name, row in models.items()
    }
    return {
        "run": results["_run"],
        "settings": results["_settings"],
        "test": results["_test"],
        "baseline": results["_baseline"],
        "comparison": results["_comparison"],
        "integrity": results["_integrity"],
        "production": results["_production"],
        "audit": results["_audit"],
        "choice": choice,
        "traffic": traffic,
        "pairs": _pairs(traffic, shown_first),
        "warnings": results["_warnings"],
        "models": models,
        "broken": {name: row["error"] for name, row in sorted(rows.items()) if "error" in row},
        "errors": results["_worst_errors"],
        "shown_first": shown_first,
        "scale": _scale(limits[key][0] for limits in intervals for key in QUALITY),
        "pr_axes": Axes(corner, 1, corner, 1),
        "pr_lines": {
            name: [(recall, precision) for _, precision, recall in r["pr_curve"]] for name, r in models.items()
        },
        "sweeps": sweeps,
        "sweep_lines": curves,
        "reliability_axes": Axes(0, 1, 0, 1),
        "sweep_axes": Axes(
            0, 1, near_one(value for lines in curves.values() for line in lines.values() for _, value in line), 1
        ),
        "point_names": POINT_NAMES,
        "measures": {key: measure_name(key) for key in ("f1", "precision", "recall", "cpu_ms")},
        "groups": ("language", "characters", "tokens", "read", "sources", "source"),
    }


def _pairs(traffic: TrafficSection | None, model: str | None) -> list[tuple[TrafficPair, bool]]:
    """Every pair compared on the traffic, those with ``model`` first, and whether to show it in full."""
    pairs = sorted(traffic["pairs"] if traffic else [], key=lambda pair: model not in pair["models"])
    return [(pair, len(pairs) <= ALL_PAIRS or model in pair["models"]) for pair in pairs]


def _scale(lowest: Iterable[float]) -> float:
    """Where the interval bars begin: the tenth below everything that they show."""
    return min(int(10 * min(lowest, default=0)) / 10, 0.9)


def _exact(value: float | None) -> str:
    """A fraction in per cent with one decimal; more than none and less than all stay visible as such."""
    if value is None:
        return "–"
    return "> 99.9%" if 0.9995 <= value < 1 else "< 0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


def _exact_span(interval: Sequence[float] | None) -> str:
    """An interval of fractions, in per cent; with a decimal where it would seem to be a single value without."""
    if interval is None:
        return "–"
    low, high = interval
    return span(interval, 1 if round(100 * low) == round(100 * high) else 0)


def _money(value: float) -> str:
    """An amount in the currency that the costs were given in, which may be fractions of a cent."""
    return (f"{value:,.2f}" if abs(value) >= 1 or not value else f"{value:.2g}").replace("-", "−")


def _points(value: float) -> str:
    """A difference of fractions, in percentage points with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


FILTERS: dict[str, Callable] = {
    "points": _points,
    "p": _p_value,
    "exact": _exact,
    "exact_span": _exact_span,
    "money": _money,
}
