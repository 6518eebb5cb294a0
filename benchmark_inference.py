#!/usr/bin/env python3
"""Decide how a model is to be run: every engine and precision that this machine has, side by side, with its fidelity.

Articles are scored one at a time, as production does, tokenising included, in several rounds that take the
configurations in turn; then all together in batches. Each configuration is compared with PyTorch in fp32 that reads
every article in full: one that changes decisions or may lose F1 beyond the tolerance is never recommended, however
fast it is. Engines are converted into folders inside the model directory where they are not there yet. With
validation articles the limits of a short first pass are chosen and written into prefilter.json.

    python benchmark_inference.py
    python benchmark_inference.py --model models/distilbert --test-data ../production/test.jsonl
    python benchmark_inference.py --engines onnxruntime-int8 --passes 1 --max-lengths 128 256 512 --threads 4

Writes results/benchmark_<name>.json, a picture of latency against F1 beside it and, on the CPU, the recommended
configuration into models/<name>/cpu_benchmark.json, where the Scorer finds it. The last line on stdout is one JSON
object.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.articles import Article, load_articles, split_beside, spread_by_length
from prefilter_common.cli import HelpFormatter, InputError, configure_logging, exit_code, fraction, positive_int
from prefilter_common.engines import ENGINES, REFERENCE, Unavailable
from prefilter_common.files import model_directories, write_json
from prefilter_common.parity import Tolerance

if TYPE_CHECKING:
    from prefilter_common.benchmark import Configuration, Reference
    from prefilter_common.contract import Contract, TwoPass
    from prefilter_common.timing import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The articles of one benchmark: ``timed`` are those of ``test`` that are timed one at a time."""

    test: list[Article]
    timed: list[Article]
    train: list[Article] | None
    val: list[Article] | None


def main(argv: list[str] | None = None) -> int:
    """Check the input, take the reference's scores, convert, time, compare, recommend. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    directory = args.model = args.model or only_model()
    data, files = load_data(args)
    # Imported only now: torch and transformers take seconds, for which bad input need not wait.
    from prefilter_common import benchmark
    from prefilter_common.benchmark_report import card, picture, report
    from prefilter_common.runinfo import run_info

    run = run_info(argv, files)
    conditions = conditions_of(args)
    tolerance = Tolerance(args.max_f1_loss, args.max_changed)
    reference = benchmark.take_reference(directory, data.test, data.val if 2 in args.passes else None, args.device)
    readings = readings_of(reference.contract, args)
    store_two_pass(directory, reference.contract)
    with ExitStack() as stack:
        workers, skipped = open_workers(directory, data, args, stack)
        configurations = to_compare(workers, readings, reference.contract.max_length, args.engines)
        conditions |= {"mean_tokens": round(float(reference.n_tokens.mean()), 1)}
        conditions |= {"max_tokens": int(reference.n_tokens.max()), "timed_articles": len(data.timed)}
        print(card(directory, conditions, run), flush=True)
        rows = measure(configurations, workers, reference, data, conditions, tolerance, args)
    if 2 in args.passes and not reference.contract.two_pass:
        skipped["two passes"] = reference.two_pass_note["reason"]
    best = benchmark.recommend(rows)
    result = {
        "model": directory.name,
        "conditions": conditions,
        "tolerance": asdict(tolerance),
        "two_pass": reference.contract.two_pass and asdict(reference.contract.two_pass),
        "two_pass_on_validation": reference.two_pass_note,
        "recommended": benchmark.name_of(best),
        "verdict": benchmark.verdict(best["avg_ms"]),
        "rows": rows,
        "skipped": skipped,
    }
    name = f"benchmark_{directory.name}" + ("" if args.device == "cpu" else f"_{args.device}")
    write_json(args.output / f"{name}.json", {**result, "run": run})
    picture(args.output / f"{name}.png", result)
    summary = {
        "model": directory.name,
        "n_samples": len(data.timed),
        **best,
        "verdict": result["verdict"],
        **conditions,
    }
    if args.device == "cpu":
        write_json(directory / "cpu_benchmark.json", {**summary, "run": run})
    print(report(result))
    print(json.dumps(summary, separators=(",", ":")))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--model", type=Path, help="model directory; may be left out where models/ holds only one")
    data.add_argument("--test-data", type=Path, default=Path("splits/test.jsonl"), help="articles, best with labels")
    beside = "if not {}.jsonl beside --test-data"
    data.add_argument(
        "--train-data", type=Path, metavar="FILE", help=f"to read int8 ranges off, {beside.format('train')}"
    )
    data.add_argument(
        "--val-data", type=Path, metavar="FILE", help=f"to choose a first pass on, {beside.format('val')}"
    )
    data.add_argument("--output", type=Path, default=Path("results"), help="folder to write")
    what = parser.add_argument_group("configurations")
    what.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=ENGINES, metavar="NAME", help=f"of {' '.join(ENGINES)}"
    )
    what.add_argument(
        "--max-lengths", nargs="+", type=positive_int, metavar="N", help="tokens read in one pass, if not the model's"
    )
    what.add_argument("--passes", nargs="+", type=int, choices=(1, 2), default=(1, 2), help="over an article")
    what.add_argument(
        "--batch-sizes", nargs="+", type=positive_int, default=[16], metavar="N", help="articles a batch, in bulk"
    )
    what.add_argument("--max-f1-loss", type=fraction, default=0.01, metavar="F", help="tolerated, 0 to 1")
    what.add_argument(
        "--max-changed", type=fraction, default=0.01, metavar="F", help="share of decisions an engine may change"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="to decide for")
    run.add_argument("--n-samples", type=positive_int, default=40, metavar="N", help="articles timed one at a time")
    run.add_argument(
        "--rounds", type=positive_int, default=3, metavar="N", help="in which the configurations take turns"
    )
    run.add_argument("--threads", type=positive_int, metavar="N", help="for arithmetic, if not one a core")
    return parser.parse_args(argv)


def load_data(args: argparse.Namespace) -> tuple[Data, dict[str, Path]]:
    """All articles, and role -> file of those that were read. Raises InputError."""
    files = {"test": args.test_data}
    for role, given in (("train", args.train_data), ("val", args.val_data)):
        if path := given or split_beside(args.test_data, role):
            files[role] = path
    loaded = {role: load_articles(path, require_labels=role == "val") for role, path in files.items()}
    timed = spread_by_length(loaded["test"], args.n_samples)
    return Data(loaded["test"], timed, loaded.get("train"), loaded.get("val")), files


def only_model() -> Path:
    """The one directory under models/. Raises InputError when there is none, or a choice."""
    found = model_directories(Path("models"))
    if len(found) > 1:
        raise InputError(f"models/ holds several models; name one: {' '.join(f'--model {path}' for path in found)}")
    return found[0]


def conditions_of(args: argparse.Namespace) -> dict:
    """Device, threads, load and the machine's matrix rates, before anything is timed. Raises InputError."""
    import psutil
    import torch

    from prefilter_common.timing import matrix_rates

    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; install its CUDA build, or pass --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    return {
        "device": args.device,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "cpu_load_before_percent": psutil.cpu_percent(interval=0.5),
        "matrix_gflops": matrix_rates(args.device),
    }


