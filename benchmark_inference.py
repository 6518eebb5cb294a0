#!/usr/bin/env python3
"""Decide how to run a model: every engine and precision that this machine has, side by side, with its fidelity.

Articles are scored one at a time, as in production and including tokenising, in several rounds in which the
configurations take turns, after one that is not counted; then all together in batches. Each configuration is compared
with PyTorch in fp32 that reads every article in full: one that may lose F1 beyond the tolerance or, as an engine,
changes too many decisions is never recommended, however fast it is. Engines are converted into folders inside the model
directory where they are missing. With validation articles, stages that decide some articles before they are read in
full are chosen and kept in prefilter.json: a linear first stage (first_stage.npz), and exits after some of an encoder's
layers (early_exits.npz) or a short read.

With --lengths-like all of this is at the length of production. --traffic adds unlabelled texts: the first half of them
teaches the stages. Decisions are compared on as many texts as the tolerance needs, but beyond 1,200 only on as many as
PyTorch scores in a minute.

    python benchmark_inference.py
    python benchmark_inference.py --lengths-like ../production/last_week.jsonl --traffic ../production/last_week.jsonl
    python benchmark_inference.py --model models/distilbert --test-data ../production/test.jsonl
    python benchmark_inference.py --engines onnxruntime-int8 --no-stages --max-lengths 128 256 512 --threads 4

Writes results/benchmark_<name>.json, a picture of latency against F1 beside it and, on the CPU, the recommended
configuration into models/<name>/cpu_benchmark.json, where the Scorer finds it. The last line on stdout is one JSON
object.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.articles import load_articles, split_beside, spread_by_length
from prefilter_common.cli import (
    Parser,
    batch_size,
    configure_logging,
    count,
    exit_code,
    fraction,
    max_length,
    threads,
    whole_number,
)
from prefilter_common.errors import InputError
from prefilter_common.files import write_json
from prefilter_common.models.directory import (
    RECOMMENDATION_FILE,
    model_directories,
    read_contract,
)
from prefilter_common.outputs import require_files
from prefilter_common.scoring.engines.interface import ENGINES, EngineName

if TYPE_CHECKING:
    from prefilter_common.benchmark.conditions import Conditions, Options
    from prefilter_common.benchmark.data import Data
    from prefilter_common.benchmark.report import BenchmarkFile, RecommendationFile


def main(argv: list[str] | None = None) -> int:
    """Check the input, take the reference's scores, convert, time, compare, recommend. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    directory = args.model or only_model()
    directory = directory if directory.name else directory.resolve()  # "." has no name
    results, plot = outputs_of(args, directory)
    # Not at the top: every worker process imports this script, and its memory must be its engine's own.
    from prefilter_common.benchmark import run
    from prefilter_common.benchmark.conditions import conditions_of
    from prefilter_common.benchmark.report import card, picture, report, results_and_summary
    from prefilter_common.benchmark.stages.cascade import folder_of, store_cascade
    from prefilter_common.runinfo import now, run_info

    data, files = load_data(args)
    options = options_of(args)
    if contract := read_contract(directory):
        run.readings_of(contract, options)  # refuses lengths beyond the model's
    provenance = run_info(argv, files)
    machine = conditions_of(options)
    reference, data = run.take_reference(directory, data, options)
    conditions: Conditions = {**machine, **run.articles_of(reference, data)}
    readings = run.readings_of(reference.contract, options)
    with ExitStack() as stack:
        fitted = stack.enter_context(folder_of(reference.cascade, directory))
        workers, skipped = run.open_workers(directory, fitted, data, options, stack)
        configurations = run.to_compare(list(workers), readings, reference.contract.max_length, options)
        print(card(directory, conditions, provenance), flush=True)
        rates = machine["matrix_gflops"]
        rows, rates = run.measure(directory, configurations, workers, reference, data, rates, skipped, options)
    conditions, provenance = {**conditions, "matrix_gflops": rates}, {**provenance, "finished": now()}
    result, summary = results_and_summary(directory.name, rows, reference, conditions, skipped, options)
    stored: BenchmarkFile = {**result, "run": provenance}
    write_json(results, stored)
    picture(plot, result)
    if options.device == "cpu":
        store_cascade(directory, reference.cascade)
        recommended: RecommendationFile = {**summary, "run": provenance}
        write_json(directory / RECOMMENDATION_FILE, recommended)
        from prefilter_common.evaluation.latency_update import refresh_latency

        refresh_latency(args.output, directory, recommended)
    print(report(result))
    print(json.dumps(summary, separators=(",", ":")))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--model", type=Path, help="model directory (default: the only one under models/)")
    data.add_argument(
        "--test-data", type=Path, default=Path("splits/test.jsonl"), help="articles to score, preferably with labels"
    )
    for flag, articles in (
        ("--train-data", "articles, labelled or not, that calibrate int8 and teach the stages (default: "
         "train.jsonl beside --test-data)"),
        ("--val-data", "articles on which to choose stages, labelled unless --no-stages is passed (default: val.jsonl "
         "beside --test-data)"),
        ("--traffic", "unlabelled articles on which to compare decisions as well; the first half teaches stages"),
        ("--lengths-like", "cut test, training and validation articles to the content lengths of these articles "
         "(default: no cutting)"),
    ):  # fmt: skip
        data.add_argument(flag, type=Path, metavar="FILE", help=articles)
    data.add_argument("--output", type=Path, default=Path("results"), help="folder to write")
    what = parser.add_argument_group("configurations")
    what.add_argument(
        "--engines", nargs="+", type=EngineName.parse, default=ENGINES, metavar="NAME", help="engines to compare"
    )
    what.add_argument(
        "--max-lengths",
        nargs="+",
        type=max_length,
        metavar="N",
        help="tokens to read (default: the model's max_length)",
    )
    what.add_argument("--no-stages", action="store_true", help="neither choose nor compare stages before the full read")
    what.add_argument(
        "--batch-sizes", nargs="+", type=batch_size, default=[16], metavar="N", help="articles per batch, in bulk"
    )
    what.add_argument("--max-f1-loss", type=fraction, default=0.01, metavar="F", help="tolerated loss of F1, below 1")
    what.add_argument(
        "--max-changed",
        type=fraction,
        default=0.01,
        metavar="F",
        help="tolerated share of changed decisions, below 1; stages are chosen to stay within it",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to decide for")
    run.add_argument("--n-samples", type=count, default=40, metavar="N", help="number of articles timed one at a time")
    run.add_argument(
        "--rounds",
        type=whole_number(1, 1000),
        default=3,
        metavar="N",
        help="rounds in which the configurations take turns",
    )
    run.add_argument("--threads", type=threads, metavar="N", help="threads for the arithmetic (default: one per core)")
    return parser.parse_args(argv)


def only_model() -> Path:
    """The one directory under models/. Raises InputError when there is none, or a choice."""
    found = model_directories(Path("models"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"models contains several models ({names}); pass --model {found[0]}, for example")
    return found[0]


def outputs_of(args: argparse.Namespace, directory: Path) -> tuple[Path, Path]:
    """The results file and the picture. Raises InputError unless all that will be written can be."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory; check the path")
    name = f"benchmark_{directory.name}" + ("" if args.device == "cpu" else f"_{args.device}")
    results, plot = args.output / f"{name}.json", args.output / f"{name}.png"
    require_files(results, plot)
    if args.device == "cpu":
        require_files(directory / RECOMMENDATION_FILE)
    return results, plot


def load_data(args: argparse.Namespace) -> "tuple[Data, dict[str, Path]]":
    """All articles, and role -> file of those that were read. Raises InputError."""
    from prefilter_common.benchmark.data import Data, content_lengths, cut_like

    files = {"test": args.test_data}
    for role, given in (("train", args.train_data), ("val", args.val_data)):
        if path := given or split_beside(args.test_data, role):
            files[role] = path
    if args.traffic:
        files["traffic"] = args.traffic
    chooses = args.device == "cpu" and not args.no_stages  # stages, on validation articles, by their labels
    loaded = {role: load_articles(path, require_labels=chooses and role == "val") for role, path in files.items()}
    whole_train = loaded.get("train")
    if args.lengths_like:
        lengths = content_lengths(args.lengths_like)
        # Traffic has its length already, also where it is the test data.
        longer = [role for role, path in files.items() if role != "traffic" and not path.samefile(args.lengths_like)]
        loaded |= {role: cut_like(loaded[role], lengths) for role in longer}
        files["lengths_like"] = args.lengths_like
    timed = spread_by_length(loaded["test"], args.n_samples)
    train, val, traffic = (loaded.get(role, []) for role in ("train", "val", "traffic"))
    return Data(loaded["test"], timed, train, val, traffic, whole_train, args.lengths_like), files


def options_of(args: argparse.Namespace) -> "Options":
    """What to compare, on which device and how."""
    from prefilter_common.benchmark.conditions import Options
    from prefilter_common.benchmark.fidelity import Tolerance

    return Options(
        engines=args.engines,
        max_lengths=args.max_lengths,
        no_stages=args.no_stages,
        batch_sizes=args.batch_sizes,
        tolerance=Tolerance(args.max_f1_loss, args.max_changed),
        device=args.device,
        rounds=args.rounds,
        threads=args.threads,
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
