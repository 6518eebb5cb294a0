import errno
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from prefilter_common.cli import Parser, configure_logging, exit_code, printable, table
from prefilter_common.errors import InputError, RunError


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_unwinds_the_stack_and_gives_its_exit_code(signum, code, capsys):
    unwound = []
    before = signal.getsignal(signum)

    def main():
        try:
            os.kill(os.getpid(), signum)
            time.sleep(10)
        finally:
            unwound.append(True)

    assert exit_code(main) == code and unwound == [True]
    assert capsys.readouterr().err == "interrupted: no unfinished output was left behind\n"
    assert signal.getsignal(signum) is before


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_under_nohup_a_hang_up_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert exit_code(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def failing(error, argv=()):
    """A script that fails once it has parsed ``argv``."""

    def main():
        Parser("doc").parse_args(argv)
        configure_logging()
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "models/x"), "models/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "models"), "models: Permission denied"),
        (RuntimeError("\n  first\nsecond"), "RuntimeError: first (--debug shows the traceback)"),
        (RecursionError(), "RecursionError (--debug shows the traceback)"),
        (ValueError("a\x1b[2J\u202eb"), "ValueError: a\\x1b[2J\\u202eb (--debug shows the traceback)"),
    ],
)
def test_the_unforeseen_is_one_line_and_debug_shows_the_rest(error, line, capsys):
    assert exit_code(failing(error)) == 1
    assert capsys.readouterr().err == f"error: {line}\n"
    assert exit_code(failing(error, ["--debug"])) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"error: {line}" and "Traceback (most recent call last):" in rest
    assert exit_code(failing(error)) == 1  # --debug is not remembered
    assert "Traceback" not in capsys.readouterr().err


def test_a_note_says_what_is_left_behind(capsys):
    error = OSError(errno.EIO, "Input/output error", "m")
    error.add_note("the complete output is in .m.partial")
    assert exit_code(failing(error)) == 1
    assert capsys.readouterr().err == "error: m: Input/output error; the complete output is in .m.partial\n"


def test_a_bad_argument_is_one_line(capsys):
    assert exit_code(failing(None, ["--colour"])) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --colour (--help lists the arguments)\n"


@pytest.mark.parametrize(("place", "printed"), [("0", "error: no such file\n"), ("1", "")])
def test_bad_input_is_one_line_on_each_machine_of_a_job(monkeypatch, capsys, place, printed):
    """Files may be missing on one machine alone, and only its own processes know."""
    monkeypatch.setattr("prefilter_common.cli.SECONDS_TO_PRINT", 0)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", place)
    assert exit_code(failing(InputError("no such file"))) == 2
    assert capsys.readouterr().err == printed


@pytest.mark.skipif(os.name != "posix", reason="a broken pipe is another error elsewhere")
def test_a_reader_that_stops_reading_is_one_line():
    script = "import sys; from prefilter_common.cli import exit_code\n"
    script += "sys.exit(exit_code(lambda: [print('x' * 99) for _ in range(9999)] and 0))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == "error: whatever read the output has stopped reading (broken pipe)\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_full_disk_under_stdout_is_one_line():
    script = "import sys; from prefilter_common.cli import exit_code; sys.exit(exit_code(lambda: print('x') or 0))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == "error: No space left on device\n"


FORGED = "en\nmodel  100.0\r\x1b[1A\x1b[2K\u202e\u2066\x9b0m\u2028"


def test_what_comes_from_elsewhere_cannot_forge_a_row_or_steer_the_terminal(capsys):
    assert printable("Ελληνικά 日本語 é🎉") == "Ελληνικά 日本語 é🎉"
    assert len(table([["language", "F1"], [FORGED, "1"]]).splitlines()) == 3
    configure_logging()
    logging.getLogger("prefilter_common").warning(f"name {FORGED}")

    def main():
        raise InputError(f"{FORGED}: bad")

    assert exit_code(main) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2 and all(line.isprintable() for line in err.splitlines())
    assert "\\x1b[1A" in err and "\\u202e" in err


def test_a_signal_that_arrives_while_an_error_is_on_its_way_up_keeps_what_the_error_says(capsys):
    def main():
        try:
            error = RunError("another process ended")
            error.add_note("--resume continues after step 8")
            raise error
        finally:
            signal.raise_signal(signal.SIGTERM)

    assert exit_code(main) == 143
    assert capsys.readouterr().err == "interrupted: --resume continues after step 8\n"


def test_a_signal_that_arrives_while_the_last_line_is_printed_changes_nothing(capsys, monkeypatch):
    def summary(error):
        signal.raise_signal(signal.SIGTERM)
        return str(error)

    monkeypatch.setattr("prefilter_common.cli.summary_of", summary)

    def main():
        raise RunError("the disk is full")

    assert exit_code(main) == 1
    assert capsys.readouterr().err == "error: the disk is full\n"
