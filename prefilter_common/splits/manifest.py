"""manifest.json: how a folder of splits was made, what its files contain, and whether they still match."""

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefilter_common.articles import LABEL_NAMES, Article
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, write_json, write_json_lines
from prefilter_common.models.directory import read_record
from prefilter_common.outputs import new_directory, require_free
from prefilter_common.runinfo import commit, file_fingerprint
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.cleaning import Row

MANIFEST, CLEANING = "manifest.json", "cleaning.jsonl"
FILES = {f"{name}.jsonl" for name in NAMES} | {MANIFEST, CLEANING}
UNKNOWN = "unknown"
# Characters in title and content: a feed snippet, the opening of an article, a whole article.
LENGTHS = ((250, "<250"), (1000, "250-999"))
LONGEST = "1000+"
LENGTH_NAMES = (*(name for _, name in LENGTHS), LONGEST)


@dataclass(frozen=True)
class ManifestState:
    """A folder's manifest: its sha256, and the names of the splits whose files do not match it."""

    sha256: str
    differs: tuple[str, ...]


def length_name(article: Article) -> str:
    """``<250``, ``250-999`` or ``1000+`` characters."""
    characters = len(article.title) + len(article.content)
    return next((name for limit, name in LENGTHS if characters < limit), LONGEST)


def describe(articles: Sequence[Article]) -> dict[str, Any]:
    """The number of rows: in total, per label, and per label × language × length × source, most frequent first."""
    labels = Counter(LABEL_NAMES[a.label] for a in articles if a.label is not None)
    cells = Counter((a.label, a.language or UNKNOWN, length_name(a), a.source or UNKNOWN) for a in articles)
    return {
        "rows": len(articles),
        "labels": {name: labels[name] for name in LABEL_NAMES},
        "counts": [
            {"label": label, "language": language, "length": length, "source": source, "rows": n}
            for (label, language, length, source), n in sorted(cells.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def made_by(argv: Sequence[str]) -> dict[str, Any]:
    """The command line and the commit. No time stamp, so that the same data give the same manifest."""
    line = shlex.join(["python", "-m", "prefilter_common.splits", *argv])
    return {"command": line, "commit": commit()}


def discarded_by_reason(rows: Sequence[Row], written: int) -> dict[str, int]:
    """Reason -> number of discarded rows. Raises RuntimeError unless these and the written rows add up to all rows."""
    reasons = Counter(row.reason for row in rows if row.reason is not None)
    if written + reasons.total() != len(rows):
        raise RuntimeError(f"{len(rows)} rows read, but {written} written and {reasons.total()} discarded")
    return dict(sorted(reasons.items()))


def repaired_by_kind(rows: Sequence[Row]) -> dict[str, int]:
    """Repair -> number of rows that it changed, whether they are written or not."""
    return dict(sorted(Counter(kind for row in rows for kind in row.repairs).items()))


def check_folder(target: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise InputError unless the folder may be written without losing an input, or a file that is not ours."""
    require_free(target, overwrite)
    real = target.resolve()
    for path in inputs:
        places = (path.resolve(), path.parent.resolve() / path.name)  # a link, too, would be lost with its folder
        if path.exists() and any(place.is_relative_to(real) for place in places):
            raise InputError(f"{target}: contains the input {path}, which would be lost; name another folder")
    others = sorted({path.name for path in target.iterdir()} - FILES) if target.is_dir() else []
    if others:
        raise InputError(f"{target}: also contains {', '.join(others)}, which would be lost; move it elsewhere")


def write_folder(
    target: Path,
    overwrite: bool,
    splits: Mapping[str, tuple[bytes, Sequence[Article]]],
    manifest: Mapping[str, Any],
    rows: Sequence[Row],
    earlier_report: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write the three files, the manifest and the row-by-row report, all of them or none.

    Args:
        target: folder to write.
        overwrite: whether to replace an existing folder.
        splits: name -> bytes of the file, and its articles.
        manifest: entries that precede the description of the files.
        rows: all rows that were read; those discarded or changed are reported.
        earlier_report: report on rows that were read for these splits before.

    Returns:
        The whole manifest.
    """
    check_folder(target, overwrite)
    described = {
        name: {"file": f"{name}.jsonl", "sha256": hashlib.sha256(content).hexdigest(), **describe(articles)}
        for name, (content, articles) in splits.items()
    }
    whole = {**manifest, "splits": described}
    with new_directory(target, overwrite) as folder:
        for name, (content, _) in splits.items():
            (folder / f"{name}.jsonl").write_bytes(content)
        report = [_report(row) for row in rows if row.reason or row.repairs]
        write_json_lines(folder / CLEANING, [*earlier_report, *report])
        write_json(folder / MANIFEST, whole)
    return whole


def read_report(folder: Path) -> list[dict[str, Any]]:
    """The row-by-row report in a folder, empty if there is none. Raises InputError if it cannot be read."""
    path = folder / CLEANING
    try:
        rows = [parse_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it") from None
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: contains a line that is not a JSON object; delete it")
    return rows


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder, None if there is none. Raises InputError if it is damaged."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    manifest = read_record(path)
    splits, merges = manifest.get("splits"), manifest.get("merges", [])
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name, {}), dict) for name in NAMES):
        raise InputError(
            f'{path}: "splits" must be an object with one object per split; delete the file, or build the splits again'
        )
    if not isinstance(merges, list):
        raise InputError(f'{path}: "merges" must be a list; delete the file, or build the splits again')
    return manifest


def manifest_state(folder: Path) -> ManifestState | None:
    """Whether the files match the manifest, None if there is none. Raises InputError if it cannot be read."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    described = {name: manifest["splits"].get(name, {}).get("sha256") for name in NAMES}
    present = {
        name: file_fingerprint(folder / f"{name}.jsonl")["sha256"] if (folder / f"{name}.jsonl").is_file() else None
        for name in NAMES
    }
    differs = tuple(name for name in NAMES if described[name] != present[name])
    return ManifestState(hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(), differs)


def _report(row: Row) -> dict[str, Any]:
    report: dict[str, Any] = {"file": row.file, "line": row.line, "id": row.article.id if row.article else None}
    if row.reason:
        report["discarded"] = row.reason
    if row.reason or row.detail:
        report["detail"] = row.detail
    return {**report, "repaired": list(row.repairs)}
