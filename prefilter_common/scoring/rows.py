"""The rows of a scoring run: each chunk is on the disk before the next is scored, and a stopped run continues."""

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, NotRequired, TypedDict

import numpy as np

from prefilter_common.articles import Article, read_articles
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, write_json
from prefilter_common.models.directory import fingerprints
from prefilter_common.runinfo import file_fingerprint, peak_memory_mib
from prefilter_common.scoring.scorer import CHUNK, Scorer

log = logging.getLogger(__name__)

# In the hidden directory beside the output, until the output is complete: its rows, and what they were made with.
ROWS_FILE, MADE_WITH_FILE = "rows.jsonl", "run.json"
PROGRESS_SECONDS = 10
# A chunk ends with the article that brings it to this many characters, so that memory is bounded by the longest
# article, not by CHUNK.
CHUNK_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Run:
    """What is scored with what: ``scorers`` are the model and, where there is one, its shadow."""

    scorers: Sequence[Scorer]
    articles: Path
    threshold: str
    batch_size: int

    def made_with(self) -> dict[str, object]:
        """What the rows depend on, as plain JSON values: name -> value, or the beginning of the sha256 of a file."""
        record: dict[str, object] = {"input": file_fingerprint(self.articles)["sha256"][:12]}
        models = {
            prefix + part: model
            for prefix, scorer in zip(("", "shadow "), self.scorers, strict=False)
            for part, model in (("", scorer), ("full ", scorer.full))
            if model is not None
        }
        for prefix, scorer in models.items():
            directory = Path(scorer.name)
            model = fingerprints(scorer.engine.name.folder(directory) or directory)
            contract = asdict(scorer.contract)
            del contract["thresholds"]  # of these only one decides
            contract["stages"] = list(contract["stages"])  # as JSON has it
            depends = {
                "engine": str(scorer.engine.name),
                **contract,
                **{name: digest[:12] for name, digest in model.items()},
            }
            record |= {prefix + name: value for name, value in depends.items()}
            try:
                record[prefix + "threshold"] = [self.threshold, scorer.contract.threshold(self.threshold)]
            except InputError as error:
                raise InputError(f"{scorer.name}: {error}") from None
        return record


class ScoreRow(TypedDict):
    """One line of the output."""

    id: str | None
    score: float
    is_commerce: bool
    language: str | None
    characters: int
    unread: NotRequired[bool]  # only where true: no model reads it, so that it scores 0
    shadow_score: NotRequired[float]
    shadow_is_commerce: NotRequired[bool]
    shadow_unread: NotRequired[bool]


class Summary(TypedDict):
    """The last line on stdout; seconds are those of this run, without loading."""

    articles: int
    commerce: int
    unread: int
    seconds: float
    articles_per_second: float
    engine: str
    stages: list[str]  # before the full read
    peak_memory_mib: int
    differ: NotRequired[int]  # articles that model and shadow decide differently


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


def require_same_input(articles: Path, folder: Path) -> None:
    """Raise InputError unless the articles are those of which ``folder`` has the rows."""
    scored = parse_json((folder / MADE_WITH_FILE).read_text(encoding="utf-8"))["input"]
    if not articles.is_file() or file_fingerprint(articles)["sha256"][: len(scored)] != scored:
        raise InputError(f"{articles}: changed while it was being scored; delete {folder} and start again")


