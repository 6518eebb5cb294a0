"""What evaluation prints: one table and the conclusions, at most 100 columns wide."""

import textwrap
from collections.abc import Mapping
from typing import Any

from prefilter_common.cli import printable, table

WIDTH = 100
NAME, SLICE = 24, 20


def evaluation_summary(results: Mapping[str, dict]) -> str:
    """The table, best F1 first and failed models last, and below it what follows from it."""
    models = {name: row for name, row in results.items() if not name.startswith("_")}
    ranked = sorted(models.items(), key=lambda item: -item[1].get("f1", -1))
    rows = [["model", "F1 %", "precision %", "recall %", "ms", "worst slice"]]
    for name, row in ranked:
        if "error" in row:
            rows.append([_fit(name, NAME), "error", "", "", "", ""])
        else:
            mark = " !" if (row["floor"] or {}).get("beats") is False else ""
            quality = [_with_interval(row, key) for key in ("f1", "precision", "recall")]
            cells = [_fit(name, NAME - len(mark)) + mark, *quality, f"{row['avg_inference_ms']:.1f}"]
            rows.append([*cells, _worst(row["worst_slice"])])
    floor = results["_baseline"]
    if floor:
        quality = [_with_interval(floor, key) for key in ("f1", "precision", "recall")]
        rows.append(["(TF-IDF floor)", *quality, "", ""])
    return "\n".join([table(rows), *_wrapped(_notes(results, models))])


def _notes(results: Mapping[str, dict], models: Mapping[str, dict]) -> list[str]:
    notes = [
        f"{results['_test']['n_articles']} test articles; 95 % intervals; ms: one article at a time, including "
        "tokenising; worst slice: share decided correctly"
    ]
    behind = [name for name, row in models.items() if (row.get("floor") or {}).get("beats") is False]
    if behind:
        notes.append(f"! does not beat the TF-IDF floor: {', '.join(behind)}")
    notes += [row["verdict"] for row in results["_comparison"]["models"].values()]
    for pair in (results["_traffic"] or {"pairs": []})["pairs"]:
        # Points at which the two do not differ are skipped, except for the default one.
        for point, compared in pair["points"].items():
            if point == "default" or compared["differ"]:
                notes.append(f"traffic, {point} threshold: {compared['verdict']}")
    notes += [f"warning: {text}" for text in results["_warnings"]]
    choice = results["_choice"]
    notes.append(f"choice: {choice['reason']}")
    for row in choice["objections"]:
        notes += [f"against it: {row['suspect']}", f"what to do: {row['remedy']}"]
    notes += [f"caution: {text}" for text in choice["cautions"]]
    return notes


def _wrapped(notes: list[str]) -> list[str]:
    wrapper = textwrap.TextWrapper(width=WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return [line for note in notes for line in wrapper.wrap(printable(note))]


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    low, high = row["intervals"][key]
    return f"{100 * row[key]:.1f} {100 * low:.0f}–{100 * high:.0f}"


def _worst(worst: dict | None) -> str:
    if worst is None:
        return "–"
    by = {"characters": "chars"}.get(worst["by"], worst["by"])
    share = f" {worst['accuracy']:.0%}"
    return _fit(f"{by} {worst['value']}", SLICE - len(share)) + share


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
