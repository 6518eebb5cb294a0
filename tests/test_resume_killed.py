"""SIGKILL at any moment, and the death of one of two processes: --resume ends as an uninterrupted run."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import FILES, ROOT

pytestmark = pytest.mark.slow

# Four steps an epoch, the last of an incomplete batch.
FLAGS = ["--max-train-samples", "30", "--epochs", "3", "--batch-size", "8"]
FLAGS += ["--max-length", "64", "--learning-rate", "1e-3", "--precision", "fp32"]
# Moments over both training scripts, and for each of the others half as many as per script; each costs up to two runs.
MOMENTS = int(os.environ.get("KILL_MOMENTS", "20"))


@pytest.fixture
def killed_runs(forks):
    """Have ``killed_runs.py`` kill that many runs; each is then run again."""

    def run(kind, folder, moments, *arguments):
        done = forks("killed_runs", kind, folder, moments, *arguments)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        print(*rows, sep="\n")
        assert len(rows) == moments
        assert all(row["code"] == 0 and row["whole"] and row["same"] and not row["left"] for row in rows), rows

    return run


@pytest.mark.parametrize(
    ("script", "family", "weights"),
    [("train_encoder", "minilm", "model"), ("train_qwen_lora", "qwen", "adapter_model")],
)
def test_killed_at_moments_over_the_whole_run(tmp_path, killed_runs, tiny_models, data_dir, script, family, weights):
    flags = ["--model", tiny_models[family], "--data-dir", data_dir, *FLAGS]
    killed_runs(script, tmp_path, MOMENTS // 2, f"{weights}.safetensors", *flags)
    for i in range(MOMENTS // 2):  # killed or continued, each directory is whole
        assert FILES - {p.name for p in (tmp_path / f"m{i}").iterdir()} <= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("kind", ["score", "convert", "evaluate"])
def test_scoring_conversion_and_evaluation_killed_at_moments_over_the_whole_run(
    tmp_path, killed_runs, trained, data_dir, kind
):
    if kind == "convert":
        pytest.importorskip("onnxruntime")
    (tmp_path / "runs").mkdir()
    models = shutil.copytree(trained, tmp_path / "models")  # evaluation writes operating points into it
    killed_runs(kind, tmp_path / "runs", max(1, MOMENTS // 4), models, data_dir / "test.jsonl")


# Runs a training script in which the process of rank 1 kills itself before step 7.
KILLED = """
import os, signal, sys
from prefilter_common.cli import exit_code
from prefilter_common.training.progress import ProgressLog
import train_encoder

original = ProgressLog.on_step_begin

def hook(self, args, state, control, **kwargs):
    if state.global_step == 6 and os.environ["RANK"] == "1":
        open(os.environ["KILLED_AT"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, args, state, control, **kwargs)

ProgressLog.on_step_begin = hook
sys.exit(exit_code(train_encoder.main))
"""


def torchrun(script, *flags, **env):
    env = {**os.environ, **env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", script, *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_two_processes_of_which_one_is_killed(tmp_path, forks, tiny_encoder, data_dir):
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, *FLAGS, "--batch-size", "4"]
    killed = tmp_path / "killed.py"
    killed.write_text(KILLED, encoding="utf-8")
    mark = tmp_path / "killed-at"
    done = torchrun(killed, *flags, "--output", tmp_path / "m", "--checkpoint-minutes", "1e-6", KILLED_AT=str(mark))
    seconds = time.time() - mark.stat().st_mtime
    print(f"ended {seconds:.1f} s after the kill")
    assert seconds < 60
    assert done.returncode != 0 and not (tmp_path / "m").exists()
    ours = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "interrupted: "))]
    assert len(ours) == 1, done.stderr
    assert ours[0].endswith("the same command plus --resume continues after step 6"), ours
    done = forks("train_encoder", *flags, "--output", tmp_path / "whole", processes=2)
    assert done.returncode == 0, done.stderr
    done = forks("train_encoder", *flags, "--output", tmp_path / "m", "--resume", processes=2)
    assert done.returncode == 0 and "continuing after step 6" in done.stderr, done.stderr
    for name in ("model.safetensors", "validation_predictions.jsonl"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    curves = []
    for model in ("m", "whole"):
        curve = json.loads((tmp_path / model / "training_metrics.json").read_text(encoding="utf-8"))["curve"]
        curves.append([(e["epoch"], e["eval_f1"], e["eval_loss"]) for e in curve if "eval_f1" in e])
    assert curves[0] == curves[1] and len(curves[0]) == 3
