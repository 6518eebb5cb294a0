"""From the models' scores to the results: every section, the choice, the files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefilter_common.articles import labels_of
from prefilter_common.evaluation import sections
from prefilter_common.evaluation.baseline import against_floor, baseline_row
from prefilter_common.evaluation.choice.rules import choose
from prefilter_common.evaluation.leakage import integrity_section
from prefilter_common.evaluation.production import production_section, production_warnings
from prefilter_common.evaluation.report.page import write_page
from prefilter_common.evaluation.run import Data, Options
from prefilter_common.evaluation.sections import Scored
from prefilter_common.evaluation.traffic.audit import audit_section
from prefilter_common.evaluation.traffic.coverage import distinct_texts
from prefilter_common.evaluation.traffic.flags import main_language
from prefilter_common.files import write_json, write_json_lines
from prefilter_common.statistics.comparison import compare_with_best

RESULTS_FILE, PAGE_FILE = "evaluation_results.json", "report.html"


def compare(data: Data, models: Mapping[str, Scored], rows: Mapping[str, dict[str, Any]], options: Options) -> dict:
    """The results: ``rows``, to each of which ``floor`` is added, and the sections on what several models show.

    Writes the review queues and the audit samples.
    """
    labels, seed = labels_of(data.test), options.seed
    decisions = {name: model.decisions for name, model in models.items()}
    baseline = baseline_row(data.train, data.test, seed) if data.train else None
    floors = {
        name: baseline and against_floor(labels, decided, baseline[1], seed) for name, decided in decisions.items()
    }
    integrity = integrity_section(data.train, data.test, models, data.val or data.beside)
    audited = {name: model.audited for name, model in models.items() if model.audited is not None}
    thresholds = {name: model.threshold for name, model in models.items()}
    traffic, copies, audit = None, None, None
    if data.traffic and models:
        traffic, copies = _traffic(data, models, options), distinct_texts(data.traffic)[1]
    if data.audit and models:
        main = traffic["main_language"] if traffic else main_language(data.audit.articles)
        audit = audit_section(data.audit, audited, thresholds, main, seed)
    production = production_section(
        data.test, models, traffic, copies, audit, options.prevalence, options.target_precision, options.costs
    )
    warnings = sections.warnings_of(integrity, traffic, models, options.prevalence[0], options.target_precision)
    return conclude({
        "_settings": {
            "target_precision": options.target_precision,
            "prevalence": list(options.prevalence),
            "costs": options.costs,
            "seed": seed,
            "output": options.output.as_posix(),
        },
        "_test": {"n_articles": len(labels), "n_commerce": int(labels.sum())},
        "_baseline": baseline and baseline[0],
        "_comparison": compare_with_best(labels, decisions, {name: rows[name]["f1"] for name in models}, seed),
        "_integrity": integrity,
        "_traffic": traffic,
        "_production": production,
        "_audit": audit,
        "_warnings": warnings + production_warnings(production),
        "_worst_errors": {name: sections.worst_errors(data.test, model) for name, model in models.items()},
        **{name: {**row, "floor": floors[name]} if name in models else row for name, row in rows.items()},
    })  # fmt: skip


def _traffic(data: Data, models: Mapping[str, Scored], options: Options) -> dict[str, Any]:
    assert data.traffic
    pair: Sequence[str] | None = options.traffic_models
    if pair and not set(pair) <= set(models):
        pair = ()  # one of them could not be evaluated
    labelled = [*data.test, *(data.audit.articles if data.audit and data.audit.random else [])]
    section, files = sections.traffic_section(data.traffic, labelled, models, pair, options.audit, options.seed)
    for name, rows in files.items():
        write_json_lines(options.output / f"{name}.jsonl", rows)
    return section


def conclude(results: dict[str, Any]) -> dict[str, Any]:
    """The results with ``_choice``, which follows from the rest of them."""
    rows = {name: row for name, row in results.items() if not name.startswith("_") and "error" not in row}
    output = Path(results["_settings"]["output"])
    queued = (results["_traffic"] or {"review_queue": {}})["review_queue"]
    choice = choose(
        {
            name: {
                "operating_points": row["operating_points"],
                "cpu_ms": row["cpu_benchmark_ms"],
                "beats_floor": row["floor"] and row["floor"]["beats"],
            }
            for name, row in rows.items()
        },
        results["_comparison"],
        results["_traffic"],
        results["_audit"],
        {name: (output / f"review_queue_{name}.jsonl").as_posix() for name, n in queued.items() if n},
    )
    return {**results, "_choice": choice}


def refresh_latency(output: Path, model: str, cpu_ms: float) -> bool:
    """Add a latency measured after the evaluation to its results, and write its choice and page again.

    Returns whether ``output`` has results of this model. Results of an earlier version are left alone.
    """
    path = output / RESULTS_FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results[model]["f1"], results["_worst_errors"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    results[model]["cpu_benchmark_ms"] = cpu_ms
    write_results(output, conclude(results))
    return True


def write_results(output: Path, results: dict[str, Any]) -> None:
    """Write ``evaluation_results.json`` and ``report.html``."""
    write_json(output / RESULTS_FILE, results)
    write_page(output / PAGE_FILE, results)
