#!/usr/bin/env python3
"""Score every model under models/ on the test set, compare them honestly, and say which to ship.

For each model directory: all articles in batches (quality), and a sample spread over the lengths one article at a time
(latency, including tokenising, synchronised on a GPU). Metrics have 95 % intervals; models are compared on the
same articles, by slices, against a TF-IDF floor and, with --traffic, on unlabelled articles. What a model would do
where commerce is rare is worked out for each --prevalence, and measured with --audit and --audited. No model is chosen
while two differ on the traffic and nothing says which is right, or while the test set says nothing of most of it.
Thresholds are chosen on the validation scores that training left in the model directory (else --val-data) and written
into its prefilter.json. A model that cannot be loaded or scored becomes an error row, does not stop the others, and
makes the exit code 1.

    python evaluate_models.py
    python evaluate_models.py --models distilbert minilm --test-data ../production/test.jsonl
    python evaluate_models.py --traffic ../production/last_week.jsonl --audit 100 300
    python evaluate_models.py --traffic ../production/last_week.jsonl --audited labelled.jsonl --prevalence 0.05 0.175

Writes into results/: evaluation_results.json, report.html, predictions/<model>.jsonl (one row per article, in the test
file's order) and, with --traffic, review_queue_<model>.jsonl (what to label next), with --audit, audit_<model>.jsonl
(what to label to measure precision and recall in production). The table goes to stdout, everything else to stderr.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefilter_common.articles import load_articles, load_both_labels, split_beside
from prefilter_common.cli import (
    Parser,
    batch_size,
    configure_logging,
    count,
    exit_code,
    number,
    positive_float,
    seed,
)
from prefilter_common.errors import InputError
from prefilter_common.evaluation.leakage import training_warnings
from prefilter_common.evaluation.report.content import Results
from prefilter_common.evaluation.report.summary import evaluation_summary
from prefilter_common.evaluation.results import PAGE_FILE, RESULTS_FILE, compare_models, write_models, write_results
from prefilter_common.evaluation.run import Data, Options, evaluate_each
from prefilter_common.evaluation.traffic.answers import read_audit
from prefilter_common.evaluation.traffic.labelling import require_unlabelled
from prefilter_common.files import resolved
from prefilter_common.models.directory import model_directories
from prefilter_common.outputs import require_files
from prefilter_common.processes import is_main_process
from prefilter_common.runinfo import now, run_info
from prefilter_common.scoring.engines.interface import ENGINES, REFERENCE, EngineName
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.guard import manifest_record, manifest_warnings

# Nearer to 0 or 1 than one article in a million, nothing can be estimated.
share = number("from 0.000001 to below 1", lambda x: 1e-6 <= x < 1)


def main(argv: list[str] | None = None) -> int:
    """Check the input, run each model, compare, write the results, print the table. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    directories = model_directories(args.models_dir, args.models)
    check_traffic_models(args, directories)
    if resolved(args.output) == resolved(args.models_dir):
        raise InputError(f"--output {args.output}: is the folder of the models; name another, such as results")
    outputs = outputs_of(args, directories)
    require_files(*outputs)
    check_production(args)
    check_labels(args, outputs)
    data, files = load_data(args)
    provenance = run_info(argv, files)  # now, since traffic may be rotated while it is scored
    options = options_of(args)
    splits = [args.test_data, *filter(None, (split_beside(args.test_data, name) for name in NAMES))]
    manifest = manifest_record(splits)  # now, since a damaged one ends the run
    models, rows = evaluate_each(directories, data, options)
    if is_main_process():
        compared = compare_models(data, models, rows, options)
        trained = [directory for directory in directories if directory.name in models]
        compared["_warnings"] += manifest_warnings(manifest)
        compared["_warnings"] += training_warnings(trained, provenance["data"].get("train"))
        results: Results = {"_run": {**provenance, "finished": now()}, "_manifest": manifest, **compared}
        # All at the end: stopped before, a run leaves earlier results, and what belongs to them, as they were.
        write_models(directories, data.test, models, args.output)
        write_results(args.output, results)
        print(evaluation_summary(results))
    return 1 if any("error" in row for row in rows.values()) else 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--test-data", type=Path, default=Path("splits/test.jsonl"), help="labelled articles to judge on")
    data.add_argument(
        "--train-data",
        type=Path,
        metavar="FILE",
        help="training articles, for the floor and for duplicates (default: train.jsonl beside --test-data)",
    )
    data.add_argument(
        "--val-data",
        type=Path,
        metavar="FILE",
        help="labelled articles on which to choose thresholds for models that have no validation scores",
    )
    data.add_argument("--traffic", type=Path, metavar="FILE", help="unlabelled articles on which to compare the models")
    data.add_argument(
        "--audited",
        type=Path,
        metavar="FILE",
        help="an audit sample or review queue of that traffic, with labels; outside the results folder",
    )
    data.add_argument("--output", type=Path, default=Path("results"), help="folder to write")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--models-dir", type=Path, default=Path("models"), help="folder that contains the model directories"
    )
    models.add_argument("--models", nargs="+", metavar="NAME", help="evaluate only the models of these names")
    models.add_argument(
        "--traffic-models",
        nargs=2,
        metavar="NAME",
        help="the two models to compare on --traffic (default: every two)",
    )
    add_production_flags(parser)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--engine",
        type=EngineName.parse,
        default=REFERENCE,
        metavar="NAME",
        help=f"engine that runs the models, one of {' '.join(map(str, ENGINES))}",
    )
    run.add_argument("--batch-size", type=batch_size, default=32, metavar="N", help="articles per batch")
    run.add_argument(
        "--latency-samples", type=count, default=50, metavar="N", help="number of articles timed one at a time"
    )
    run.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed of the bootstrap and the samples")
    return parser.parse_args(argv)


