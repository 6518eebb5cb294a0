#!/usr/bin/env python3
"""Score every model under models/ on the test set, compare them honestly, and say which to ship.

For each model directory: batched scoring of all articles (quality), and one article at a time of a sample spread over
the lengths (latency, tokenising included, synchronised on a GPU). Every figure has a 95 % interval; models are
compared on the same articles, by slices, against a TF-IDF floor, and with --traffic on unlabelled articles. Thresholds
are chosen on the validation scores that training left in the model directory (else --val-data) and written into its
prefilter.json. A model that cannot be loaded or scored gets an error row, does not stop the others, and makes the exit
code 1.

    python evaluate_models.py
    python evaluate_models.py --models distilbert minilm --test-data ../production/test.jsonl
    python evaluate_models.py --traffic ../production/last_week.jsonl --traffic-models distilbert minilm

Writes into results/: evaluation_results.json, report.html, predictions/<model>.jsonl (one row per article, in the test
file's order) and, with --traffic, review_queue_<model>.jsonl (what to label next). The table goes to stdout,
everything else to stderr.
"""

import argparse
import gc
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.articles import Article, load_articles, split_beside, spread_by_length
from prefilter_common.cli import (
    HelpFormatter,
    InputError,
    configure_logging,
    exit_code,
    fraction,
    is_main_process,
    positive_int,
)
from prefilter_common.engines import ENGINES, REFERENCE
from prefilter_common.files import model_directories, write_json, write_json_lines
from prefilter_common.processes import wait_for_all

