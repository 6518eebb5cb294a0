"""What training and evaluation check in a folder of splits: do its files match the manifest, and do they overlap?"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.audit.sections import duplicates, gather
from prefilter_common.splits.manifest import MANIFEST, ManifestRecord, manifest_state

log = logging.getLogger(__name__)


def manifest_record(files: Sequence[Path]) -> ManifestRecord | None:
    """The manifest beside ``files``, for a results file: its sha256, and which of the files no longer match it.

    None if there is no manifest, or a file is not one of its splits. Logs a warning about files that do not match.
    """
    folders = {path.resolve().parent for path in files}
    names = [path.stem for path in files]
    if len(folders) > 1 or not set(names) <= set(NAMES):
        return None
    (folder,) = folders
    state = manifest_state(folder)
    if state is None:
        return None
    record: ManifestRecord = {**state, "differs": [name for name in names if name in state["differs"]]}
    for text in manifest_warnings(record):
        log.warning(f"{folder}: {text}")
    return record


def manifest_warnings(record: ManifestRecord | None) -> list[str]:
    """Warnings that follow from a ``manifest_record``, one sentence each."""
    if record is None or not record["differs"]:
        return []
    return [f"{', '.join(record['differs'])} changed after {MANIFEST} was written"]


def require_disjoint(folder: Path, allow_overlap: bool = False) -> None:
    """Raise InputError if training articles, or near duplicates of them, are also in val or test; only warn if allowed.

    Splits that match their manifest are not checked again: that was done when they were written.
    """
    state = manifest_state(folder)
    if state is not None and not state["differs"]:
        return
    paths = {name: folder / f"{name}.jsonl" for name in NAMES}
    for text in overlaps({name: load_articles(path) for name, path in paths.items() if path.is_file()}):
        if not allow_overlap:
            raise InputError(
                f"{folder}: {text}; list them with python -m prefilter_common.splits audit {folder}, or pass "
                "--allow-overlap"
            )
        log.warning(f"{folder}: {text}")


def overlaps(splits: Mapping[str, Sequence[Article]]) -> list[str]:
    """One sentence per split, val or test, that shares articles with train: how many, and an example."""
    found = []
    for row in duplicates(gather(splits))["across"]:
        if row["articles"] and row["splits"][0] == "train":
            example, name = row["examples"][0], row["splits"][1]
            found.append(
                f"train and {name} overlap; articles of {name} that are also in train: {row['articles']}, "
                f"such as {example['article']['id']} ({example['kind']}, {example['other']['id']} in train)"
            )
    return found
