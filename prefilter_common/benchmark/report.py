"""The content of the results file, and what people read of it: the card of conditions, the tables, the picture."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from prefilter_common.benchmark.conditions import Conditions, Options
from prefilter_common.benchmark.rows import (
    BenchmarkRow,
    Reference,
    frontier,
    name_of,
    recommend,
)
from prefilter_common.benchmark.stages.limits import StageNote
from prefilter_common.cli import printable, table
from prefilter_common.evaluation.choice.rules import CRITERIA
from prefilter_common.files import write_bytes
from prefilter_common.runinfo import RunInfo


class BenchmarkResult(TypedDict):
    """What ``results/benchmark_<model>.json`` says; ``skipped`` by engine or stage, with the reason."""

    model: str
    conditions: Conditions
    tolerance: dict[str, float]  # the fields of ``fidelity.Tolerance``
    stages: list[dict[str, object]]  # those of ``contract.Stage``
    stages_on_validation: dict[str, StageNote]
    recommended: str
    verdict: str
    rows: list[BenchmarkRow]
    skipped: dict[str, str]


class BenchmarkSummary(BenchmarkRow, Conditions):
    """What ``cpu_benchmark.json`` says: the recommended row, with the conditions."""

    model: str
    n_samples: int
    verdict: str


class BenchmarkFile(BenchmarkResult):
    """That, and what produced it."""

    run: RunInfo


class RecommendationFile(BenchmarkSummary):
    """That, and what produced it."""

    run: RunInfo


def results_and_summary(
    name: str, rows: Sequence[BenchmarkRow], reference: Reference, conditions: Conditions, skipped: Mapping[str, str],
    options: Options,
) -> tuple[BenchmarkResult, BenchmarkSummary]:  # fmt: skip
    """The content of the results file, and the summary: the recommended row with the conditions."""
    best, notes = recommend(rows), reference.cascade.notes
    reasons = {name: note["reason"] for name, note in notes.items() if "reason" in note}
    verdict = latency_verdict(best["avg_ms"])
    result: BenchmarkResult = {
        "model": name,
        "conditions": conditions,
        "tolerance": asdict(options.tolerance),
        "stages": [asdict(stage) for stage in reference.contract.stages],
        "stages_on_validation": notes,
        "recommended": name_of(best),
        "verdict": verdict,
        "rows": list(rows),
        "skipped": {**skipped, **reasons},
    }
    summary: BenchmarkSummary
    summary = {"model": name, "n_samples": conditions["timed_articles"], **best, "verdict": verdict, **conditions}
    return result, summary


def card(directory: Path, conditions: Conditions, run: RunInfo) -> str:
    """The conditions, before any figure."""
    c, hardware, versions = conditions, run["hardware"], run["versions"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in c["matrix_gflops"].items() if rate)
    processor = hardware["gpu"] if c["device"] == "cuda" else f"{hardware['cpu']}, {hardware['cores']} cores"
    libraries = " ".join(
        f"{name} {versions[name]}" for name in ("torch", "openvino", "onnxruntime") if name in versions
    )
    data = run["data"]["test"]
    name, file = printable(str(directory)), printable(data["file"])
    lengths = f"contents: median {c['median_characters']:,} characters, "
    if like := run["data"].get("lengths_like"):
        lengths += f"at lengths drawn from {printable(like['file'])} (sha256 {like['sha256'][:12]})"
    else:
        lengths += "in full"
    return (
        f"{name} | {processor}, {c['threads']} threads, load before {c['cpu_load_before_percent']:.0f} %\n"
        f"matrix products, billion operations per second: {rates} | {libraries}\n"
        f"{data['rows']} articles of {file}, tokens mean {c['mean_tokens']:.0f} max {c['max_tokens']}; "
        f"{c['timed_articles']} of them one at a time, {c['rounds']} rounds in turn\n"
        f"{lengths}"
    )


def report(result: BenchmarkResult) -> str:
    """Speed, then cost and fidelity of each row; what was refused or skipped and why; the recommendation."""
    rows, conditions = result["rows"], result["conditions"]
    compared = [f"{n:,} of {role}" for role, n in conditions["compared"].items()]
    unread = conditions["unread_articles"]
    speed = [["", "ms", "p50", "p95", "p99", "speed", "rounds", "bound", "articles/s", "speed"]]
    cost = [["", "F1 %", "changed", "largest", "MiB", "disk", "load s", ""]]
    speed += [_speed_cells(row) for row in rows]
    cost += [_cost_cells(row, result["recommended"]) for row in rows]
    lines = [
        table(speed),
        "ms: per article, one at a time, including tokenising; speed: relative to the first row one at a time; rounds:",
        "  its range; bound: share of the speed that the matrix products alone would allow; articles/s: in batches",
        "",
        table(cost),
        "changed: share of decisions, at the operating point with the most, and its upper 95 % limit; largest:",
        "  difference of a score; MiB: peak memory one at a time; disk: MiB",
        f"decisions were compared on {conditions['compared_articles']:,} articles: {', '.join(compared)}",
        "  (rows with stages: only on those on which no stage was fitted or chosen)"
        + ("" if "traffic" in conditions["compared"] else "; --traffic FILE adds more"),
        *(
            ["  in batches: onnxruntime-int8 scales by the whole batch, so an article alone may get another score"]
            if any(row["engine"] == "onnxruntime-int8" for row in rows)
            else []
        ),
        *([f"  without {unread:,} texts that the model cannot read: with every engine they score 0"] if unread else []),
        "",
        *_stage_lines(rows),
        *(f"refused: {name_of(row)}: {row['refused']}" for row in rows if row["refused"]),
        *(f"skipped: {name}: {printable(reason)}" for name, reason in result["skipped"].items()),
    ]
    return "\n".join([*lines, f"recommended: {result['recommended']}, {result['verdict']}"])


def _stage_lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    """What each stage of each cascade decides, and at what cost."""
    cells = [["stages", "", "decides", "ms"]]
    for row in rows:
        for cost in row["stage_costs"] if row["stages"] else ():
            ms = "–" if cost["ms"] is None else f"{cost['ms']:.3g}"
            cells.append([name_of(row), cost["name"], f"{cost['decides']:.0%}", ms])
    if len(cells) == 1:
        return []
    return [table(cells), "decides: share of the test articles; ms: per article that gets there, one at a time", ""]


def _speed_cells(row: BenchmarkRow) -> list[str]:
    low, high = row["relative_speed_rounds"]
    return [
        name_of(row),
        *(f"{ms:.1f}" for ms in (row["avg_ms"], row["p50_ms"], row["p95_ms"], row["p99_ms"])),
        f"{row['relative_speed']:.2f}",
        f"{low:.2f}–{high:.2f}",
        "–" if row["share_of_bound"] is None else f"{row['share_of_bound']:.0%}",
        f"{max(row['articles_per_second'].values()):.1f}",
        f"{row['bulk_relative_speed']:.2f}",
    ]


def _cost_cells(row: BenchmarkRow, recommended: str) -> list[str]:
    limits = [point["changed_interval"][1] for point in row["fidelity"]["points"].values()]
    changed = [point["changed"] for point in row["fidelity"]["points"].values()]
    return [
        f"{name_of(row)} ({row['precision']})",
        "–" if row["f1"] is None else f"{100 * row['f1']:.1f}",
        f"{max(changed):.1%} ≤ {max(limits):.1%}",
        f"{row['fidelity']['max_score_difference']:.1g}",
        f"{row['peak_memory_mib']}",
        f"{row['disk_mib']:.0f}",
        f"{row['load_s']:.1f}",
        "refused" if row["refused"] else "recommended" if name_of(row) == recommended else "",
    ]


def picture(path: Path, result: BenchmarkResult) -> None:
    """Draw latency against F1 with the useful frontier; where no row has an F1, remove an earlier run's picture."""
    rows = [row for row in result["rows"] if row["f1"] is not None]
    if not rows:
        path.unlink(missing_ok=True)
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    useful = frontier([row for row in rows if not row["refused"]])
    axes.plot(
        [row["avg_ms"] for row in useful], [row["f1"] or 0.0 for row in useful],
        color="tab:grey", linewidth=1, zorder=0, label="useful frontier",
    )  # fmt: skip
    for number, row in enumerate(rows, start=1):
        at = row["avg_ms"], row["f1"] or 0.0
        recommended = name_of(row) == result["recommended"]
        colour = "tab:red" if row["refused"] else "tab:green" if recommended else "tab:blue"
        outcome = ", refused" if row["refused"] else ", recommended" if recommended else ""
        marker = "x" if row["refused"] else "o"
        axes.plot(*at, marker, color=colour, label=f"{number}  {name_of(row)}{outcome}")
        axes.annotate(str(number), at, xytext=(4, 4), textcoords="offset points", size=8)
    axes.set(xlabel="mean ms per article, one at a time", ylabel="F1 on the test articles", title=result["model"])
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    write_bytes(path, image.getvalue())


def latency_verdict(avg_ms: float) -> str:
    """The mean against the success criteria."""
    minimum, target = CRITERIA["cpu_ms"]
    if avg_ms < target:
        return f"meets the target (< {target} ms)"
    if avg_ms < minimum:
        return f"meets the minimum (< {minimum} ms), not the target (< {target} ms)"
    return f"misses the minimum (< {minimum} ms)"
