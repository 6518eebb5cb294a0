"""Numbers -> the page that people read: one self-contained HTML file, drawn by report.html.j2."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prefilter_common.files import write_text
from prefilter_common.plots import Axes, near_one

# HTML allows neither control characters nor halves of UTF-16 pairs, and an article may hold both. The two overrides of
# the writing direction would turn the rest of a sentence round.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufffe\uffff]")
# Up to this many pairs of models the traffic section tells all of each; of more, only of those with the chosen model.
ALL_PAIRS = 3
SWEPT = ("precision", "recall")
QUALITY = ("f1", "precision", "recall", "accuracy")


def write_page(path: Path, data: dict) -> None:
    """Write ``data``, what ``evaluate_models.py`` found, as an HTML page.

    Args:
        path: the file to write.
        data: ``results``, the content of evaluation_results.json, and ``errors``: model -> its worst errors with
            their texts. Texts are hostile input: everything is escaped.
    """
    page = _environment().get_template("report.html.j2").render(**_context(data))
    write_text(path, UNPRINTABLE.sub("\ufffd", page))


def _environment() -> Environment:
    """Escapes every value, and fails rather than leave a hole where one is missing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(pct=_percent, span=_span, points=_points, p=_p_value)
    return environment


def _context(data: Mapping) -> dict:
    """What the template draws: the results by section, models in the order of their F1, and the plots' axes."""
    results, errors = data["results"], data["errors"]
    rows = {name: row for name, row in results.items() if not name.startswith("_")}
    models = dict(sorted(((n, r) for n, r in rows.items() if "error" not in r), key=lambda item: -item[1]["f1"]))
    choice, traffic = results["_choice"], results["_traffic"]
    shown_first = choice["selected"] or results["_comparison"]["best"]
    judged = [*models.values(), *([results["_baseline"]] if results["_baseline"] else [])]
    # Where nothing is flagged any more, a precision of 0 would be drawn that nobody saw.
    sweeps = {name: [step for step in row["sweep"] if step["recall"] > 0] for name, row in models.items()}
    operating = [point for row in models.values() for point in row["operating_points"].values()]
    corner = near_one(point[key] for point in operating for key in SWEPT)
    return {
        **{key: results[f"_{key}"] for key in ("run", "settings", "test", "baseline", "comparison", "integrity")},
        "choice": choice,
        "traffic": traffic,
        "pairs": _pairs(traffic, shown_first),
        "warnings": results["_warnings"],
        "models": models,
        "broken": {name: row["error"] for name, row in sorted(rows.items()) if "error" in row},
        "errors": errors,
        "shown_first": shown_first,
        "scale": _scale(row["intervals"][key][0] for row in judged for key in QUALITY),
        "pr_axes": Axes(corner, 1, corner, 1),
        "pr_lines": {
            name: [(recall, precision) for _, precision, recall in r["pr_curve"]] for name, r in models.items()
        },
        "sweeps": sweeps,
        "sweep_lines": {
            name: {key: [(step["threshold"], step[key]) for step in steps] for key in SWEPT}
            for name, steps in sweeps.items()
        },
        "reliability_axes": Axes(0, 1, 0, 1),
        "sweep_axes": Axes(
            0.5, 1, near_one(step[key] for steps in sweeps.values() for step in steps for key in SWEPT), 1
        ),
        "point_names": {"default": "default", "best_f1": "best F1", "high_precision": "high precision"},
        "measures": {"f1": "F1", "precision": "precision", "recall": "recall", "cpu_ms": "CPU latency"},
        "groups": ("language", "characters", "tokens", "read", "source"),
    }


def _pairs(traffic: Mapping | None, model: str | None) -> list[tuple[dict, bool]]:
    """Every pair compared on the traffic, those with ``model`` first, and whether to tell all of it."""
    pairs = sorted(traffic["pairs"] if traffic else [], key=lambda pair: model not in pair["models"])
    return [(pair, len(pairs) <= ALL_PAIRS or model in pair["models"]) for pair in pairs]


def _scale(lowest: Iterable[float]) -> float:
    """Where the interval bars begin: the tenth below everything that they show."""
    return min(int(10 * min(lowest, default=0)) / 10, 0.9)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _span(interval: tuple[float, float] | None, digits: int = 0) -> str:
    """An interval of fractions, in per cent."""
    return "–" if interval is None else f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"


def _points(value: float) -> str:
    """A difference of fractions, in percentage points with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
