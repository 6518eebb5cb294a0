"""However the benchmark is ended, its worker processes end with it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, TRAIN_FLAGS
from malformed import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_workers_end_with_the_benchmark(tmp_path, trained, data_dir, signum, code):
    """Endless rounds, so that a worker is in the middle of a computation."""
    command = [sys.executable, "benchmark_inference.py", "--model", trained / "tiny", "--rounds", "1000"]
    command += ["--test-data", data_dir / "test.jsonl", "--engines", "pytorch-fp32", "--no-stages"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*map(str, command), "--output", str(tmp_path / "results")], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err
        )
    wait_for(lambda: "round 2/" in (tmp_path / "err").read_text() or process.poll() is not None)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(signum)
    assert process.wait(60) == code
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    lines = (tmp_path / "err").read_text().splitlines()
    assert not any("Traceback" in line for line in lines)
    assert signum == signal.SIGKILL or lines[-1] == "interrupted: no unfinished output was left behind"
    assert not (tmp_path / "results").exists()


SAVE_FOREVER = """
import sys
from pathlib import Path
from prefilter_common.outputs import new_directory
version = 0
while True:
    version += 1
    with new_directory(Path(sys.argv[1]), overwrite=True) as partial:
        for name in range(20):
            (partial / str(name)).write_text(f"{sys.argv[2]}.{version} " * 1000)
    print(version, flush=True)
"""


def test_killed_at_random_moments_a_directory_is_whole(tmp_path):
    target, rng, whole = tmp_path / "m", random.Random(0), 0
    for attempt in range(20):
        command = [sys.executable, "-c", SAVE_FOREVER, str(target), str(attempt)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        contents = {path.name: path.read_text() for path in target.iterdir()}
        assert contents.keys() == {str(name) for name in range(20)} and len(set(contents.values())) == 1
        whole += contents["0"].startswith(f"{attempt}.")
    assert whole == 20


def test_a_disk_that_fills_up_while_the_weights_are_written(tmp_path, trained, tiny_encoder, data_dir):
    """A limit on the size of a file is met inside the library that writes them."""
    model = shutil.copytree(trained / "tiny", tmp_path / "tiny")
    before = snapshot(tmp_path)
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", model, "--overwrite", *TRAIN_FLAGS]
    command = ["sh", "-c", 'ulimit -f 64; exec "$@"', "sh", sys.executable, "train_encoder.py", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "File too large" in line
    assert {name: found for name, found in snapshot(tmp_path).items() if not name.startswith(".")} == before
