import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FILES, ROOT, TRAIN_FLAGS, call, write_jsonl
from transformers import pipeline

import train_encoder
from prefilter_common.articles import format_input, load_articles
from prefilter_common.errors import InputError
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.statistics.calibration import at_temperature, fit_temperature

pytestmark = pytest.mark.slow


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_model_directory_holds_exactly_what_it_should(trained, data_dir, tiny_encoder):
    model = trained / "tiny"
    assert {p.name for p in model.iterdir()} - {"cpu_benchmark.json"} == FILES
    assert read(model / "config.json")["id2label"] == {"0": "journalism", "1": "commerce"}
    contract = read(model / "prefilter.json")
    assert type(contract.pop("temperature")) is float and len(contract.pop("tokenizer_sha256")) == 64
    assert contract == {
        "input_format": "[TITLE] {title} [CONTENT] {content}",
        "max_length": 64,
        "base_model": str(tiny_encoder),
        "base_revision": None,
        "thresholds": {"default": 0.5},
        "stages": [],
        "max_unknown": None,
    }
    run = read(model / "run.json")
    assert run["data"]["train"]["rows"] == 48 and len(run["data"]["val"]["sha256"]) == 64
    assert run["recipe"]["learning_rate"] == 1e-3 and run["recipe"]["seed"] == 42
    assert "--learning-rate 1e-3" in run["command"] and run["versions"]["torch"]


def test_training_metrics_have_the_earlier_keys_the_curve_and_the_speed(trained):
    metrics = read(trained / "tiny" / "training_metrics.json")
    assert {"eval_loss", "eval_accuracy", "eval_f1", "eval_precision", "eval_recall", "epoch"} <= set(metrics)
    evaluations = [entry for entry in metrics["curve"] if "eval_f1" in entry]
    assert [entry["epoch"] for entry in evaluations] == [1.0, 2.0]
    assert metrics["eval_f1"] == max(entry["eval_f1"] for entry in evaluations)
    losses = [entry["loss"] for entry in metrics["curve"] if "loss" in entry]
    assert len(losses) >= 10 and np.isfinite(losses).all()
    assert metrics["steps"] == 12 and metrics["train_articles_per_second"] > 0


def test_the_saved_weights_are_the_best_epochs(trained, data_dir):
    metrics = read(trained / "tiny" / "training_metrics.json")
    articles = load_articles(data_dir / "val.jsonl")
    labels = np.array([a.label for a in articles])
    scores = uncalibrated(Scorer.load(trained / "tiny", device="cpu"), articles)
    likelihood = np.where(labels == 1, scores, 1 - scores)
    assert -np.log(likelihood).mean() == pytest.approx(metrics["eval_loss"], abs=1e-4)


def test_a_model_is_named_after_its_base_model(tmp_path, monkeypatch):
    (tmp_path / "base" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "base")
    for given in ("org/base", ".", "below/..", str(tmp_path / "base")):
        assert train_encoder.parse_args(["--model", given]).output == Path("models/base")
    student = train_encoder.parse_args(["--teacher", "models/base", "--model", "org/base"])
    assert student.output == Path("models/base-student")


def test_an_empty_model_is_not_the_packaged_encoder(tmp_path, data_dir, capsys):
    assert call(train_encoder, ["--model", "", "--data-dir", data_dir, "--output", tmp_path / "m"]) == 2
    assert "error: --model is empty; name a directory" in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_transformers_pipeline_loads_it_and_agrees(trained, data_dir):
    articles = load_articles(data_dir / "test.jsonl")
    classify = pipeline("text-classification", model=str(trained / "tiny"), device="cpu")
    answers = classify([format_input(a) for a in articles], truncation=True)
    assert {answer["label"] for answer in answers} <= {"journalism", "commerce"}
    theirs = [a["score"] if a["label"] == "commerce" else 1 - a["score"] for a in answers]
    np.testing.assert_allclose(uncalibrated(Scorer.load(trained / "tiny", device="cpu"), articles), theirs, atol=1e-5)


