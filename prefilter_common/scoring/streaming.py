"""Score a JSON Lines file of any size in constant memory.

    python -m prefilter_common.scoring models/multilingual-e5-small in.jsonl out.jsonl

Writes one row per article, in the order of the input:

    {"id": "a1", "score": 0.981234, "is_commerce": true, "language": "en", "characters": 130}

The language is the article's own, or null; the characters are those of title and content together. An id that occurs
twice gives two rows. The output appears complete or not at all. The same command resumes a run that was interrupted.

The last line on stdout is one JSON object; its seconds are those of this run, without loading.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from prefilter_common.articles import Article, read_articles
from prefilter_common.cli import Parser, batch_size, configure_logging, threads
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, write_json
from prefilter_common.outputs import kept_directory, require_files
from prefilter_common.runinfo import file_fingerprint, peak_memory_mib
from prefilter_common.scoring.conversion import fingerprints
from prefilter_common.scoring.engines import ENGINES, EngineName
from prefilter_common.scoring.rows import ScoreRow, Summary
from prefilter_common.scoring.scorer import CHUNK, Scorer

log = logging.getLogger(__name__)

# In the hidden directory beside the output, until the output is complete: its rows, and what they were made with.
ROWS_FILE, MADE_WITH_FILE = "rows.jsonl", "run.json"
PROGRESS_SECONDS = 10
# A chunk ends with the article that brings it to this many characters, so that memory is bounded by the longest
# article, not by CHUNK.
CHUNK_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Options:
    """The command line; ``threshold`` names an operating point."""

    model: Path
    input: Path
    output: Path
    engine: EngineName | None
    threshold: str
    batch_size: int
    threads: int | None


def main(argv: list[str] | None = None) -> int:
    """Check the whole input, load the model, score, write, print. Returns the exit code."""
    options = parse_args(argv)
    configure_logging()
    check_paths(options)
    total = sum(1 for _ in read_articles(options.input))
    with kept_directory(options.output) as folder:
        scorer = Scorer.load(options.model, engine=options.engine, threads=options.threads)
        require_same_run(folder, made_with(scorer, options))
        summary = write_rows(scorer, options, folder, total)
        require_no_output(options)  # another program may have written one meanwhile, and the rename would replace it
        (folder / ROWS_FILE).replace(options.output)
        (folder / MADE_WITH_FILE).unlink()
    print(json.dumps(summary, separators=(",", ":")))
    return 0


def parse_args(argv: list[str] | None) -> Options:
    """The command line."""
    parser = Parser(__doc__, prog="python -m prefilter_common.scoring")
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("input", type=Path, help="articles, JSON Lines; labels are not needed")
    parser.add_argument("output", type=Path, help="scores to write, JSON Lines; must not exist yet")
    parser.add_argument(
        "--engine",
        type=EngineName.parse,
        metavar="NAME",
        help=f"engine that runs the model (default: the one that the benchmark recommends), one of "
        f"{' '.join(map(str, ENGINES))}",
    )
    parser.add_argument(
        "--threshold", default="default", metavar="NAME", help="operating point that decides is_commerce"
    )
    parser.add_argument("--batch-size", type=batch_size, default=16, metavar="N", help="articles per forward pass")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="threads for the arithmetic (default: one per core)"
    )
    return Options(**vars(parser.parse_args(argv)))


def check_paths(options: Options) -> None:
    """Raise InputError for what is wrong before anything is read."""
    if not options.model.is_dir():
        raise InputError(f"{options.model}: no such model directory; check the path")
    if options.input.exists() and not options.input.is_file():
        raise InputError(f"{options.input}: not a file; the articles are read more than once, so write them to one")
    require_files(options.output)
    require_no_output(options)


def require_no_output(options: Options) -> None:
    """Raise InputError when the output exists."""
    if options.output.exists():
        if options.input.exists() and options.output.samefile(options.input):
            raise InputError(f"{options.output}: is the input; name another output")
        raise InputError(f"{options.output}: already exists; move it away, or name another output")


def made_with(scorer: Scorer, options: Options) -> dict[str, object]:
    """What the rows depend on, as plain JSON values: name -> value, or the beginning of the sha256 of a file."""
    model = fingerprints(scorer.engine.name.folder(options.model) or options.model)
    contract = asdict(scorer.contract)
    del contract["thresholds"]  # of these only one decides
    return {
        "input": file_fingerprint(options.input)["sha256"][:12],
        "engine": str(scorer.engine.name),
        "threshold": [options.threshold, scorer.threshold(options.threshold)],
        **contract,
        **{name: digest[:12] for name, digest in model.items()},
    }


def require_same_run(folder: Path, record: dict[str, object]) -> None:
    """Raise InputError when ``folder`` has rows that were not made with ``record``; else store it there."""
    path, rows = folder / MADE_WITH_FILE, folder / ROWS_FILE
    if not rows.exists() or not rows.stat().st_size:
        write_json(path, record)
        return
    try:
        earlier = parse_json(path.read_text(encoding="utf-8"))
        differences = [
            f"{key} was {json.dumps(earlier.get(key))}, now {json.dumps(record.get(key))}"
            for key in {**earlier, **record}
            if earlier.get(key) != record.get(key)
        ]
    except (OSError, ValueError, AttributeError, TypeError):
        differences = [f"{MADE_WITH_FILE} cannot be read"]
    if differences:
        raise InputError(
            f"{folder}: contains rows of an unfinished run that differs from this one ({'; '.join(differences)}); "
            "delete it, or name another output"
        )


def write_rows(scorer: Scorer, options: Options, folder: Path, total: int) -> Summary:
    """Write the rows that ``folder`` lacks, each chunk to the disk before the next. Returns the summary.

    Raises InputError when the rows in it do not belong to the input, or the input no longer has ``total`` articles.
    """
    threshold = scorer.threshold(options.threshold)
    articles = read_articles(options.input)
    with (folder / ROWS_FILE).open("a+b") as rows:
        kept, commerce = keep_rows(rows, articles, folder)
        if kept:
            log.info(f"resuming: {kept} of {total} rows exist, continuing with row {kept + 1}")
        done, started, logged = kept, time.perf_counter(), -math.inf
        for chunk in chunks(articles):
            scores = scorer.score(chunk, options.batch_size)
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
        raise InputError(f"{options.input}: changed while it was being scored; delete {folder} and start again")
    seconds = time.perf_counter() - started
    return {
        "articles": total,
        "commerce": commerce,
        "seconds": round(seconds, 1),
        "articles_per_second": round((total - kept) / seconds, 1),
        "engine": str(scorer.engine.name),
        "passes": 2 if scorer.contract.two_pass else 1,
        "peak_memory_mib": round(peak_memory_mib()),
    }


def chunks(articles: Iterable[Article]) -> Iterator[list[Article]]:
    """The articles, without what scoring does not read, in lists of at most ``CHUNK``; see ``CHUNK_CHARACTERS``."""
    chunk, characters = [], 0
    for article in articles:
        chunk.append(replace(article, extra={}))
        characters += len(article.title) + len(article.content)
        if len(chunk) >= CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def keep_rows(rows: BinaryIO, articles: Iterator[Article], folder: Path) -> tuple[int, int]:
    """Skip the articles whose rows exist already; cut off a row that a killed run left incomplete.

    Returns:
        How many rows are kept, and how many of them are commerce.

    Raises:
        InputError: a row does not belong to the article in its place.
    """
    rows.seek(0)
    kept = commerce = end = 0
    for line in rows:
        if not line.endswith(b"\n"):
            break
        try:
            row, article = parse_json(line.decode()), next(articles)
            if row["id"] != article.id:
                raise ValueError
            commerce += row["is_commerce"]
        except (ValueError, KeyError, TypeError, StopIteration):
            raise InputError(
                f"{rows.name}, line {kept + 1}: does not belong to that article of the input; "
                f"delete {folder}, or name another output"
            ) from None
        kept += 1
        end += len(line)
    rows.truncate(end)
    return kept, commerce


def row_line(article: Article, score: float, is_commerce: bool) -> str:
    """One line of the output."""
    row: ScoreRow = {
        "id": article.id, "score": round(score, 6), "is_commerce": is_commerce, "language": article.language,
        "characters": len(article.title) + len(article.content),
    }  # fmt: skip
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
