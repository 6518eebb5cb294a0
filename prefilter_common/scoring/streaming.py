"""Score a JSON Lines file of any size in constant memory.

    python -m prefilter_common.scoring models/multilingual-e5-small in.jsonl out.jsonl

Writes one row an article, in the order of the input: {"id": "a1", "score": 0.981234, "is_commerce": true}. The output
appears complete or not at all. A run that was killed or interrupted is resumed by the same command.

The last line on stdout is one JSON object; its seconds are those of this run, without loading.
"""

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from prefilter_common.articles import Article, read_articles
from prefilter_common.cli import HelpFormatter, InputError, configure_logging, positive_int
from prefilter_common.engines import ENGINES, converted_folder
from prefilter_common.files import kept_directory, write_json
from prefilter_common.runinfo import file_fingerprint, peak_memory_mib

if TYPE_CHECKING:
    from prefilter_common.scoring import Scorer

log = logging.getLogger(__name__)

# In the output's hidden neighbour, until the output is complete: its rows, and what they were made with.
ROWS_FILE, RECORD_FILE = "rows.jsonl", "run.json"
PROGRESS_SECONDS = 10


def main(argv: list[str] | None = None) -> int:
    """Check the whole input, load the model, score, write, print. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    check_paths(args)
    total = sum(1 for _ in read_articles(args.input))
    with kept_directory(args.output) as folder:
        # Imported only now: loading a model takes seconds, for which bad input need not wait.
        from prefilter_common.scoring import Scorer

        scorer = Scorer.load(args.model, engine=args.engine, threads=args.threads)
        check_same_run(folder, made_with(scorer, args))
        summary = write_rows(scorer, args, folder, total)
        check_free(args)  # the rename would replace what another program has written there meanwhile
        (folder / ROWS_FILE).replace(args.output)
        (folder / RECORD_FILE).unlink()
    print(json.dumps(summary, separators=(",", ":")))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m prefilter_common.scoring", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("input", type=Path, help="articles, JSON Lines; labels not needed")
    parser.add_argument("output", type=Path, help="scores, JSON Lines; must not exist yet")
    parser.add_argument("--engine", choices=ENGINES, help="by default the one that the benchmark recommended")
    parser.add_argument("--threshold", default="default", metavar="NAME", help="operating point of is_commerce")
    parser.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="articles a forward pass")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="for arithmetic, if not one a core")
    return parser.parse_args(argv)


def check_paths(args: argparse.Namespace) -> None:
    """Raise InputError for what can be told without reading anything."""
    if not args.model.is_dir():
        raise InputError(f"{args.model}: no such model directory; check the path")
    if args.input.exists() and not args.input.is_file():
        raise InputError(f"{args.input}: is not a file; the articles are read more than once, so write them to one")
    check_free(args)


def check_free(args: argparse.Namespace) -> None:
    """Raise InputError when the output exists."""
    if args.output.exists():
        if args.input.exists() and args.output.samefile(args.input):
            raise InputError(f"{args.output}: is the input; name another output")
        raise InputError(f"{args.output}: already exists; move it away, or name another output")


def made_with(scorer: "Scorer", args: argparse.Namespace) -> dict:
    """What the rows depend on, as plain JSON values: name -> value, or the beginning of the sha256 of a file."""
    from prefilter_common.conversion import fingerprints

    model = fingerprints(converted_folder(args.model, scorer.engine.name) or args.model)
    contract = asdict(scorer.contract)
    del contract["thresholds"]  # of these only one decides
    return {
        "input": file_fingerprint(args.input)["sha256"][:12],
        "engine": scorer.engine.name,
        "threshold": [args.threshold, scorer.threshold(args.threshold)],
        **contract,
        **{name: digest[:12] for name, digest in model.items()},
    }


def check_same_run(folder: Path, record: dict) -> None:
    """Raise InputError when ``folder`` holds rows made with something else than ``record``; else leave it there."""
    path, rows = folder / RECORD_FILE, folder / ROWS_FILE
    if not rows.exists() or not rows.stat().st_size:
        write_json(path, record)
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differences = [
            f"{key} was {json.dumps(earlier.get(key))}, now {json.dumps(record.get(key))}"
            for key in {**earlier, **record}
            if earlier.get(key) != record.get(key)
        ]
    except (OSError, ValueError, AttributeError, TypeError):
        differences = [f"{RECORD_FILE} cannot be read"]
    if differences:
        raise InputError(
            f"{folder}: holds rows of an unfinished run that was not this one ({'; '.join(differences)}); "
            "delete it, or name another output"
        )


def write_rows(scorer: "Scorer", args: argparse.Namespace, folder: Path, total: int) -> dict:
    """Write the rows of ``folder`` that are not there yet, each chunk to the disk before the next. Returns the summary.

    Raises InputError when the rows that are there do not belong to the input, or it no longer holds ``total`` articles.
    """
    from prefilter_common.scoring import CHUNK

    threshold = scorer.threshold(args.threshold)
    articles = read_articles(args.input)
    with (folder / ROWS_FILE).open("a+b") as rows:
        kept, commerce = keep_rows(rows, articles, folder)
        if kept:
            log.info(f"resuming: {kept} of {total} rows are there, going on with row {kept + 1}")
        done, started, logged = kept, time.perf_counter(), -math.inf
        while chunk := list(islice(articles, CHUNK)):
            scores = scorer.score(chunk, args.batch_size)
            flags = scores >= threshold
            rows.write("".join(map(row_line, chunk, scores.tolist(), flags.tolist())).encode())
            rows.flush()
            os.fsync(rows.fileno())
            done += len(chunk)
            commerce += int(flags.sum())
            now = time.perf_counter()
            if done >= total or now - logged > PROGRESS_SECONDS:
                rate, logged = (done - kept) / (now - started), now
                left = (total - done) / rate / 60
                log.info(f"{done}/{total} ({done / total:.0%}) | {rate:.0f} articles/s | eta {left:.1f} min")
    if done != total:
        raise InputError(f"{args.input}: changed while it was scored; delete {folder} and start again")
    seconds = time.perf_counter() - started
    return {
        "articles": total,
        "commerce": commerce,
        "seconds": round(seconds, 1),
        "articles_per_second": round((total - kept) / seconds, 1),
        "engine": scorer.engine.name,
        "passes": 2 if scorer.contract.two_pass else 1,
        "peak_memory_mib": round(peak_memory_mib()),
    }


def keep_rows(rows: BinaryIO, articles: Iterator[Article], folder: Path) -> tuple[int, int]:
    """Pass over the articles whose rows are there; cut off a row that a killed run left incomplete.

    Returns:
        How many rows are kept, and how many of them are commerce.

    Raises:
        InputError: a row is not of the article in its place.
    """
    rows.seek(0)
    kept = commerce = end = 0
    for line in rows:
        if not line.endswith(b"\n"):
            break
        try:
            row, article = json.loads(line), next(articles)
            if row["id"] != article.id:
                raise ValueError
            commerce += row["is_commerce"]
        except (ValueError, KeyError, TypeError, StopIteration):
            raise InputError(
                f"{rows.name}, line {kept + 1}: is not the row of that article of the input; "
                f"delete {folder}, or name another output"
            ) from None
        kept += 1
        end += len(line)
    rows.truncate(end)
    return kept, commerce


def row_line(article: Article, score: float, is_commerce: bool) -> str:
    """One line of the output."""
    row = {"id": article.id, "score": round(score, 6), "is_commerce": is_commerce}
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