def test_validation_predictions_are_the_calibrated_scores_in_the_files_order(trained, data_dir):
    articles = load_articles(data_dir / "val.jsonl")
    rows = [json.loads(line) for line in (trained / "tiny" / "validation_predictions.jsonl").open(encoding="utf-8")]
    assert [(r["id"], r["label"], r["language"]) for r in rows] == [(a.id, a.label, a.language) for a in articles]
    scorer = Scorer.load(trained / "tiny", device="cpu")
    np.testing.assert_allclose([r["score"] for r in rows], scorer.score(articles), atol=1e-5)
    labels = np.array([a.label for a in articles])
    fitted = fit_temperature(labels, uncalibrated(scorer, articles))
    assert scorer.contract.temperature == pytest.approx(fitted, abs=1e-3) != 1.0


def test_mixed_precision_ends_with_training(tmp_path, tiny_encoder, data_dir):
    """bf16 is emulated where the processor lacks it, so this runs everywhere."""
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", tmp_path / "m", *TRAIN_FLAGS]
    assert call(train_encoder, [*flags, "--epochs", "1", "--precision", "bf16"]) == 0
    assert read(tmp_path / "m" / "training_metrics.json")["precision"] == "bf16"
    rows = [json.loads(line) for line in (tmp_path / "m" / "validation_predictions.jsonl").open(encoding="utf-8")]
    expected = Scorer.load(tmp_path / "m", device="cpu").score(load_articles(data_dir / "val.jsonl"))
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-5)


def uncalibrated(scorer, articles):
    return at_temperature(scorer.score(articles), 1 / scorer.contract.temperature)


def test_the_same_seed_gives_the_same_model(tmp_path, tiny_encoder, data_dir, trained):
    articles = load_articles(data_dir / "test.jsonl")
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, *TRAIN_FLAGS]
    assert call(train_encoder, [*flags, "--output", tmp_path / "same"]) == 0
    assert call(train_encoder, [*flags, "--output", tmp_path / "other", "--seed", "7"]) == 0
    scores = [Scorer.load(p, device="cpu").score(articles) for p in (trained / "tiny", *sorted(tmp_path.iterdir()))]
    first, other, same = scores
    # Threads add in any order, so equal means equal but for rounding.
    assert np.abs(first - same).max() < 1e-3 < np.abs(first - other).max()


def test_smoke_caps_and_the_last_line(tmp_path, tiny_encoder, data_dir, capsys, monkeypatch):
    monkeypatch.setattr("prefilter_common.training.run.now", lambda: "at the end")
    flags = ["--max-train-samples", "8", "--max-val-samples", "4", "--epochs", "1", "--max-length", "32"]
    flags += ["--model", tiny_encoder, "--data-dir", data_dir, "--output", tmp_path / "smoke"]
    assert call(train_encoder, flags) == 0
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last["model"] == str(tmp_path / "smoke") and 0 <= last["eval_f1"] <= 1
    metrics = read(tmp_path / "smoke" / "training_metrics.json")
    assert (metrics["train_articles"], metrics["val_articles"], metrics["steps"]) == (8, 4, 1)
    assert read(tmp_path / "smoke" / "run.json")["finished"] == "at the end"
    assert "step 1/1 (100%) | loss" in captured.err and "articles/s | eta" in captured.err


def test_a_finished_model_is_not_trampled(trained, tiny_encoder, data_dir, capsys):
    before = (trained / "tiny" / "model.safetensors").stat().st_mtime_ns
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", trained / "tiny"]
    assert call(train_encoder, flags) == 2
    assert "already exists; pass --overwrite" in capsys.readouterr().err
    assert (trained / "tiny" / "model.safetensors").stat().st_mtime_ns == before


