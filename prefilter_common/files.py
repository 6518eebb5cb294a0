"""Files and directories that appear complete or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from prefilter_common.cli import InputError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary neighbour, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write indented JSON; NaN and infinity raise ValueError, since other languages' parsers refuse them."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one compact JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


@contextmanager
def new_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, renamed to ``target`` when the block ends well and deleted when it does not.

    The name starts with a dot, which the scripts that list models pass over, so a killed run leaves nothing that
    looks finished; the next run to the same target clears it away. Raises InputError when the target exists and is
    not to be overwritten, cannot be created, or is being written by another process.
    """
    target = Path(target)
    check_free(target, overwrite)
    partial = partial_name(target)
    owner = _claim(partial, target, keep=False)
    try:
        yield partial
        owner.unlink()
        _move_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def kept_directory(target: Path) -> Iterator[Path]:
    """The hidden neighbour of ``target``, for this process alone; what is in it afterwards is kept for the next run.

    Raises InputError when it cannot be created or another process has it.
    """
    partial = partial_name(target)
    owner = _claim(partial, target, keep=True)
    try:
        yield partial
    finally:
        owner.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            partial.rmdir()


def _claim(partial: Path, target: Path, keep: bool) -> Path:
    """Make ``partial`` this process's, with what a dead one left there or without. Returns the file that says so."""
    owner = partial / "pid"
    try:
        if _is_alive(owner):
            raise InputError(f"{target}: process {owner.read_text()} is writing it; wait, or name another output")
        if partial.exists() and not keep:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        owner.write_text(str(os.getpid()))
    except OSError as error:
        raise InputError(f"{target}: cannot be created ({error.strerror}); name another output") from None
    return owner


def _is_alive(owner: Path) -> bool:
    """Whether the process runs that wrote its id into ``owner``.

    One that has started since then only has the same id: in a container every run may have the id 1.
    """
    try:
        written, process = owner.stat().st_mtime, psutil.Process(int(owner.read_text()))
        return process.create_time() <= written
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return False


def check_free(target: Path, overwrite: bool = False) -> None:
    """Raise InputError when ``new_directory`` would refuse ``target``, for what comes only after hours of work."""
    if target.is_file():
        raise InputError(f"{target}: is a file; name a directory")
    if target.exists() and not overwrite and any(target.iterdir()):
        raise InputError(f"{target}: already exists; pass --overwrite to replace it, or another --output")


def partial_name(target: Path) -> Path:
    """What ``new_directory`` calls ``target`` while it is being filled."""
    return target.with_name(f".{target.name}.partial")


def _move_into_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    # A full directory cannot be replaced in one call; between these two the old one is whole under its other name.
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def model_directories(models_dir: Path, names: Sequence[str] | None = None) -> list[Path]:
    """The directories under ``models_dir``, by name; only those in ``names`` where given.

    Names that start with a dot are passed over: those are unfinished. Raises InputError.
    """
    if not models_dir.is_dir():
        raise InputError(f"{models_dir}: no such directory; train a model first (python train_encoder.py)")
    found = sorted(path for path in models_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise InputError(f"{models_dir}: holds no models; train one first (python train_encoder.py)")
    if names is None:
        return found
    missing = set(names) - {path.name for path in found}
    if missing:
        there = ", ".join(path.name for path in found)
        raise InputError(f"{models_dir}: has no {', '.join(sorted(missing))}; it has {there}")
    return [path for path in found if path.name in names]
