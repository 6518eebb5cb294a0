"""What evaluation prints: one table and the conclusions, at most 100 columns wide."""

import textwrap

from prefilter_common.cli import printable, table
from prefilter_common.evaluation.choice.rules import MEASURES, Measure
from prefilter_common.evaluation.report.content import Compared
from prefilter_common.evaluation.run import ErrorRow, ModelRow
from prefilter_common.evaluation.sections import Quality
from prefilter_common.evaluation.slices import WorstSlice

COLUMNS = 100
NAME, SLICE = 24, 20


def evaluation_summary(results: Compared) -> str:
    """The table, best F1 first and failed models last, and below it what follows from it."""
    ranked = sorted(results["models"].items(), key=lambda item: 1 if "error" in item[1] else -item[1]["f1"])
    rows = [["model", "F1 %", "precision %", "recall %", "ms", "worst slice"]]
    for name, row in ranked:
        if "error" in row:
            rows.append([_fit(name, NAME), "error", "", "", "", ""])
        else:
            mark = " !" if _is_behind(row) else ""
            quality = [_with_interval(row, key) for key in MEASURES]
            cells = [_fit(name, NAME - len(mark)) + mark, *quality, f"{row['avg_inference_ms']:.1f}"]
            rows.append([*cells, _worst(row["worst_slice"])])
    floor = results["_baseline"]
    if floor:
        quality = [_with_interval(floor, key) for key in MEASURES]
        rows.append(["(TF-IDF floor)", *quality, "", ""])
    return "\n".join([table(rows), *_wrapped(_notes(results))])


def _notes(results: Compared) -> list[str]:
    engines = ", ".join(sorted({row["engine"] for row in results["models"].values() if "error" not in row}))
    notes = [
        f"{results['_test']['n_articles']} test articles; 95 % intervals; ms: one article at a time with {engines}, "
        "including tokenising; worst slice: share decided correctly"
    ]
    behind = [name for name, row in results["models"].items() if _is_behind(row)]
    if behind:
        notes.append(f"! does not beat the TF-IDF floor: {', '.join(behind)}")
    notes += [row["verdict"] for row in results["_comparison"]["models"].values()]
    for pair in results["_traffic"]["pairs"] if results["_traffic"] else ():
        # Points at which the two do not differ are skipped, except for the default one.
        for point, compared in pair["points"].items():
            if point == "default" or compared["differ"]:
                notes.append(f"traffic, {point} threshold: {compared['verdict']}")
    notes += [f"warning: {text}" for text in results["_warnings"]]
    choice = results["_choice"]
    notes.append(f"choice: {choice['reason']}")
    for objection in choice["objections"]:
        notes += [f"against it: {objection['suspect']}", f"what to do: {objection['remedy']}"]
    notes += [f"caution: {text}" for text in choice["cautions"]]
    return notes


def _is_behind(row: ModelRow | ErrorRow) -> bool:
    """Whether a model does not beat the floor."""
    return "error" not in row and row["floor"] is not None and not row["floor"]["beats"]


def _wrapped(notes: list[str]) -> list[str]:
    wrapper = textwrap.TextWrapper(width=COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return [line for note in notes for line in wrapper.wrap(printable(note))]


def _with_interval(row: Quality, key: Measure) -> str:
    low, high = row["intervals"][key]
    return f"{100 * row[key]:.1f} {100 * low:.0f}–{100 * high:.0f}"


def _worst(worst: WorstSlice | None) -> str:
    if worst is None:
        return "–"
    by = {"characters": "chars"}.get(worst["by"], worst["by"])
    share = f" {worst['accuracy']:.0%}"
    return _fit(f"{by} {worst['value']}", SLICE - len(share)) + share


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