def test_an_output_around_the_working_directory_is_not_replaced(trained, tiny_encoder, data_dir, tmp_path, monkeypatch):
    model = shutil.copytree(trained / "tiny", tmp_path / "tiny")
    (model / "work").mkdir()
    monkeypatch.chdir(model / "work")
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", model, "--overwrite"]
    with pytest.raises(InputError, match=r"tiny: contains .*/work, which would be lost"):
        train_encoder.main(list(map(str, flags)))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_only_its_checkpoint(tmp_path, tiny_encoder, data_dir, monkeypatch, capsys, failure):
    import prefilter_common.training.run

    def fail(*_args, **_kwargs):
        raise failure

    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", tmp_path / "models" / "m"]
    flags += ["--epochs", "1", "--max-length", "64"]
    with monkeypatch.context() as patch:
        patch.setattr(prefilter_common.training.run, "save_model_directory", fail)
        assert call(train_encoder, flags) == (130 if failure is KeyboardInterrupt else 1)
        assert "the same command plus --resume continues after step 3" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".m.checkpoints.partial"]
    assert call(train_encoder, [*flags, "--resume"]) == 0  # nothing is left to train
    assert read(tmp_path / "models" / "m" / "training_metrics.json")["train_articles_per_second"] > 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data-dir", "nowhere"], "nowhere/train.jsonl: no such split"),
        (["--max-length", "4096"], "reads at most 128 tokens; pass --max-length 128 or less"),
        (["--epochs", "0"], "'0' is not a whole number from 1 to 1000"),
        (["--learning-rate", "-1"], "not a number above 0"),
        (["--warmup-ratio", "1"], "not a number from 0 to below 1"),
        (["--model", "not a/model/name"], "neither a directory nor a hub name"),
        (["--model", "splits"], "contains no config.json"),
        (["--model", "someone/not-cached"], "for an encoder, --model multilingual-e5-small"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(tmp_path, tiny_encoder, data_dir, capsys, flags, words):
    output = tmp_path / "models" / "m"
    assert call(train_encoder, ["--model", tiny_encoder, "--data-dir", data_dir, "--output", output, *flags]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message and words in message
    assert not output.exists() and not list(tmp_path.glob("models/*"))


def test_a_damaged_checkpoint_is_one_line(tmp_path, tiny_encoder, data_dir, capsys):
    shutil.copytree(tiny_encoder, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    flags = ["--model", tmp_path / "base", "--data-dir", data_dir, "--output", tmp_path / "m", "--max-length", "64"]
    assert call(train_encoder, flags) == 2
    assert "cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize("unknown", ["train", "val"])
def test_a_tokenizer_that_does_not_know_the_language_is_refused(tmp_path, tiny_encoder, data_dir, capsys, unknown):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    runes = [{"title": "ᚠᚢᚦᚨᚱᚲ", "content": "ᚷᚹᚺᚾᛁᛃ ᛇᛈᛉᛊᛏᛒ " * (i + 1), "label": i % 2} for i in range(4)]
    write_jsonl(tmp_path / f"{unknown}.jsonl", runes)
    flags = ["--model", tiny_encoder, "--data-dir", tmp_path, "--output", tmp_path / "m", "--max-length", "64"]
    assert call(train_encoder, [*flags, "--allow-overlap"]) == 2
    assert "unknown to its tokenizer" in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_a_bad_training_file_is_answered_before_anything_is_written(tmp_path, tiny_encoder, capsys):
    write_jsonl(tmp_path / "train.jsonl", [{"title": "t", "content": "c", "label": 5}])
    flags = ["--model", tiny_encoder, "--data-dir", tmp_path, "--output", tmp_path / "m"]
    assert call(train_encoder, flags) == 2
    assert 'line 1: "label" is 5' in capsys.readouterr().err and not (tmp_path / "m").exists()


# Runs the script, then says whether torch, which takes seconds, was imported.
LOADED = """
import sys
import train_encoder
from prefilter_common.cli import exit_code
code = exit_code(train_encoder.main)
print("torch" in sys.modules)
sys.exit(code)
"""


def test_an_unreachable_hub_is_one_line_at_once(tmp_path):
    command = [sys.executable, "-c", LOADED, "--model", "distilbert-base-multilingual-cased"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "m")], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "False\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: distilbert-base-multilingual-cased: ") and "multilingual-e5-small" in line


@pytest.mark.parametrize(("script", "family"), [("train_encoder", "minilm"), ("train_qwen_lora", "qwen")])
def test_a_cost_of_blocking_flags_less(script, family, tmp_path, tiny_models, data_dir):
    flags = ["--model", tiny_models[family], "--data-dir", data_dir, *TRAIN_FLAGS]
    shares = []
    for cost in ("1", "50"):
        output = tmp_path / cost
        assert call(importlib.import_module(script), [*flags, "--output", output, "--cost-of-blocking", cost]) == 0
        shares.append(uncalibrated(Scorer.load(output, device="cpu"), load_articles(data_dir / "test.jsonl")).mean())
    assert shares[1] < shares[0]
    assert read(output / "run.json")["recipe"]["cost_of_blocking"] == 50
