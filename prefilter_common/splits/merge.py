"""Answered review queues and audits in, more training articles out. Val and test stay the same, byte for byte."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.files import require_free
from prefilter_common.runinfo import file_fingerprint
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.build import drop_repeated, json_lines, kept_articles, log_discarded
from prefilter_common.splits.cleaning import LABEL, Row, read_row, read_rows, text_hash
from prefilter_common.splits.duplicates import clusters, find_pairs, same_id_pairs
from prefilter_common.splits.manifest import (
    check_folder,
    discarded_by_reason,
    made_by,
    read_manifest,
    read_report,
    repaired_by_kind,
    write_folder,
)

NO_ANSWER, KNOWN, HELD_OUT, CONTRADICTED = (
    "no label", "already in train", "shared with val or test", "conflicting labels",
)  # fmt: skip


@dataclass(frozen=True)
class MergeOptions:
    """The options of ``merge``; ``output`` may be the folder of the ``splits`` itself."""

    inputs: tuple[Path, ...]
    splits: Path
    output: Path
    overwrite: bool = False


def merge(options: MergeOptions, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Add labelled articles to train. Returns the manifest. Raises InputError before anything is written."""
    require_free(options.output, options.overwrite)
    check_folder(options.output)
    contents = read_contents(options.splits)
    held = {name: parse(options.splits / f"{name}.jsonl", content) for name, content in contents.items()}
    rows = discard_contradicted(discard_unanswered(read_rows(options.inputs)))
    rows = drop_repeated(rows)
    log_discarded(rows)
    rows, answers = compare(rows, held)
    lines, corrected = correct(contents["train"], held["train"], answers)
    _, added = kept_articles([row for row in rows if LABEL not in row.repairs])
    written = len(kept_articles(rows)[1])
    earlier = read_manifest(options.splits) or {}
    record = {
        **made_by("merge", argv),
        "inputs": [file_fingerprint(path) for path in options.inputs],
        "input_rows": len(rows),
        "added_rows": len(added),
        "corrected_rows": len(answers),
        "discarded_rows": discarded_by_reason(rows, written),
        "repaired_rows": repaired_by_kind(rows),
    }
    manifest = {key: value for key, value in earlier.items() if key not in ("splits", "merges")}
    manifest["merges"] = [*earlier.get("merges", []), record]
    splits = {name: (contents[name], articles) for name, articles in held.items()}
    splits["train"] = (lines + json_lines(added), corrected + added)
    return write_folder(options.output, options.overwrite, splits, manifest, rows, read_report(options.splits))


def read_contents(folder: Path) -> dict[str, bytes]:
    """Split -> the bytes of its file. Raises InputError if one is missing."""
    try:
        return {name: (folder / f"{name}.jsonl").read_bytes() for name in NAMES}
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); --splits needs train.jsonl, val.jsonl and test.jsonl"
        ) from None


def parse(path: Path, content: bytes) -> list[Article]:
    """The articles in a split's file, one per non-blank line. Raises InputError for a bad line."""
    rows = [read_row(str(path), i, line) for i, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    for row in rows:
        if row.reason is not None:
            raise InputError(f"{path}, line {row.line}: {row.reason}: {row.detail}; correct or delete it")
    return kept_articles(rows)[1]


def discard_unanswered(rows: Iterable[Row]) -> list[Row]:
    """Discard rows without a label."""
    return [
        row.discard(NO_ANSWER, '"label" is missing or null') if row.kept is not None and row.kept.label is None else row
        for row in rows
    ]


def discard_contradicted(rows: Sequence[Row]) -> list[Row]:
    """Discard articles that were labelled twice, once as each."""
    places, articles = kept_articles(rows)
    labels = defaultdict(set)
    for article in articles:
        labels[article.id, text_hash(article)].add(article.label)
    remaining = list(rows)
    for i, article in zip(places, articles, strict=True):
        if len(labels[article.id, text_hash(article)]) > 1:
            remaining[i] = rows[i].discard(CONTRADICTED)
    return remaining


def compare(rows: Sequence[Row], held: Mapping[str, Sequence[Article]]) -> tuple[list[Row], dict[int, int]]:
    """Discard articles that are already in train with the same label, or share text or id with one in val or test.

    Returns:
        The rows, and the labels to correct: index in train -> label. Rows that correct one have ``LABEL`` as a repair.
    """
    places, articles = kept_articles(rows)
    train = held["train"]
    everyone = [*articles, *train, *held["val"], *held["test"]]
    groups = clusters(len(everyone), find_pairs(everyone) + same_id_pairs(everyone)).tolist()
    held_out = {groups[k]: everyone[k].id for k in range(len(articles) + len(train), len(everyone))}
    by_id = {article.id: k for k, article in enumerate(train)}
    by_text = {text_hash(article): k for k, article in enumerate(train)}
    compared, answers = list(rows), {}
    for i, article, group in zip(places, articles, groups, strict=False):
        twin = by_text.get(text_hash(article), by_id.get(article.id))
        if group in held_out:
            compared[i] = rows[i].discard(HELD_OUT, f"matches {held_out[group]}")
        elif twin is not None and train[twin].label == article.label:
            compared[i] = rows[i].discard(KNOWN, f"matches {train[twin].id}, which has this label")
        elif twin is not None and article.label is not None:
            answers[twin] = article.label
            compared[i] = replace(rows[i], repairs=(*rows[i].repairs, LABEL))
    return compared, answers


def correct(content: bytes, articles: Sequence[Article], answers: Mapping[int, int]) -> tuple[bytes, list[Article]]:
    """The training file with corrected labels, and its articles. A corrected article loses its score."""
    lines = [line for line in content.split(b"\n") if line.strip()]
    corrected = list(articles)
    for place, label in answers.items():
        record = json.loads(lines[place].decode("utf-8-sig"))
        record["label"] = label
        record.pop("commerce_score", None)
        lines[place] = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        corrected[place] = replace(articles[place], label=label, commerce_score=None)
    return b"".join(line + b"\n" for line in lines), corrected
