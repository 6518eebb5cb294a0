"""Answered review queues and audits in, more training articles out. Val and test stay the same, byte for byte."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.files import BYTE_ORDER_MARK, parse_json
from prefilter_common.runinfo import file_fingerprint
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.build import drop_repeated, log_discarded, with_own_ids
from prefilter_common.splits.cleaning import (
    INVALID,
    LABEL,
    NO_TEXT,
    Row,
    all_articles,
    json_lines,
    kept_articles,
    read_row,
    read_rows,
    text_hash,
)
from prefilter_common.splits.duplicates import clusters, find_pairs, same_id_pairs
from prefilter_common.splits.grouping import published
from prefilter_common.splits.guard import overlaps
from prefilter_common.splits.manifest import (
    BuildSettings,
    Manifest,
    MergeRecord,
    check_folder,
    discarded_by_reason,
    file_hashes,
    made_by,
    read_manifest,
    read_report,
    repaired_by_kind,
    write_folder,
)

NO_ANSWER, KNOWN, HELD_OUT, CONTRADICTED, KEPT_OUT = (
    "no label", "already in train", "shared with val or test", "conflicting labels", "kept out of train by the build",
)  # fmt: skip


@dataclass(frozen=True)
class MergeOptions:
    """The options of ``merge``; ``output`` may be the folder of the ``splits`` itself."""

    inputs: tuple[Path, ...]
    splits: Path
    output: Path
    overwrite: bool = False


def merge(options: MergeOptions, argv: Sequence[str] = ()) -> Manifest:
    """Add labelled articles to train. Returns the manifest. Raises InputError before anything is written."""
    check_folder(options.output, options.overwrite, options.inputs)
    source_hashes = file_hashes(options.splits)
    manifest: Manifest = read_manifest(options.splits) or {}
    earlier_report = read_report(options.splits)
    contents = read_contents(options.splits)
    held = {name: parse(options.splits / f"{name}.jsonl", content) for name, content in contents.items()}
    rows = drop_repeated(discard_contradicted(discard_unanswered(read_rows(options.inputs))))
    log_discarded(rows)
    require_answers(rows)
    rows, answers = match_rows(discard_kept_out(rows, held, manifest.get("settings")), held)
    lines, corrected = correct(contents["train"], held["train"], answers)
    new = iter(
        with_own_ids([row for row in rows if LABEL not in row.repairs], taken={str(a.id) for a in held["train"]})
    )
    rows = [row if LABEL in row.repairs else next(new) for row in rows]
    _, added = kept_articles([row for row in rows if LABEL not in row.repairs])
    # Without a score: the next build would label them by it again.
    added = [replace(article, commerce_score=None) for article in added]
    splits = {name: (contents[name], articles) for name, articles in held.items()}
    splits["train"] = (lines + json_lines(added), corrected + added)
    for text in overlaps({name: articles for name, (_, articles) in splits.items()}):
        raise InputError(f"{options.splits}: {text}; delete these from train, or build the splits again")
    written = len(kept_articles(rows)[1])
    record: MergeRecord = {
        **made_by(argv),
        "inputs": [file_fingerprint(path) for path in options.inputs],
        "input_rows": len(rows),
        "added_rows": len(added),
        "corrected_rows": written - len(added),
        "discarded_rows": discarded_by_reason(rows, written),
        "repaired_rows": repaired_by_kind(rows),
    }
    manifest.pop("splits", None)
    manifest["merges"] = [*manifest.pop("merges", []), record]
    source = options.splits, source_hashes
    return write_folder(options.output, options.overwrite, splits, manifest, rows, *source, earlier_report)


def read_contents(folder: Path) -> dict[str, bytes]:
    """Split -> the bytes of its file. Raises InputError for a file that is missing, or that training would refuse."""
    paths = {name: folder / f"{name}.jsonl" for name in NAMES}
    for path in paths.values():
        load_articles(path, require_labels=True)
    return {name: path.read_bytes() for name, path in paths.items()}


def parse(path: Path, content: bytes) -> list[Article]:
    """The articles in a split's file, one per non-blank line. Raises InputError for a bad line."""
    lines = enumerate(content.split(b"\n"), start=1)
    return all_articles(read_row(str(path), i, line) for i, line in lines if line.removeprefix(BYTE_ORDER_MARK).strip())


def discard_unanswered(rows: Iterable[Row]) -> list[Row]:
    """Discard rows without a label."""
    return [
        row.discard(NO_ANSWER, '"label" is missing or null') if row.kept is not None and row.kept.label is None else row
        for row in rows
    ]


