"""The complete rows of a run in, its outputs in their places: all of them, also where a run was killed in between."""

import errno
import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prefilter_common.outputs import partial_name
from prefilter_common.scoring.division import write_parts
from prefilter_common.scoring.rows import MADE_WITH_FILE, ROWS_FILE, require_same_input

STANDARD = Path("-")
DELIVERED_FILE, COPY_FILE = "delivered.jsonl", "copy.jsonl"


def deliver(articles: Path, folder: Path, divided: Mapping[str, Path], output: Path | None) -> None:
    """Move the outputs into place; the rows last of the files, so that a run killed in between can divide again, and
    standard output after all of them, so that the next run does not send it a second time.

    Args:
        articles: the input of the run whose rows are in ``folder``.
        divided: part of the input -> where it goes; ``-`` is standard output, as it is for ``output``.

    Raises:
        InputError: the input is no longer the one that was scored.
    """
    rows = folder / ROWS_FILE
    made = {part: folder / f"{part}.jsonl" for part in divided}
    require_same_input(articles, folder)
    if made:
        write_parts(articles, rows, made)
        require_same_input(articles, folder)  # else the rows of one would be in the lines of another
    targets = [(path, divided[part]) for part, path in made.items()]
    if output and STANDARD in divided.values():
        targets.append((shutil.copyfile(rows, folder / COPY_FILE), output))  # the rows stay, should the reader be gone
    elif output:
        targets.append((rows, output))
    for path, target in sorted(targets, key=lambda pair: pair[1] == STANDARD):
        _deliver(path, target, folder / DELIVERED_FILE)
    for left in (rows, *made.values(), folder / MADE_WITH_FILE, folder / DELIVERED_FILE):
        left.unlink(missing_ok=True)


def is_delivered(path: Path, folder: Path) -> bool:
    """Whether a run that was killed before it put all of its outputs in place has put this one there."""
    if not (folder / ROWS_FILE).is_file():  # all are
        return False
    with suppress(OSError, ValueError):
        return _identity(path) in (folder / DELIVERED_FILE).read_text(encoding="utf-8").splitlines()
    return False


def _deliver(source: Path, target: Path, record: Path) -> None:
    if target == STANDARD:
        with source.open("rb") as content:
            shutil.copyfileobj(content, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _put_in_place(source, target, record)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # To the other disk, where it can be renamed. What is there is a killed run's, or a stranger's link.
        partial_name(target).unlink(missing_ok=True)
        with source.open("rb") as content, partial_name(target).open("xb") as copy:
            shutil.copyfileobj(content, copy)
        _put_in_place(partial_name(target), target, record)


def _put_in_place(source: Path, target: Path, record: Path) -> None:
    with record.open("a", encoding="utf-8") as delivered:
        delivered.write(_identity(source) + "\n")
    source.replace(target)


def _identity(path: Path) -> str:
    """What a file keeps when it is renamed, and another one with the same name does not have."""
    stat = path.stat()
    return json.dumps([stat.st_ino, stat.st_size, stat.st_mtime_ns])
