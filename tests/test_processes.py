"""Two processes on one job give what one gives."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import FILES, ROOT, SPLITS, TRAIN_FLAGS, call

import evaluate_models
import train_encoder
from prefilter_common.articles import load_articles
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.statistics.calibration import at_temperature

pytestmark = pytest.mark.slow


def launch(launcher, *arguments):
    """Run a script in two processes on the CPU."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes=2"]


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory):
    """17 validation articles: two processes cannot share them evenly."""
    path = tmp_path_factory.mktemp("odd")
    for name, limit in (("train", 30), ("val", 17)):
        lines = (SPLITS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
        (path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("family", ["minilm", "qwen"])
def test_two_processes_train_one_model_whose_metrics_are_the_whole_validation_sets(
    request, tmp_path, tiny_models, odd_data, family
):
    output = tmp_path / "models" / "m"
    flags = ["--model", tiny_models[family], "--output", output, "--data-dir", odd_data, *TRAIN_FLAGS]
    flags += ["--batch-size", "4"]
    if family == "minilm":
        done = launch(TORCHRUN, "train_encoder.py", *flags)
    else:
        done = request.getfixturevalue("forks")("train_qwen_lora", *flags, processes=2)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in output.parent.iterdir()] == ["m"]
    assert family == "qwen" or {path.name for path in output.iterdir()} == FILES
    assert len(done.stdout.splitlines()) == 1  # one process prints
    metrics = json.loads((output / "training_metrics.json").read_text(encoding="utf-8"))
    assert metrics["val_articles"] == 17 and metrics["steps"] == 2 * 4  # 30 articles, 8 a step
    articles = load_articles(odd_data / "val.jsonl")
    labels = np.array([a.label for a in articles])
    scorer = Scorer.load(output, "cpu")
    scores = at_temperature(scorer.score(articles), 1 / scorer.contract.temperature)  # as in training
    assert metrics["eval_accuracy"] == pytest.approx(((scores >= 0.5) == labels).mean())
    log_loss = -np.log(np.where(labels == 1, scores, 1 - scores)).mean()
    assert metrics["eval_loss"] == pytest.approx(log_loss, rel=1e-3)


def test_two_processes_train_a_student_as_one_does(tmp_path, forks, without_dropout, trained, odd_data):
    flags = ["--model", without_dropout, "--teacher", trained / "tiny", "--data-dir", odd_data, *TRAIN_FLAGS]
    assert call(train_encoder, [*flags, "--output", tmp_path / "one"]) == 0  # in batches of 8
    done = forks("train_encoder", *flags, "--output", tmp_path / "two", "--batch-size", 4, processes=2)
    assert done.returncode == 0, done.stderr
    records = [json.loads((tmp_path / n / "training_metrics.json").read_text(encoding="utf-8")) for n in ("one", "two")]
    one, two = ([entry["loss"] for entry in record["curve"] if "loss" in entry] for record in records)
    assert len(one) == 15 and two == pytest.approx(one, abs=1e-4)


def test_one_error_line_from_two_processes(tmp_path, tiny_encoder):
    done = launch(TORCHRUN, "train_encoder.py", "--model", tiny_encoder, "--data-dir", tmp_path, "--output", "x")
    assert done.returncode != 0
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


def test_accelerate_launch_shards_evaluation_and_gives_the_same_predictions(trained, data_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "models")  # evaluation writes operating points into it
    flags = ["--models-dir", tmp_path / "models", "--test-data", data_dir / "test.jsonl", "--batch-size", "3"]
    assert call(evaluate_models, [*flags, "--output", tmp_path / "one"]) == 0
    two = launch(ACCELERATE, "evaluate_models.py", *flags, "--output", tmp_path / "two")
    assert two.returncode == 0, two.stderr
    first, second = (tmp_path / n / "predictions" / "tiny.jsonl" for n in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    rows = [json.loads((tmp_path / n / "evaluation_results.json").read_text())["tiny"] for n in ("one", "two")]
    for row in rows:
        for key in [key for key in row if key.endswith("_ms")]:
            del row[key]
    assert rows[0] == rows[1]
    assert sum(line.startswith("tiny ") for line in two.stdout.splitlines()) == 1  # one process prints