def require_answers(rows: Sequence[Row]) -> None:
    """Raise InputError if no row has both text and a label, as in a file of another kind."""
    if {row.reason for row in rows} <= {INVALID, NO_TEXT, NO_ANSWER}:
        reasons = ", ".join(f"{n:,} × {reason}" for reason, n in discarded_by_reason(rows, 0).items())
        raise InputError(f"no row has both text and a label: {reasons}")


def discard_contradicted(rows: Sequence[Row]) -> list[Row]:
    """Discard every row whose text has been given both labels."""
    places, articles = kept_articles(rows)
    labels = defaultdict(set)
    for article in articles:
        labels[text_hash(article)].add(article.label)
    remaining = list(rows)
    for i, article in zip(places, articles, strict=True):
        if len(labels[text_hash(article)]) > 1:
            remaining[i] = rows[i].discard(CONTRADICTED)
    return remaining


def discard_kept_out(
    rows: Sequence[Row], held: Mapping[str, Sequence[Article]], settings: BuildSettings | None
) -> list[Row]:
    """Discard what the build's settings keep out of train: sources of val and test, or articles of the test's days."""
    by_source = settings is not None and settings["group_by"] is not None
    after = date.fromisoformat(settings["test_after"]) if settings and settings["test_after"] else None
    sources = {article.source for name in ("val", "test") for article in held[name]} - {None}
    remaining = list(rows)
    for i, article in zip(*kept_articles(rows), strict=True):
        day = published(article)
        if by_source and article.source in sources:
            remaining[i] = rows[i].discard(KEPT_OUT, f"--group-by: val or test has the source {article.source}")
        elif after and day and day > after:
            remaining[i] = rows[i].discard(KEPT_OUT, f"--test-after: published on {day}, after {after}")
    return remaining


def match_rows(rows: Sequence[Row], held: Mapping[str, Sequence[Article]]) -> tuple[list[Row], dict[int, int]]:
    """Discard articles that are already in train with the same label, or share text or id with one in val or test.

    Returns:
        The rows, and the labels to correct: index in train -> label. Rows that correct one have ``LABEL`` as a repair.
    """
    places, articles = kept_articles(rows)
    train = held["train"]
    everyone = [*articles, *train, *held["val"], *held["test"]]
    groups = clusters(len(everyone), find_pairs(everyone) + same_id_pairs(everyone)).tolist()
    held_out = {groups[k]: everyone[k].id for k in range(len(articles) + len(train), len(everyone))}
    twins = twins_of(articles, train)
    answered = defaultdict(set)
    for twin, article in zip(twins, articles, strict=True):
        answered[twin].add(article.label)
    compared, answers = list(rows), {}
    for i, article, group, twin in zip(places, articles, groups, twins, strict=False):
        if group in held_out:
            compared[i] = rows[i].discard(HELD_OUT, f"matches {held_out[group]}")
        elif twin is None:
            continue
        elif len(answered[twin]) > 1:
            compared[i] = rows[i].discard(CONTRADICTED, f"several rows match {train[twin].id}")
        elif train[twin].label == article.label:
            compared[i] = rows[i].discard(KNOWN, f"matches {train[twin].id}, which has this label")
        elif article.label is not None:
            answers[twin] = article.label
            compared[i] = replace(rows[i], repairs=(*rows[i].repairs, LABEL))
    return compared, answers


def twins_of(articles: Sequence[Article], train: Sequence[Article]) -> list[int | None]:
    """For each article, the index in ``train`` of the same text, or else of the same id and a similar text, or None.

    The same id alone proves nothing: different files may use the same numbers.
    """
    by_id = {article.id: k for k, article in enumerate(train)}
    by_text = {text_hash(article): k for k, article in enumerate(train)}
    twins = []
    for article in articles:
        twin = by_text.get(text_hash(article))
        same = by_id.get(article.id)
        if twin is None and same is not None and find_pairs([article, train[same]]):
            twin = same
        twins.append(twin)
    return twins


def correct(content: bytes, articles: Sequence[Article], answers: Mapping[int, int]) -> tuple[bytes, list[Article]]:
    """The training file with corrected labels, and its articles. A corrected article loses its score."""
    lines = [line for line in content.split(b"\n") if line.removeprefix(BYTE_ORDER_MARK).strip()]
    corrected = list(articles)
    for place, label in answers.items():
        record = parse_json(lines[place].decode("utf-8-sig"))
        record["label"] = label
        record.pop("commerce_score", None)
        lines[place] = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        corrected[place] = replace(articles[place], label=label, commerce_score=None)
    return b"".join(line + b"\n" for line in lines), corrected
