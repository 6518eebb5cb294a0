"""Building and merging splits on a file system that fails, and in a process that is killed: old, new or absent."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, call, write_jsonl
from faults import Killed
from test_faults import ERRORS, IN_TURN, check_end, command, every_step
from test_splits_build import build, scored

from prefilter_common.splits import __main__ as splits_command
from prefilter_common.splits.manifest import manifest_state

pytestmark = pytest.mark.slow


def content(folder):
    """Name -> bytes, without the hidden files that a killed process leaves behind."""
    return {p.name: p.read_bytes() for p in folder.glob("[!.]*") if p.is_file()} if folder.is_dir() else None


@pytest.fixture
def old(tmp_path):
    """A folder with splits, articles in the middle beside them, and rows of which other splits can be built."""
    middle = scored(20, seed=8, commerce_score=5.0)
    build(tmp_path / "w", scored(60) + middle, "--keep-middle", tmp_path / "w" / "middle.jsonl")
    write_jsonl(tmp_path / "new.jsonl", scored(80, seed=1) + middle[:7])
    write_jsonl(tmp_path / "labelled.jsonl", [{"title": "New", "content": "A wholly new text", "label": 1}])
    shutil.copytree(tmp_path / "w", tmp_path / "old")
    return tmp_path / "old"


COMMANDS = {
    "build": ["build", "new.jsonl", "--output", "w/out", "--keep-middle", "w/middle.jsonl", "--overwrite"],
    "merge": ["merge", "labelled.jsonl", "--splits", "w/out", "--overwrite"],
}


CASES = [(name, True, error) for name in COMMANDS for error in ERRORS] + [("build", False, Killed)]


@pytest.mark.parametrize(("name", "existing", "error"), CASES)
def test_splits_are_old_or_new_or_absent(tmp_path, old, monkeypatch, capsys, name, existing, error):
    monkeypatch.setattr("prefilter_common.splits.manifest.commit", lambda: "0")  # git takes longer than all the rest
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "w"

    def prepare():
        shutil.rmtree(work)
        if existing:
            shutil.copytree(old, work)
        else:
            work.mkdir()

    run = command(splits_command, COMMANDS[name])
    prepare()
    assert run() == 0
    new, new_middle = content(work / "out"), content(work).get("middle.jsonl")
    old_splits, old_middle = (content(old / "out"), content(old)["middle.jsonl"]) if existing else (None, None)
    for code in every_step(tmp_path, error, run, prepare, IN_TURN[error]):
        check_end(code, capsys)
        splits, middle = content(work / "out"), content(work).get("middle.jsonl")
        assert splits in (old_splits, new) and middle in (old_middle, new_middle)
        # The articles in the middle are written last.
        assert splits == new or middle == old_middle
        assert code != 0 or (splits == new and middle == new_middle)
        if error == Killed:
            assert run() == 0 and content(work / "out").keys() == new.keys() and not [*work.glob(".out.*")]


BUILD_FOREVER = """
import sys
from pathlib import Path
from prefilter_common.splits.build import BuildOptions, build
folder, seed = Path(sys.argv[1]), 0
while True:
    seed += 1
    options = BuildOptions((folder / "new.jsonl",), folder / "out", previous=folder / "none", seed=seed, overwrite=True)
    build(options)
    print(seed, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_at_random_moments_the_splits_match_their_manifest(tmp_path):
    write_jsonl(tmp_path / "new.jsonl", scored(60))
    write_jsonl(tmp_path / "labelled.jsonl", [{"title": "New", "content": "A wholly new text", "label": 1}])
    (tmp_path / "none").mkdir()
    write_jsonl(tmp_path / "none" / "train.jsonl", scored(1, seed=5))
    rng = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD_FOREVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert manifest_state(tmp_path / "out")["differs"] == []
        rows = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["written_rows"]
        assert rows == 60
    flags = [tmp_path / "labelled.jsonl", "--splits", tmp_path / "out", "--overwrite"]
    assert call(splits_command, ["merge", *flags]) == 0 and manifest_state(tmp_path / "out")["differs"] == []