if TYPE_CHECKING:
    from prefilter_common.evaluation import Scored
    from prefilter_common.scoring import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The articles of one evaluation; None where there is no such file."""

    test: list[Article]
    train: list[Article] | None
    val: list[Article] | None
    traffic: list[Article] | None


def main(argv: list[str] | None = None) -> int:
    """Check the input, run each model, compare, write the results, print the table. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    directories = model_directories(args.models_dir, args.models)
    check_traffic_models(args, directories)
    data, files = load_data(args)
    # Imported only now: torch and transformers take seconds, for which bad input need not wait.
    from prefilter_common.page import write_page
    from prefilter_common.runinfo import run_info
    from prefilter_common.summary import evaluation_summary

    models, rows = {}, {}
    for number, directory in enumerate(directories, start=1):
        log.info(f"model {number}/{len(directories)}: {directory}")
        try:
            models[directory.name], rows[directory.name] = evaluate(directory, data, args)
        except Exception as error:
            # Whatever is wrong with one directory, the others are still to be evaluated.
            log.error(f"{directory.name}: {error}", exc_info=not isinstance(error, InputError))
            rows[directory.name] = {"error": f"{type(error).__name__}: {error}"}
    code = 1 if any("error" in row for row in rows.values()) else 0
    if not is_main_process():
        return code
    sections, errors = compare(data, models, rows, args)
    results = {"_run": run_info(argv, files), **sections, **rows}
    write_json(args.output / "evaluation_results.json", results)
    write_page(args.output / "report.html", {"results": results, "errors": errors})
    print(evaluation_summary(results))
    return code


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--test-data", type=Path, default=Path("splits/test.jsonl"), help="labelled articles")
    data.add_argument(
        "--train-data",
        type=Path,
        metavar="FILE",
        help="what the models were trained on, for the floor and duplicates; if not train.jsonl beside --test-data",
    )
    data.add_argument(
        "--val-data", type=Path, metavar="FILE", help="labelled, to choose thresholds for models without their own"
    )
    data.add_argument("--traffic", type=Path, metavar="FILE", help="unlabelled articles on which to compare the models")
    data.add_argument("--output", type=Path, default=Path("results"), help="folder to write")
    models = parser.add_argument_group("models")
    models.add_argument("--models-dir", type=Path, default=Path("models"), help="folder of the model directories")
    models.add_argument("--models", nargs="+", metavar="NAME", help="only these of them, by name")
    models.add_argument(
        "--traffic-models", nargs=2, metavar="NAME", help="compare these two on --traffic, not every two"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--target-precision",
        type=fraction,
        default=0.95,
        metavar="P",
        help="that the high_precision threshold's interval must reach on validation data, 0 to 1",
    )
    run.add_argument("--engine", choices=ENGINES, default=REFERENCE, help="what runs the models, in one pass")
    run.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="articles a batch")
    run.add_argument(
        "--latency-samples", type=positive_int, default=50, metavar="N", help="articles timed one at a time"
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap, at least 0")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"argument --seed: {args.seed} is not at least 0")
    return args


def check_traffic_models(args: argparse.Namespace, directories: Sequence[Path]) -> None:
    """Raise InputError unless --traffic-models names two different models that are evaluated, and has traffic."""
    if not args.traffic_models:
        return
    if not args.traffic:
        raise InputError("--traffic-models needs articles to compare the two on; pass --traffic FILE")
    unknown = set(args.traffic_models) - {directory.name for directory in directories}
    if unknown or len(set(args.traffic_models)) < 2:
        there = ", ".join(directory.name for directory in directories)
        raise InputError(f"--traffic-models {' '.join(args.traffic_models)}: name two different ones of {there}")


def load_data(args: argparse.Namespace) -> tuple[Data, dict[str, Path]]:
    """All articles, and role -> file of those that were read. Raises InputError."""
    train = args.train_data or split_beside(args.test_data, "train")
    files = {"test": args.test_data, "train": train, "val": args.val_data, "traffic": args.traffic}
    files = {role: path for role, path in files.items() if path}
    loaded = {role: load_articles(path, require_labels=role != "traffic") for role, path in files.items()}
    return Data(*(loaded.get(role) for role in ("test", "train", "val", "traffic"))), files


def evaluate(directory: Path, data: Data, args: argparse.Namespace) -> tuple["Scored", dict]:
    """Run one model on all articles; write its predictions and operating points.

    Returns its scores and its row of the results file.
    """
    import numpy as np
    import torch

    from prefilter_common.evaluation import Scored, model_row
    from prefilter_common.metrics import latency_summary
    from prefilter_common.scoring import Scorer, time_single_articles
    from prefilter_common.validation import prediction_rows

    scorer = Scorer.load(directory, engine=args.engine)
    contract = scorer.contract
    model = Scored(
        scores=scorer.score_together(data.test, args.batch_size),
        n_tokens=np.array([len(ids) for ids in scorer.tokenizer.encode(data.test)]),
        max_length=contract.max_length,
        temperature=contract.temperature,
        thresholds=operating_points(directory, scorer, data.val, args),
        traffic=scorer.score_together(data.traffic, args.batch_size) if data.traffic else None,
    )
    if not is_main_process():
        wait_for_all()  # of several processes one times and the others keep still
    tokenize, forward = time_single_articles(scorer, spread_by_length(data.test, args.latency_samples))
    if is_main_process():
        wait_for_all()
    latency = latency_summary(tokenize + forward)
    row = {
        **model_row(data.test, model, args.seed),
        **{f"{name}_inference_ms": latency[f"{name}_ms"] for name in ("avg", "p50", "p95")},
        "latency_articles": len(forward),
        "cpu_benchmark_ms": cpu_benchmark_ms(directory),
        "n_articles": len(data.test),
        "engine": scorer.engine.name,
        "device": str(getattr(scorer.engine, "device", "cpu")),
        "max_length": contract.max_length,
    }
    if is_main_process():
        path = args.output / "predictions" / f"{directory.name}.jsonl"
        write_json_lines(path, prediction_rows(data.test, model.scores))
    del scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model, row


def operating_points(
    directory: Path, scorer: "Scorer", val: list[Article] | None, args: argparse.Namespace
) -> dict[str, float]:
    """The model's thresholds by name, chosen on its validation articles and written into its prefilter.json.

    Only what the contract has where there are no validation scores. A directory without prefilter.json, as earlier
    scripts wrote them, is left as it is.
    """
    from prefilter_common.contract import CONTRACT_FILE, Contract
    from prefilter_common.evaluation import labels_of
    from prefilter_common.operating_points import DEFAULT, choose_thresholds, read_validation

    contract = scorer.contract
    validation = read_validation(directory)
    if validation is None and val:
        validation = labels_of(val), scorer.score_together(val, args.batch_size)
    if validation is None:
        return dict(contract.thresholds)
    thresholds = {DEFAULT: contract.thresholds[DEFAULT], **choose_thresholds(*validation, args.target_precision)}
    path = directory / CONTRACT_FILE
    if is_main_process() and thresholds != contract.thresholds and path.is_file():
        try:
            # The limits of a first pass were chosen for the thresholds of before; the benchmark chooses new ones.
            replace(Contract.load(path), thresholds=thresholds, two_pass=None).save(directory)
        except OSError as error:
            log.warning(f"{directory}: operating points not written back ({error.strerror})")
    return thresholds


def compare(
    data: Data, models: dict[str, "Scored"], rows: dict[str, dict], args: argparse.Namespace
) -> tuple[dict, dict[str, list[dict]]]:
    """The sections of the results file that concern several models, and each model's worst errors with their texts.

    Adds ``floor`` to the rows; writes the review queues.
    """
    from prefilter_common import evaluation
    from prefilter_common.choice import choose
    from prefilter_common.comparison import compare_with_best

    labels, f1 = evaluation.labels_of(data.test), {name: rows[name]["f1"] for name in models}
    decisions = {name: model.decisions for name, model in models.items()}
    baseline = evaluation.baseline_row(data.train, data.test, args.seed) if data.train else None
    for name in models:
        floor = baseline and evaluation.against_floor(labels, decisions[name], baseline[1], args.seed)
        rows[name]["floor"] = floor
    integrity = evaluation.integrity_section(data.train, data.test, models) if data.train else None
    traffic = None
    if data.traffic and models:
        pair = args.traffic_models if set(args.traffic_models or ()) <= set(models) else ()
        traffic, queues = evaluation.traffic_section(data.traffic, data.test, models, pair)
        for name, queue in queues.items():
            write_json_lines(args.output / f"review_queue_{name}.jsonl", queue)
    choice = choose({name: choosable(rows[name]) for name in models})
    choice["cautions"] += evaluation.traffic_cautions(choice, traffic)
    sections = {
        "_settings": {"target_precision": args.target_precision, "seed": args.seed},
        "_test": {"n_articles": len(labels), "n_commerce": int(labels.sum())},
        "_baseline": baseline and baseline[0],
        "_comparison": compare_with_best(labels, decisions, f1, args.seed),
        "_integrity": integrity,
        "_traffic": traffic,
        "_choice": choice,
        "_warnings": evaluation.warnings_of(integrity, traffic, models),
    }
    return sections, {name: evaluation.worst_errors(data.test, model) for name, model in models.items()}


def choosable(row: dict) -> dict:
    """What the choice depends on."""
    return {
        "operating_points": row["operating_points"],
        "cpu_ms": row["cpu_benchmark_ms"],
        "beats_floor": row["floor"] and row["floor"]["beats"],
    }


def cpu_benchmark_ms(directory: Path) -> float | None:
    """Mean milliseconds an article on the CPU, from the benchmark's file; None where there is none that can be read."""
    try:
        return float(json.loads((directory / "cpu_benchmark.json").read_text(encoding="utf-8"))["avg_ms"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    sys.exit(exit_code(main))
