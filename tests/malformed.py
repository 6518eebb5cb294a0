"""The table of malformed inputs: each case is a command that must be refused in one line and change nothing.

A test takes the fixture ``refused`` and calls it; the rows of all tests end up in ``malformed.tsv`` in pytest's base
folder, and the summary of the run says how many there are.
"""

import os
from pathlib import Path

from conftest import call

TABLE = "malformed.tsv"


def table_path(basetemp):
    """Where the table is; the workers of xdist have folders of their own inside the base folder."""
    return (basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp) / TABLE


def snapshot(folder):
    """Everything in a folder: relative path -> kind, mode and content."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (stat.st_mode, content)
    return found


def check_refused(capsys, table, script, argv, watch, code=2, words="", prefix="error: "):
    """Run ``script`` with ``argv`` in this process; assert that it is refused properly. Returns its line.

    Args:
        table: the file to add a row to: command, exit code, line.
        watch: a folder that must stay as it is, whatever is in it.
        code: the exit code expected: 2 for bad arguments or input, 1 for a model that becomes an error row.
        words: what the line must contain.
        prefix: how the one line begins.
    """
    before = snapshot(watch)
    capsys.readouterr()
    found = call(script, argv)
    err = capsys.readouterr().err
    command = " ".join([script.__name__, *map(str, argv)]).replace(str(watch), "…")
    lines = [line for line in err.splitlines() if line.startswith(prefix)]
    assert (found, len(lines)) == (code, 1), f"{command}\nexit code {found}\n{err}"
    assert "Traceback" not in err and words in lines[0] and lines[0].isprintable(), f"{command}\n{err}"
    assert snapshot(watch) == before, command
    with table.open("a", encoding="utf-8") as file:
        file.write(f"{command[:300]!r}\t{found}\t{lines[0].replace(str(watch), '…')}\n")
    return lines[0]