def add_production_flags(parser: argparse.ArgumentParser) -> None:
    """What is known of production, and what to draw from it."""
    production = parser.add_argument_group("production")
    production.add_argument(
        "--prevalence",
        nargs="+",
        type=share,
        default=[0.05],
        metavar="P",
        help="shares of commerce in production, between 0 and 1; high_precision is chosen for the first",
    )
    production.add_argument(
        "--target-precision",
        type=share,
        default=0.95,
        metavar="P",
        help="precision that high_precision must be shown to have at the first --prevalence, between 0 and 1",
    )
    production.add_argument(
        "--cost-per-article",
        type=positive_float,
        metavar="C",
        help="cost of scoring an article, which blocking it saves, in any currency",
    )
    production.add_argument(
        "--cost-of-blocking",
        type=positive_float,
        metavar="C",
        help="cost of blocking a journalism article, in the same currency",
    )
    production.add_argument(
        "--audit",
        nargs="+",
        type=count,
        metavar="N",
        help="number of flagged articles to draw from the traffic for labelling; a second N sets the number of "
        "unflagged ones (default: the same)",
    )


def check_traffic_models(args: argparse.Namespace, directories: Sequence[Path]) -> None:
    """Raise InputError unless --traffic-models names two different models that are evaluated, on some traffic."""
    if not args.traffic_models:
        return
    if not args.traffic:
        raise InputError("--traffic-models needs articles to compare the two on; pass --traffic FILE")
    names = [directory.name for directory in directories]
    if len(set(args.traffic_models) & set(names)) < 2:
        raise InputError(
            f"--traffic-models {' '.join(args.traffic_models)}: name two different ones of {', '.join(names)}"
        )


def outputs_of(args: argparse.Namespace, directories: Sequence[Path]) -> list[Path]:
    """Every file that is written, but for those inside the model directories."""
    per_model = ["predictions/{}.jsonl"]
    if args.traffic:
        per_model.append("review_queue_{}.jsonl")
    if args.audit:
        per_model.append("audit_{}.jsonl")
    names = [template.format(directory.name) for template in per_model for directory in directories]
    return [args.output / name for name in [RESULTS_FILE, PAGE_FILE, *names]]


def check_production(args: argparse.Namespace) -> None:
    """Raise InputError for flags of the production panel that need another one."""
    if (args.cost_per_article is None) != (args.cost_of_blocking is None):
        raise InputError("--cost-per-article and --cost-of-blocking: a saving needs both; pass the other one too")
    if args.audit and not args.traffic:
        raise InputError("--audit needs articles to draw from; pass --traffic FILE")
    if args.audit and len(args.audit) > 2:
        raise InputError("--audit takes two numbers at most: flagged and unflagged articles")


def check_labels(args: argparse.Namespace, outputs: Sequence[Path]) -> None:
    """Raise InputError where this run would replace labels: those of --audited, or others in its results folder."""
    for path in outputs:
        if args.audited and path.exists() and args.audited.exists() and path.samefile(args.audited):
            raise InputError(
                f"--audited {args.audited}: this run would replace it; move or copy it out of {args.output}, and pass "
                "its new path"
            )
    require_unlabelled(path for path in outputs if path.suffix == ".jsonl" and path.parent == args.output)


def load_data(args: argparse.Namespace) -> tuple[Data, dict[str, Path]]:
    """All articles, and role -> file of those that were read. Raises InputError."""
    train = args.train_data or split_beside(args.test_data, "train")
    val = args.val_data or split_beside(args.test_data, "val")
    files = {"test": args.test_data, "train": train, "val": val, "traffic": args.traffic}
    files = {role: path for role, path in files.items() if path}
    both = {"test", "val"} if args.val_data else {"test"}  # on the latter thresholds are chosen
    loaded = {role: load_both_labels(files[role]) for role in both}
    loaded |= {role: load_articles(files[role], require_labels=role != "traffic") for role in files if role not in both}
    audit = read_audit(args.audited) if args.audited else None
    data = Data(
        test=loaded["test"],
        train=loaded.get("train"),
        val=loaded.get("val") if args.val_data else None,
        traffic=loaded.get("traffic"),
        beside=loaded.get("val"),
        audit=audit,
    )
    return data, {**files, **({"audited": args.audited} if audit else {})}


def options_of(args: argparse.Namespace) -> Options:
    """How to evaluate."""
    return Options(
        output=args.output,
        engine=args.engine,
        batch_size=args.batch_size,
        latency_samples=args.latency_samples,
        target_precision=args.target_precision,
        traffic_models=args.traffic_models and tuple(args.traffic_models),
        seed=args.seed,
        prevalence=tuple(dict.fromkeys(args.prevalence)),
        costs={"per_article": args.cost_per_article, "of_blocking": args.cost_of_blocking}
        if args.cost_per_article
        else None,
        audit=(args.audit[0], args.audit[-1]) if args.audit else None,
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
