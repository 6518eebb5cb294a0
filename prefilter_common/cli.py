"""What all command lines share: parsing, exit codes, logging, aligned tables, and what may reach a terminal."""

import argparse
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from prefilter_common.errors import InputError, RunError, Stopped
from prefilter_common.processes import is_first_on_machine, is_main_process

log = logging.getLogger(__name__)

# How much later than another process of its job the main one may reach the same error.
SECONDS_TO_PRINT = 3


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines and adds each option's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default == argparse.SUPPRESS:  # 0 is a default like any other
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        return f"{action.help} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """The docstring as help, one line for a bad argument, and ``--debug``, which every script takes."""

    def __init__(self, description: str | None = None, **options: Any):
        super().__init__(description=description, **{"formatter_class": HelpFormatter, **options})
        self.add_argument("--debug", action=_Debug, nargs=0, help="log the traceback of an error as well")

    def error(self, message: str) -> NoReturn:
        """Raise InputError; argparse would print its usage first, up to ten lines of it."""
        raise InputError(f"{message} (--help lists the arguments)")


class _Debug(argparse.Action):
    """Logs at the level at which tracebacks are; it leaves nothing in the namespace."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(self, *_: object) -> None:
        logging.getLogger("prefilter_common").setLevel(logging.DEBUG)


def exit_code(main: Callable[[], int]) -> int:
    """Call a script's ``main`` and turn its outcome into an exit code.

    Returns what ``main`` returns (0 done, 1 partly failed), 2 after an InputError, 130 after Ctrl-C, 143 after SIGTERM,
    129 after SIGHUP, and 1 after any other exception. Each is one line on stderr, with the exception's notes, which say
    what is left behind; ``--debug`` adds the traceback.
    """
    logging.getLogger("prefilter_common").setLevel(logging.NOTSET)
    for stream in (sys.stdout, sys.stderr):
        # The Windows console, and a pipe there, is not UTF-8 by default, and titles come in any script.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    with _signals_as_exceptions() as ignore_signals:
        try:
            return main()
        except (Exception, KeyboardInterrupt, Stopped) as error:
            # What is left is one line to print. A launcher sends a signal to a process that has just lost another.
            ignore_signals()
            return _report(error)


def _report(error: BaseException) -> int:
    """Print what ended the script. Returns the exit code."""
    if isinstance(error, InputError):
        if is_first_on_machine():
            _print_end("error", str(error))
        else:  # every process here reads the same input, and once one has ended the launcher stops the others
            time.sleep(SECONDS_TO_PRINT)
        return 2
    if isinstance(error, (KeyboardInterrupt, Stopped)):
        _print_end("interrupted", *(_notes(error) or ["no unfinished output was left behind"]))
        return 128 + (error.signum if isinstance(error, Stopped) else signal.SIGINT)
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
    _print_end("error", summary_of(error), *_notes(error))
    return 1


def _notes(error: BaseException | None) -> list[str]:
    """Of an error, or of the one that was on its way up when this one, a signal, arrived."""
    while error is not None:
        if notes := getattr(error, "__notes__", None):
            return notes
        error = error.__context__
    return []


def _print_end(kind: str, *parts: str) -> None:
    """One line on stderr, and below it the traceback where ``--debug`` asked for it."""
    with suppress(OSError):  # stderr may be closed or on a full disk, and the exit code must still be right
        print(f"{kind}: {printable('; '.join(parts))}", file=sys.stderr)
        log.debug("", exc_info=True)


def summary_of(error: BaseException) -> str:
    """What happened, on one line: the message if it is ours, a file and the system's words, else type and message."""
    if isinstance(error, (InputError, RunError)):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "whatever read the output has stopped reading (broken pipe)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{what} (--debug shows the traceback)"


def _discard_stdout() -> None:
    """Let Python flush what is buffered into nothing when it exits: it would fail again, and say so at length."""
    with suppress(OSError, ValueError):  # in a test, stdout is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """``text`` as a terminal may show it: control characters, line ends and direction overrides as escapes.

    Names, ids, titles and languages come from elsewhere, and could otherwise forge a table row or hide one.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@contextmanager
def _signals_as_exceptions() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that what is unfinished is cleared away.

    Yields a function after whose call they are ignored.
    """
    ignored = False

    def stop(signum: int, frame: FrameType | None) -> None:
        if not ignored:
            raise Stopped(signum)

    def ignore() -> None:
        nonlocal ignored
        ignored = True

    earlier = {}
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        signum = getattr(signal, name, None)
        # nohup has SIGHUP ignored, and that must stay so.
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            earlier[signum] = signal.signal(signum, stop)
    try:
        yield ignore
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def configure_logging() -> None:
    """Log whole lines to stderr and silence the libraries' bars and notices; stdout is for results only.

    Call it before transformers is imported: its progress bars, and those of datasets, ignore whether they are on a
    terminal and read their switches from the environment at import.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    level = logging.INFO if is_main_process() else logging.ERROR
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a full disk or a closed terminal is no reason to stop
    logging.getLogger("httpx").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' messages to each other


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from {low} to {high}")
        return value

    return parse


# Beyond these a slip of the keyboard is likelier than a wish, and the libraries fail in words of their own.
count = whole_number(1, 1_000_000)
batch_size = whole_number(1, 4096)
threads = whole_number(1, 1024)
# The special tokens and a few of the article's own.
max_length = whole_number(8, 1_000_000)
seed = whole_number(0, 2**32 - 1000)  # NumPy takes less than 2^32, and --seeds counts on


def number(wanted: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """An argparse type: a number that is ``allowed``, which ``wanted`` puts into words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number {wanted}")
        return value

    return parse


positive_float = number("above 0 and below 1e100", lambda x: 0 < x < 1e100)  # products of larger ones are no numbers
fraction = number("from 0 to below 1", lambda x: 0 <= x < 1)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header, as aligned text: first column left, the others right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
