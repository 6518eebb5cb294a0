"""What a reader sees of a benchmark: the card of conditions, the table, the picture of latency against F1."""

from collections.abc import Mapping
from pathlib import Path

from prefilter_common.benchmark import frontier, name_of
from prefilter_common.report import table


def card(directory: Path, conditions: Mapping, run: Mapping) -> str:
    """The conditions, before any figure."""
    c, hardware, versions = conditions, run["hardware"], run["versions"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in c["matrix_gflops"].items() if rate)
    processor = hardware["gpu"] if c["device"] == "cuda" else f"{hardware['cpu']}, {hardware['cores']} cores"
    libraries = " ".join(
        f"{name} {versions[name]}" for name in ("torch", "openvino", "onnxruntime") if name in versions
    )
    data = run["data"]["test"]
    return (
        f"{directory} | {processor}, {c['threads']} threads, load before {c['cpu_load_before_percent']:.0f} %\n"
        f"matrix products, billion operations a second: {rates} | {libraries}\n"
        f"{data['rows']} articles of {data['file']}, tokens mean {c['mean_tokens']:.0f} max {c['max_tokens']}; "
        f"{c['timed_articles']} of them one at a time, {c['rounds']} rounds in turn"
    )


def report(result: Mapping) -> str:
    """Speed, then cost and fidelity of each row; what was refused or skipped and why; the recommendation."""
    rows = result["rows"]
    speed = [["", "ms", "p50", "p95", "p99", "speed", "rounds", "bound", "articles/s", "speed"]]
    cost = [["", "F1 %", "changed", "largest", "MiB", "disk", "load s", ""]]
    speed += [_speed_cells(row) for row in rows]
    cost += [_cost_cells(row, result["recommended"]) for row in rows]
    lines = [
        table(speed),
        "ms: an article, one at a time, tokenising included; speed: relative to the first row one at a time; rounds:",
        "  its range; bound: share of the speed that its matrix products alone would allow; articles/s: in batches",
        "",
        table(cost),
        "changed: share of decisions, the most over the operating points; largest: difference of a score; MiB: peak",
        "  memory one at a time; disk: MiB",
        "",
        *(f"refused: {name_of(row)}: {row['refused']}" for row in rows if row["refused"]),
        *(f"skipped: {name}: {reason}" for name, reason in result["skipped"].items()),
    ]
    note, two_pass = result["two_pass_on_validation"], result["two_pass"]
    if "tokens" in note:
        lines.append(
            f"two passes: the first reads {two_pass['max_length']} tokens; of the validation articles "
            f"{note['read_in_full']:.0%} were then read in full, {note['tokens']:.0%} of the tokens in all"
        )
    return "\n".join([*lines, f"recommended: {result['recommended']}, {result['verdict']}"])


def _speed_cells(row: Mapping) -> list[str]:
    low, high = row["relative_speed_rounds"]
    return [
        f"{name_of(row)}",
        *(f"{row[f'{key}_ms']:.1f}" for key in ("avg", "p50", "p95", "p99")),
        f"{row['relative_speed']:.2f}",
        f"{low:.2f}–{high:.2f}",
        "–" if row["share_of_bound"] is None else f"{row['share_of_bound']:.0%}",
        f"{max(row['articles_per_second'].values()):.1f}",
        f"{row['bulk_relative_speed']:.2f}",
    ]


def _cost_cells(row: Mapping, recommended: str) -> list[str]:
    changed = [point["changed"] for point in row["parity"]["points"].values()]
    largest = row["parity"]["max_score_difference"]
    return [
        f"{name_of(row)} ({row['precision']})",
        "–" if row["f1"] is None else f"{100 * row['f1']:.1f}",
        f"{max(changed):.1%}" if changed else "–",
        "–" if largest is None else f"{largest:.1g}",
        f"{row['peak_memory_mib']}",
        f"{row['disk_mib']:.0f}",
        f"{row['load_s']:.1f}",
        "refused" if row["refused"] else "recommended" if name_of(row) == recommended else "",
    ]


def picture(path: Path, result: Mapping) -> None:
    """Latency against F1, the useful frontier drawn; nothing where no row has an F1."""
    rows = [row for row in result["rows"] if row["f1"] is not None]
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    useful = frontier([row for row in rows if not row["refused"]])
    axes.plot(
        [row["avg_ms"] for row in useful], [100 * row["f1"] for row in useful],
        color="tab:grey", linewidth=1, zorder=0, label="useful frontier",
    )  # fmt: skip
    for number, row in enumerate(rows, start=1):
        at = row["avg_ms"], 100 * row["f1"]
        recommended = name_of(row) == result["recommended"]
        colour = "tab:red" if row["refused"] else "tab:green" if recommended else "tab:blue"
        outcome = ", refused" if row["refused"] else ", recommended" if recommended else ""
        marker = "x" if row["refused"] else "o"
        axes.plot(*at, marker, color=colour, label=f"{number}  {name_of(row)}{outcome}")
        axes.annotate(str(number), at, xytext=(4, 4), textcoords="offset points", size=8)
    axes.set(xlabel="mean ms an article, one at a time", ylabel="F1 % on the test articles", title=result["model"])
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
