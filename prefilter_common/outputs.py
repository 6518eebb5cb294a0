"""Directories that appear complete or not at all, and the checks of outputs that spare hours of work for nothing."""

import ctypes
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prefilter_common.errors import InputError
from prefilter_common.files import resolved

log = logging.getLogger(__name__)

# More tries than a process needs among several that check the same path.
PROBES = 100


@contextmanager
def new_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes ``target`` when the block succeeds and is deleted when it fails.

    An old one is exchanged for it in one step where the system can. Its name starts with a dot, and whatever lists
    models skips those, so a killed run leaves nothing that looks finished; the next run to the same target removes it.

    Raises:
        InputError: the target exists and must not be overwritten, cannot be created, or is being written by another
            process.
        OSError: the complete directory could not be moved into place; a note says where it is.
    """
    require_free(target, overwrite)
    target, partial = resolved(target), partial_name(target)
    with locked(target):
        with _named_errors(target):
            _finish_exchange(partial, target)
            require_free(target, overwrite)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        try:
            yield partial
            _follow_umask(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        try:
            _move_into_place(partial, target, overwrite)
        except OSError as error:
            error.add_note(f"the complete output is in {partial}: rename it to {target.name}")
            raise


@contextmanager
def kept_directory(target: Path) -> Iterator[Path]:
    """A hidden directory beside ``target``, for this process alone; its content is kept for the next run.

    Raises InputError when it cannot be created or another process holds it.
    """
    target, partial = resolved(target), partial_name(target)
    with locked(target):
        with _named_errors(target):
            partial.mkdir(exist_ok=True)
            # In a shared folder a stranger may have made it, to have a file of ours overwritten.
            if partial.is_symlink() or any(path.is_symlink() for path in partial.iterdir()):
                raise InputError(f"{partial}: is a link, or contains one; delete it")
        try:
            yield partial
        finally:
            with suppress(OSError):  # not empty
                partial.rmdir()


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other processes from writing ``target``, those in other containers on the same file system too.

    The system releases the lock of a process that dies. Raises InputError where another process holds it.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        with _named_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{target}: another process is writing it; wait, or name another output") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        path = Path(error.filename or target)
        where = "" if path.name == target.name else f"{path.name}: "
        raise InputError(f"{target}: cannot be created ({where}{error.strerror}); name another output") from None


def require_free(target: Path, overwrite: bool = False) -> None:
    """Raise InputError where ``new_directory`` would refuse ``target``; call it before hours of work."""
    with _named_errors(target):
        if target.exists() and not target.is_dir():
            raise InputError(f"{target}: is a file; name a directory")
        if target.exists() and not overwrite and any(target.iterdir()):
            raise InputError(f"{target}: already exists; pass --overwrite to replace it, or name another output")
    _require_writable(target)


def require_files(*paths: Path) -> None:
    """Raise InputError unless each can be written, in place of a file or as a new one; call it before the work."""
    for path in paths:
        with _named_errors(path):
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: is not a file, and would be replaced by one; name another output")
        _require_writable(path)


def _require_writable(path: Path) -> None:
    """Raise InputError unless something can be created beside ``path`` under a longer name; leaves nothing behind.

    It is created and removed again: no rule about permissions, links and names would be complete.
    """
    missing: list[Path] = []
    with _named_errors(path):
        for link in (path, *path.parents):
            if link.is_symlink() and not link.exists():
                raise InputError(f"{link}: is a link to nothing; delete it, or name another output")
        path = resolved(path)
        try:
            missing = [folder for folder in path.parents if not folder.exists()]
            _create_and_remove(path.with_name(f".{path.name}.writable"))
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()


def _create_and_remove(folder: Path) -> None:
    """Of several processes that check the same path, one may remove what another has just created; then it tries again.

    Missing parents may stay then, empty. The name is the same each time, so that the next run clears away what a killed
    one left.
    """
    for attempt in range(PROBES):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            folder.rmdir()
            return
        except (FileExistsError, FileNotFoundError):  # appeared or vanished between two checks
            if attempt == PROBES - 1:
                raise


def partial_name(target: Path) -> Path:
    """What ``new_directory`` calls ``target`` while it is being filled."""
    target = resolved(target)
    return target.with_name(f".{target.name}.partial")


def _follow_umask(folder: Path) -> None:
    """Give files the mode that new ones have here: safetensors writes its own for the owner alone."""
    mode = folder.stat().st_mode & 0o666  # of a directory that was created without a mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _move_into_place(partial: Path, target: Path, overwrite: bool) -> None:
    with suppress(OSError):
        target.rmdir()  # an empty one, which Windows does not replace
    if not overwrite or not target.exists():
        partial.rename(target)  # fails where a full one has appeared meanwhile
        return
    if not _exchange(partial, target):
        # In between, both are complete under other names, and _finish_exchange puts one in place at the next start.
        old = _old_name(target)
        target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            old.rename(target)
            raise
        partial = old
    shutil.rmtree(partial, ignore_errors=True)
    if partial.exists():
        log.warning(f"{partial}: what was replaced could not be deleted; delete it")


def _finish_exchange(partial: Path, target: Path) -> None:
    """Go on where a process was killed in ``_move_into_place``."""
    old = _old_name(target)
    if old.is_dir() and not target.exists():
        (partial if partial.is_dir() else old).rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step. Returns False where the system or the file system has no such call."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    at_fdcwd, rename_exchange = -100, 2  # fcntl.h, linux/fs.h
    return libc.renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0
