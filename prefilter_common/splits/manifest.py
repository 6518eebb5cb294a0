"""manifest.json: how a folder of splits was made, what its files contain, and whether they still match."""

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypedDict

from prefilter_common.articles import LABEL_NAMES, UNKNOWN, Article
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, read_record, sha256_of, write_json, write_json_lines
from prefilter_common.outputs import new_directory, require_free
from prefilter_common.runinfo import FileFingerprint, commit
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.cleaning import CleaningRow, Row, report_of
from prefilter_common.splits.grouping import ClusterCounts, PreviousCounts, length_name

MANIFEST, CLEANING = "manifest.json", "cleaning.jsonl"
FILES = {f"{name}.jsonl" for name in NAMES} | {MANIFEST, CLEANING}


class ManifestRecord(TypedDict):
    """The sha256 of a manifest, and the names of the splits that are not as it says."""

    sha256: str
    differs: list[str]


class MadeBy(TypedDict):
    """The command line and the commit that made splits, or a report on them."""

    command: str
    commit: str | None


class CellCount(TypedDict):
    """How many rows have this label, language, length and source."""

    label: int | None
    language: str
    length: str
    source: str
    rows: int


class SplitContent(TypedDict):
    """Numbers of rows: all, by the name of the label, and by cell."""

    rows: int
    labels: dict[str, int]
    counts: list[CellCount]


class SplitRecord(SplitContent):
    """The file of a split, and what it contains."""

    file: str
    sha256: str


class BuildSettings(TypedDict):
    """What decides labels and splits; ``test_after`` is a day, YYYY-MM-DD."""

    commerce_from: float
    journalism_below: float
    group_by: str | None
    test_after: str | None
    seed: int


class MergeRecord(MadeBy):
    """What one merge did; discarded rows by reason, repaired rows by kind."""

    inputs: list[FileFingerprint]
    input_rows: int
    added_rows: int
    corrected_rows: int
    discarded_rows: dict[str, int]
    repaired_rows: dict[str, int]


class Manifest(TypedDict, total=False):
    """``manifest.json``: what the build did, all merges since, and the splits by name.

    ``splits`` is always there; the rest only where it was done, since articles can be merged into any splits.
    """

    command: str
    commit: str | None
    inputs: list[FileFingerprint]
    settings: BuildSettings
    input_rows: int
    written_rows: int
    discarded_rows: dict[str, int]
    repaired_rows: dict[str, int]
    clusters: ClusterCounts
    previous: PreviousCounts
    merges: list[MergeRecord]
    splits: dict[str, SplitRecord]


def describe(articles: Sequence[Article]) -> SplitContent:
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


def made_by(argv: Sequence[str]) -> MadeBy:
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
    manifest: Manifest,
    rows: Sequence[Row],
    source: Path,
    source_hashes: Mapping[str, str],
    earlier_report: Sequence[CleaningRow] = (),
) -> Manifest:
    """Write the three files, the manifest and the row-by-row report, all of them or none.

    Args:
        target: folder to write.
        overwrite: whether to replace an existing folder.
        splits: name -> bytes of the file, and its articles.
        manifest: entries that precede the description of the files.
        rows: all rows that were read; those discarded or changed are reported.
        source: folder of the splits that these continue. It may be missing, and may be ``target``.
        source_hashes: its ``file_hashes`` from before it was read.
        earlier_report: report on rows that were read for these splits before.

    Returns:
        The whole manifest.

    Raises:
        InputError: nothing may be written there, or ``source`` has changed: what another process has added to it would
            be lost.
    """
    check_folder(target, overwrite)
    described: dict[str, SplitRecord] = {
        name: {"file": f"{name}.jsonl", "sha256": hashlib.sha256(content).hexdigest(), **describe(articles)}
        for name, (content, articles) in splits.items()
    }
    whole: Manifest = {**manifest, "splits": described}
    with new_directory(target, overwrite) as folder:
        if file_hashes(source) != source_hashes:
            raise InputError(f"{source}: another process changed it meanwhile; run the same command again")
        for name, (content, _) in splits.items():
            (folder / f"{name}.jsonl").write_bytes(content)
        report = [report_of(row) for row in rows if row.reason or row.repairs]
        write_json_lines(folder / CLEANING, [*earlier_report, *report])
        write_json(folder / MANIFEST, whole)
    return whole


def file_hashes(folder: Path) -> dict[str, str]:
    """The name and the sha256 of each file in a folder that a build or a merge writes."""
    paths = [folder / name for name in sorted(FILES)]
    return {path.name: sha256_of(path) for path in paths if path.is_file()}


def read_report(folder: Path) -> list[CleaningRow]:
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


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, None if there is none. Raises InputError if it is damaged."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    record: Any = read_record(path)
    splits, merges = record.get("splits"), record.get("merges", [])
    fix = "delete the file, or build the splits again"
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name, {}), dict) for name in NAMES):
        raise InputError(f'{path}: "splits" must be an object with one object per split; {fix}')
    if not isinstance(merges, list):
        raise InputError(f'{path}: "merges" must be a list; {fix}')
    if (settings := record.get("settings")) is not None:
        try:
            _, day = settings["group_by"], settings["test_after"]
            if day is not None:
                date.fromisoformat(day)
        except (KeyError, TypeError, ValueError):
            raise InputError(f'{path}: "settings" are not those of a build; {fix}') from None
    return record


def manifest_state(folder: Path) -> ManifestRecord | None:
    """Whether the files match the manifest, None if there is none. Raises InputError if it cannot be read."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    present = file_hashes(folder)
    described = {name: record.get("sha256") for name, record in manifest["splits"].items() if name in NAMES}
    return {
        "sha256": present[MANIFEST],
        "differs": [name for name in NAMES if described.get(name) != present.get(f"{name}.jsonl")],
    }
