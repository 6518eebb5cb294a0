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
from conftest import ROOT, TRAIN_FLAGS, call
from malformed import snapshot

import train_encoder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# Its product of matrices, which bounds the speed, is not what is looked at here.
BENCHMARK = """
import sys

if __name__ == "__main__":
    import benchmark_inference
    from prefilter_common.benchmark import bounds
    from prefilter_common.cli import exit_code

    bounds.MATRIX = 64
    sys.exit(exit_code(benchmark_inference.main))
"""

# The part of it that SIGKILL leaves to the worker.
ROUNDS = """
import sys
from pathlib import Path

from prefilter_common.articles import load_articles
from prefilter_common.benchmark.timing import Worker
from prefilter_common.scoring.engines.interface import EngineName

if __name__ == "__main__":
    model, articles = Path(sys.argv[1]), load_articles(sys.argv[2])
    with Worker(model, model, EngineName("onnxruntime", "fp32"), "cpu", 1) as worker:
        for i in range(1, 1_000_000):
            print(f"round {i}/", file=sys.stderr, flush=True)
            worker.single(articles, 64, [])
"""


def end_with_signal(tmp_path, program, arguments, signum):
    """Send it in the second round, in which a worker computes; the exit code and the lines of stderr."""
    script, err = tmp_path / "program.py", tmp_path / "err"
    script.write_text(program, encoding="utf-8")
    with err.open("w") as file:
        process = subprocess.Popen(
            list(map(str, [sys.executable, script, *arguments])),
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip
    wait_for(lambda: "round 2/" in err.read_text() or process.poll() is not None)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers, err.read_text()
    process.send_signal(signum)
    code = process.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    lines = err.read_text().splitlines()
    assert not any("Traceback" in line for line in lines)
    return code, lines


def test_workers_end_with_a_benchmark_that_is_told_to_end(tmp_path, trained, data_dir):
    """Endless rounds, so that a worker is in the middle of a computation."""
    flags = ["--model", trained / "tiny", "--rounds", "1000", "--test-data", data_dir / "test.jsonl"]
    flags += ["--engines", "pytorch-fp32", "--no-stages", "--output", tmp_path / "results"]
    code, lines = end_with_signal(tmp_path, BENCHMARK, flags, signal.SIGTERM)
    assert code == 143 and lines[-1] == "interrupted: no unfinished output was left behind"
    assert not (tmp_path / "results").exists()


def test_a_worker_ends_when_the_process_that_made_it_is_killed(tmp_path, with_onnx, data_dir):
    code, _ = end_with_signal(tmp_path, ROUNDS, [with_onnx, data_dir / "test.jsonl"], signal.SIGKILL)
    assert code == -9


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


def test_a_disk_that_fills_up_while_the_weights_are_written(tmp_path, trained, tiny_encoder, data_dir, capsys):
    """A limit on the size of a file is met inside the library that writes them."""
    import resource

    model = shutil.copytree(trained / "tiny", tmp_path / "tiny")
    before = snapshot(tmp_path)
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", model, "--overwrite", *TRAIN_FLAGS]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, limits[1]))  # Python ignores the signal
    try:
        assert call(train_encoder, flags) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "File too large" in line
    assert {name: found for name, found in snapshot(tmp_path).items() if not name.startswith(".")} == before
