"""The audit report in, tables for the terminal and an HTML page out."""

from collections import Counter
from pathlib import Path

from prefilter_common.articles import LABEL_NAMES
from prefilter_common.cli import printable, table
from prefilter_common.page import percent, render_page, span
from prefilter_common.splits.audit.rows import AcrossSplits, SplitDescription, WithinSplit
from prefilter_common.splits.audit.run import AuditReport

MAX_LINES = 10  # examples on the terminal; the page and the JSON have more


def write_audit_page(path: Path, report: AuditReport) -> None:
    """Write the report as one self-contained HTML page. Everything is escaped: texts are untrusted input."""
    spoken: Counter[str] = sum((Counter(row["languages"]) for row in _sets(report).values()), Counter())
    values = {
        **report,
        "run": report["_run"],
        "sets": _sets(report),
        "languages": sorted(spoken, key=lambda language: (-spoken[language], language)),
        "label_names": LABEL_NAMES,
    }
    render_page(path, Path(__file__).with_name("page.html.j2"), values, {"two": lambda value: f"{value:.2f}"})


def audit_text(report: AuditReport) -> str:
    """The report as text for the terminal."""
    parts = [_splits(report), _duplicates(report), _shortcuts(report), _distances(report), _suspects(report)]
    warnings = "\n".join(printable(f"- {text}") for text in report["warnings"]) or "none"
    return "\n\n".join([*parts, f"Warnings\n{warnings}"])


def _sets(report: AuditReport) -> dict[str, SplitDescription]:
    """The splits and, if there is any, the traffic."""
    return {**report["splits"], **({"traffic": report["traffic"]} if report["traffic"] else {})}


def _splits(report: AuditReport) -> str:
    rows = [["split", "articles", "commerce", "characters p10/p50/p90", "truncated", "languages"]]
    for name, row in _sets(report).items():
        read = report["reading"]["splits"].get(name)
        labelled = sum(row["labels"].values())
        commerce = percent(row["labels"]["commerce"] / labelled if labelled else None)
        languages = " ".join(list(row["languages"])[:4]) + (" …" if len(row["languages"]) > 4 else "")
        sizes = "/".join(f"{n:,}" for n in row["characters"].values())
        rows.append([name, f"{row['articles']:,}", commerce, sizes, percent(read and read["share_cut"]), languages])
    return table(rows)


def _duplicates(report: AuditReport) -> str:
    found = report["duplicates"]
    named: dict[str, WithinSplit | AcrossSplits]
    named = {f"{row['splits'][1]} in {row['splits'][0]}": row for row in found["across"]}
    named |= {f"within {name}": row for name, row in found["within"].items()}
    rows = [["duplicates", "articles", "kinds"]]
    for name, row in named.items():
        how = ", ".join(f"{n} {kind}" for kind, n in row["kinds"].items()) or "–"
        rows.append([name, str(row["articles"]), how])
    lines = [
        printable(
            f"  {name}: {example['article']['id']} matches {example['other']['id']}, {example['kind']}, "
            f"{example['similarity']:.2f}"
        )
        for name, row in named.items()
        for example in row["examples"][:MAX_LINES]
    ]
    return "\n".join([table(rows), *lines])


def _shortcuts(report: AuditReport) -> str:
    rows = [["label predicted by", "accuracy", "95% interval", "errors left"]]
    for row in report["shortcuts"]:
        left = percent(row["errors_left"], 0) + (" SHORTCUT" if row["is_shortcut"] else "")
        rows.append([row["property"], percent(row["accuracy"]), span(row["interval"]), left])
    fast = report["fast_model"]
    lines = [
        f"Always guessing the more frequent label is right for {percent(report['shortcuts'][0]['majority'])}.",
        f"Fast model: F1 {fast['mixed']['f1']:.3f}, on held-out sources "
        + (f"{fast['held_out']['f1']:.3f}" if fast["held_out"] else "not measured (too few sources)"),
    ]
    return "\n".join([table(rows), *lines])


def _distances(report: AuditReport) -> str:
    rows = [["distance", "language", "length", "told apart by text (ROC-AUC)"]]
    for row in report["distances"]:
        text = row["text"]
        told = "too few articles" if text is None else f"{text['roc_auc']:.2f}"
        rows.append([" – ".join(row["sets"]), percent(row["language"], 0), percent(row["length"], 0), told])
    return table(rows)


def _suspects(report: AuditReport) -> str:
    suspects = report["suspects"]
    issues = sum(row["is_issue"] for row in suspects)
    lines = [f"Doubtful labels: {len(suspects)}, of which confident learning flags {issues}"]
    for row in suspects[:MAX_LINES]:
        assert row["label"] is not None  # every article of a split has one
        label = f"{LABEL_NAMES[row['label']]} {row['probability_of_label']:.2f}"
        lines.append(printable(f"  {row['split']} {row['id']}: {label} {row['title'][:60]}"))
    return "\n".join(lines)
