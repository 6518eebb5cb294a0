"""From the models' scores to the results: every section, the choice, the files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article, labels_of
from prefilter_common.errors import InputError
from prefilter_common.evaluation.baseline import against_floor, baseline_row
from prefilter_common.evaluation.choice.rules import Choice, choose
from prefilter_common.evaluation.leakage import IntegritySection, integrity_section, repetition_warnings
from prefilter_common.evaluation.production import production_section, production_warnings
from prefilter_common.evaluation.report.content import Compared, Results, Sections
from prefilter_common.evaluation.report.page import write_page
from prefilter_common.evaluation.run import Data, ErrorRow, ModelRow, Options
from prefilter_common.evaluation.sections import Scored, other_configuration, worst_errors
from prefilter_common.evaluation.traffic.answers import usable_audit
from prefilter_common.evaluation.traffic.audit import audit_section
from prefilter_common.evaluation.traffic.coverage import distinct_texts
from prefilter_common.evaluation.traffic.flags import main_language
from prefilter_common.evaluation.traffic.labelling import LabelRow, require_unlabelled
from prefilter_common.evaluation.traffic.section import TrafficSection, traffic_section
from prefilter_common.files import write_json, write_json_lines
from prefilter_common.models.directory import read_contract, read_recommendation, write_contract, write_predictions
from prefilter_common.scoring.engines.interface import REFERENCE
from prefilter_common.statistics.comparison import compare_with_best
from prefilter_common.statistics.operating_points import BEST_F1, DEFAULT, HIGH_PRECISION, MAX_BLOCKED
from prefilter_common.statistics.prevalence import journalism_needed

log = logging.getLogger(__name__)

RESULTS_FILE, PAGE_FILE = "evaluation_results.json", "report.html"


def compare_models(
    data: Data, models: Mapping[str, Scored], rows: Mapping[str, ModelRow | ErrorRow], options: Options
) -> Compared:
    """The results: ``rows``, to each of which ``floor`` is added, and the sections on what several models show.

    Writes the review queues and the audit samples, last of all.
    """
    labels, seed = labels_of(data.test), options.seed
    decisions = {name: model.decisions for name, model in models.items()}
    baseline = baseline_row(data.train, data.test, seed) if data.train else None
    floors = {
        name: baseline and against_floor(labels, decided, baseline[1], seed) for name, decided in decisions.items()
    }
    integrity = integrity_section(data.train, data.test, models, data.beside)
    audited = {name: model.audited for name, model in models.items() if model.audited is not None}
    thresholds = {name: model.threshold for name, model in models.items()}
    labelled, of_traffic, doubts = usable_audit(data.audit, data.train, data.traffic)
    traffic, copies, audit = None, None, None
    files: Mapping[str, Sequence[LabelRow]] = {}
    if data.traffic and models:
        traffic, files = _traffic(replace(data, audit=labelled), models, options)
        copies = distinct_texts(data.traffic)[1]
    if labelled and models:
        main = traffic["main_language"] if traffic else main_language(labelled.articles)
        audit = audit_section(labelled, audited, thresholds, main, of_traffic, seed)
    production = production_section(
        data.test, models, traffic, copies, audit, options.prevalence, options.target_precision, options.costs
    )
    f1 = {name: row["f1"] for name, row in rows.items() if "error" not in row}
    found: Sections = {
        "_settings": {
            "target_precision": options.target_precision,
            "prevalence": list(options.prevalence),
            "costs": options.costs,
            "seed": seed,
            "output": options.output.as_posix(),
        },
        "_test": {"n_articles": len(labels), "n_commerce": int(labels.sum())},
        "_baseline": baseline and baseline[0],
        "_comparison": compare_with_best(labels, decisions, f1, seed),
        "_integrity": integrity,
        "_traffic": traffic,
        "_production": production,
        "_audit": audit,
        "_warnings": [
            *evaluation_warnings(integrity, traffic, models, options),
            *repetition_warnings(data.test),
            *production_warnings(production),
            *doubts,
        ],
        "_worst_errors": {name: worst_errors(data.test, model) for name, model in models.items()},
        "models": {name: row if "error" in row else {**row, "floor": floors[name]} for name, row in rows.items()},
    }
    compared: Compared = {**found, "_choice": choice_of(found)}
    _write_to_label(options.output, files)
    return compared


def _write_to_label(folder: Path, files: Mapping[str, Sequence[LabelRow]]) -> None:
    """Write review queues and audit samples, but none over labels that somebody has given meanwhile."""
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        try:
            require_unlabelled([path])
        except InputError as error:
            log.warning(f"{error}; it is left as it is")
        else:
            write_json_lines(path, rows)


def _traffic(
    data: Data, models: Mapping[str, Scored], options: Options
) -> tuple[TrafficSection, Mapping[str, Sequence[LabelRow]]]:
    assert data.traffic
    pair: Sequence[str] | None = options.traffic_models
    if pair and not set(pair) <= set(models):
        pair = ()  # one of them could not be evaluated
    labelled = [*data.test, *(data.audit.articles if data.audit and data.audit.random else [])]
    return traffic_section(data.traffic, labelled, models, pair, options.audit, options.seed)


def evaluation_warnings(
    integrity: IntegritySection | None, traffic: TrafficSection | None, models: Mapping[str, Scored], options: Options
) -> list[str]:
    """What a reader of the figures must know, one sentence each."""
    found = []
    if integrity and integrity.get("shared"):
        counts = f"{integrity['n_exact']} exact, {integrity['n_near']} near, {integrity['n_contained']} contained"
        ids = ", ".join(str(row["id"]) for row in integrity["shared"][:5])
        found.append(f"copies of training articles in the test set ({counts}): {ids}")
    for where, rows in integrity["others"].items() if integrity else ():
        if rows:
            found.append(f"{len(rows)} {where}: {', '.join(str(row['id']) for row in rows[:5])}")
    for row in traffic["uncovered"] if traffic else []:
        part = f"{row['traffic_share']:.0%} of the traffic ({row['by']} {row['value']})"
        found.append(f"{part} is not covered: the labelled articles {row['lacks']}")
    for name, model in models.items():
        found += [
            f"{name} reads {1 - share:.1%} of the {role} articles; the rest, in characters unknown to it, score 0"
            for role, share in model.unread.items()
            if share
        ]
    bare = [name for name, model in models.items() if model.validation is None and set(model.thresholds) == {DEFAULT}]
    if bare:
        found.append(f"only the default threshold for {', '.join(bare)}: no validation scores, pass --val-data")
    chosen: list[str] = []
    single: list[str] = []
    for name, model in models.items():
        if model.validation is not None:
            (chosen if len(np.unique(model.validation[0])) > 1 else single).append(name)
    if single:
        found.append(f"only the default threshold for {', '.join(single)}: all validation articles have one label")
    without = [name for name in chosen if BEST_F1 not in models[name].thresholds]
    if without:
        found.append(
            f"no best_f1 threshold for {', '.join(without)}: each blocks more than {MAX_BLOCKED:.0%} of the journalism "
            "among the validation articles"
        )
    without = [name for name in chosen if HIGH_PRECISION not in models[name].thresholds]
    if without:
        prevalence, target = options.prevalence[0], options.target_precision
        found.append(
            f"no high_precision threshold for {', '.join(without)}: the validation articles show none with "
            f"{100 * target:g}% precision where {prevalence:.1%} is commerce; about "
            f"{journalism_needed(prevalence, target):,} journalism articles without a false alarm would"
        )
    return found


def choice_of(results: Sections) -> Choice:
    """The choice, which follows from the rest of the results."""
    rows = {name: row for name, row in results["models"].items() if "error" not in row}
    output = Path(results["_settings"]["output"])
    queued = results["_traffic"]["review_queue"] if results["_traffic"] else {}
    return choose(
        {
            name: {
                "operating_points": row["operating_points"],
                "cpu_ms": row["cpu_benchmark_ms"],
                "timed_on": row.get("cpu_benchmark_on"),
                "timed_with": other_configuration(row),
                "beats_floor": row["floor"] and row["floor"]["beats"],
            }
            for name, row in rows.items()
        },
        results["_comparison"],
        results["_traffic"],
        results["_audit"],
        {name: (output / f"review_queue_{name}.jsonl").as_posix() for name, n in queued.items() if n},
    )


def write_models(
    directories: Sequence[Path], test: Sequence[Article], models: Mapping[str, Scored], output: Path
) -> None:
    """Write each model's predictions, and then its operating points into its prefilter.json.

    A directory without prefilter.json, as earlier scripts wrote them, is left as it is. Raises OSError where the
    predictions cannot be written.
    """
    for name, model in models.items():
        write_predictions(output / "predictions" / f"{name}.jsonl", test, model.scores)
    for directory in directories:
        if directory.name in models:
            _write_thresholds(directory, models[directory.name].thresholds)


def _write_thresholds(directory: Path, thresholds: Mapping[str, float]) -> None:
    stored = read_contract(directory)
    if stored is None or thresholds == stored.thresholds:
        return
    try:
        write_contract(directory, stored.with_thresholds(thresholds))
    except OSError as error:
        log.warning(f"{directory}: operating points not written back ({error.strerror})")
        return
    again = f"run the benchmark again: python benchmark_inference.py --model {directory}"
    if stored.stages:
        log.warning(
            f"{directory.name}: its stages ({', '.join(stored.stage_names)}) were chosen for other thresholds and are "
            f"removed; {again}"
        )
    elif (found := read_recommendation(directory)) and "engine" in found:
        reads = found["engine"], found.get("max_length", stored.max_length)
        if reads != (str(REFERENCE), stored.max_length):
            log.warning(
                f"{directory.name}: {reads[0]}, reading {reads[1]} tokens, was compared at other thresholds; {again}"
            )


def write_results(output: Path, results: Results) -> None:
    """Write ``evaluation_results.json`` and ``report.html``."""
    others = {key: value for key, value in results.items() if key not in ("models", "_choice")}
    write_json(output / RESULTS_FILE, {**others, **results["models"], "_choice": results["_choice"]})
    write_page(output / PAGE_FILE, results)