def write_rows(run: Run, folder: Path, total: int) -> Summary:
    """Write the rows that ``folder`` lacks, each chunk to the disk before the next.

    Raises InputError when the rows in it do not belong to the input, or the input no longer has ``total`` articles.
    """
    articles = read_articles(run.articles)
    with (folder / ROWS_FILE).open("a+b") as rows:
        counts = keep_rows(rows, articles, folder)
        kept = done = counts["rows"]
        if kept:
            log.info(f"resuming: {kept} of {total} rows exist, continuing with row {kept + 1}")
        started, logged = time.perf_counter(), -math.inf
        for chunk in chunks(articles):
            made = score_rows(run, chunk)
            rows.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in made).encode())
            rows.flush()
            os.fsync(rows.fileno())
            done += len(chunk)
            count(counts, made)
            now = time.perf_counter()
            if done >= total or now - logged > PROGRESS_SECONDS:
                rate, logged = (done - kept) / (now - started), now
                left = (total - done) / rate / 60
                log.info(f"{done}/{total} ({done / total:.0%}) | {rate:.0f} articles/s | eta {left:.1f} min")
    if done != total:
        raise InputError(f"{run.articles}: changed while it was being scored; delete {folder} and start again")
    seconds = time.perf_counter() - started
    summary: Summary = {
        "articles": total,
        "commerce": counts["commerce"],
        "unread": counts["unread"],
        "seconds": round(seconds, 1),
        "articles_per_second": round((total - kept) / seconds, 1),
        "engine": str(run.scorers[0].engine.name),
        "stages": run.scorers[0].contract.stage_names,
        "peak_memory_mib": round(peak_memory_mib()),
    }
    if len(run.scorers) > 1:
        summary["differ"] = counts["differ"]
    if counts["unread"]:
        name, full = run.scorers[0].name, run.scorers[0].full
        who, fix = (f"neither it nor {full.name} knows", "") if full else ("it does not know", ", or pass --full")
        log.warning(
            f"{name}: {counts['unread']} of {total} articles are in characters that {who}; they are let through{fix}"
        )
    return summary


def score_rows(run: Run, articles: Sequence[Article]) -> list[ScoreRow]:
    """The rows of one chunk."""
    decided = [scorer.classify(articles, run.threshold, run.batch_size) for scorer in run.scorers]
    (scores, flags), *shadow = [(scores.tolist(), flags.tolist()) for scores, flags in decided]
    rows: list[ScoreRow] = [
        {
            "id": article.id,
            "score": round(score, 6),
            "is_commerce": is_commerce,
            "language": article.language,
            "characters": article.characters,
        }
        for article, score, is_commerce in zip(articles, scores, flags, strict=True)
    ]
    for i in np.flatnonzero(run.scorers[0].unread(articles)).tolist():
        rows[i]["unread"] = True
    for found in shadow:
        for row, score, is_commerce in zip(rows, *found, strict=True):
            row["shadow_score"], row["shadow_is_commerce"] = round(score, 6), is_commerce
        for i in np.flatnonzero(run.scorers[1].unread(articles)).tolist():
            rows[i]["shadow_unread"] = True
    return rows


def differs(row: ScoreRow) -> bool:
    """Whether model and shadow decide otherwise; what the shadow cannot read it does not decide."""
    return "shadow_unread" not in row and row.get("shadow_is_commerce", row["is_commerce"]) != row["is_commerce"]


def chunks(articles: Iterable[Article]) -> Iterator[list[Article]]:
    """The articles, without what scoring does not read, in lists of at most ``CHUNK``; see ``CHUNK_CHARACTERS``."""
    chunk, characters = [], 0
    for article in articles:
        chunk.append(replace(article, extra={}))
        characters += article.characters
        if len(chunk) >= CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def count(counts: Counter[str], rows: Iterable[ScoreRow]) -> None:
    """Add to the numbers of ``rows``, and of those ``commerce``, ``unread``, or where the shadow's ``differ``."""
    for row in rows:
        unread, differ = int("unread" in row), int(differs(row))
        counts.update(rows=1, commerce=int(row["is_commerce"]), unread=unread, differ=differ)


def keep_rows(rows: BinaryIO, articles: Iterator[Article], folder: Path) -> Counter[str]:
    """Skip the articles whose rows exist already; cut off a row that a killed run left incomplete.

    Returns the ``count`` of the rows that are kept. Raises InputError when one does not belong to the article in its
    place.
    """
    rows.seek(0)
    counts: Counter[str] = Counter()
    end = 0
    for line in rows:
        if not line.endswith(b"\n"):
            break
        try:
            row, article = parse_json(line.decode()), next(articles)
            if row["id"] != article.id:
                raise ValueError
            count(counts, [row])
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            raise InputError(
                f"{rows.name}, line {counts['rows'] + 1}: does not belong to that article of the input; "
                f"delete {folder}, or name another output"
            ) from None
        end += len(line)
    rows.truncate(end)
    return counts