def store_two_pass(directory: Path, contract: "Contract") -> None:
    """Write the limits of the first pass into prefilter.json; a directory without one is left as it is."""
    from prefilter_common.contract import CONTRACT_FILE

    if (directory / CONTRACT_FILE).is_file():
        contract.save(directory)


def open_workers(
    directory: Path, data: Data, args: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, "Worker"], dict[str, str]]:
    """A process for every engine that can be had, and the reason for every other. The stack ends the processes."""
    from prefilter_common.conversion import convert
    from prefilter_common.timing import Worker

    workers, skipped = {}, {}
    for engine in (REFERENCE, *(name for name in args.engines if name != REFERENCE)):
        try:
            convert(directory, engine, data.train, args.device)
            workers[engine] = stack.enter_context(Worker(directory, engine, args.device, args.threads))
        except Unavailable as error:
            skipped[engine] = str(error).removeprefix(f"{engine}: ")
        except Exception as error:
            # A model that one library cannot convert is still to be timed with the others.
            if engine == REFERENCE:
                raise
            log.warning(f"{engine}: {error}", exc_info=True)
            skipped[engine] = f"{type(error).__name__}: {error}"
    return workers, skipped


def readings_of(contract: "Contract", args: argparse.Namespace) -> list[tuple[int, "TwoPass | None"]]:
    """The ways of reading an article that were asked for: tokens, and the limits of a first pass.

    Raises InputError for a length beyond the model's.
    """
    lengths = args.max_lengths or [contract.max_length]
    if max(lengths) > contract.max_length:
        longest = f"the model reads at most {contract.max_length} tokens"
        raise InputError(f"--max-lengths {max(lengths)}: {longest}; pass that or less")
    readings = [(length, None) for length in lengths] if 1 in args.passes else []
    return readings + ([(contract.max_length, contract.two_pass)] if 2 in args.passes and contract.two_pass else [])


def to_compare(
    workers: Mapping[str, "Worker"], readings: Sequence[tuple[int, "TwoPass | None"]], max_length: int, asked: Sequence
) -> list["Configuration"]:
    """Every engine that was ``asked`` for and can be had, with every way of reading; the reference first."""
    from prefilter_common.benchmark import Configuration

    first = Configuration(REFERENCE, max_length)
    others = (Configuration(engine, *reading) for engine in workers for reading in readings if engine in asked)
    return [first, *(c for c in others if c != first)]


def measure(
    configurations: Sequence["Configuration"],
    workers: Mapping[str, "Worker"],
    reference: "Reference",
    data: Data,
    conditions: dict,
    tolerance: Tolerance,
    args: argparse.Namespace,
) -> list[dict]:
    """Time the configurations in turn, then in bulk; a row for each."""
    from prefilter_common import benchmark
    from prefilter_common.timing import matrix_rates

    rounds = {c: [] for c in configurations}
    for number in range(args.rounds):
        log.info(f"round {number + 1}/{args.rounds}: {len(configurations)} configurations")
        for c in configurations:
            rounds[c].append(workers[c.engine].single(data.timed, c.max_length, c.two_pass))
    known = {}
    for engine, worker in workers.items():
        known[engine] = {**worker.opened, "disk_mib": benchmark.disk_mib(args.model, engine)}
        known[engine]["peak_memory_mib"] = round(worker.peak_memory_mib())
    bulk = {
        c: {size: workers[c.engine].bulk(data.test, c.max_length, c.two_pass, size) for size in args.batch_sizes}
        for c in configurations
    }
    for engine, worker in workers.items():
        known[engine]["peak_memory_bulk_mib"] = round(worker.peak_memory_mib())
    # Whatever else runs on the machine can only lower a rate, so the higher of two is nearer to what it can do.
    after = matrix_rates(args.device)
    rates = {name: rate and max(rate, after[name]) for name, rate in conditions["matrix_gflops"].items()}
    conditions["matrix_gflops"] = rates
    reference_ms = [1000 * (r["tokenize"] + r["forward"]).mean() for r in rounds[configurations[0]]]
    return [
        benchmark.row(c, rounds[c], bulk[c], reference, reference_ms, rates, tolerance, known[c.engine])
        for c in configurations
    ]


if __name__ == "__main__":
    sys.exit(exit_code(main))
