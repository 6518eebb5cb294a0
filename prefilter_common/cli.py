"""What the four scripts' command lines share: exit codes, logging, argument types."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable


class InputError(Exception):
    """Bad arguments or bad input. The message names the place and the mend; the script exits with 2."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines and adds each option's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: {action.default})"


def exit_code(main: Callable[[], int]) -> int:
    """Call a script's ``main`` and turn its outcome into an exit code.

    Returns what ``main`` returns (0 done, 1 partly failed), 2 after an InputError, 130 after Ctrl-C. Any other
    exception propagates: Python prints the traceback and exits with 1.
    """
    for stream in (sys.stdout, sys.stderr):
        # A Windows console or a pipe there is not UTF-8 by default, and titles are in any script.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    try:
        return main()
    except InputError as error:
        if is_main_process():  # all processes of a job read the same input
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written that another script would take for finished", file=sys.stderr)
        return 130


def configure_logging() -> None:
    """Log whole lines to stderr, and keep the libraries' bars and notices out of them. Stdout is left to results.

    To be called before transformers is imported: its bars and those of datasets do not ask whether they are on a
    terminal, and are switched off by what the environment says at import.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    level = logging.INFO if is_main_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries talking to each other


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of a torchrun or accelerate job, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number from 0 up to, not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
