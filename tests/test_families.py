"""Every family through its script: train, save, load, evaluate, benchmark; the scores stay those of training."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ADAPTER, FILES, RECORDS, ROOT, TOKENIZER, TRAIN_FLAGS, call
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

import benchmark_inference
import evaluate_models
import prefilter_common.training.run
import train_encoder
import train_qwen_lora
from prefilter_common.articles import format_input, load_articles
from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow

FAMILIES = ["distilbert", "minilm", "xlm-roberta", "qwen"]


@pytest.fixture(scope="module")
def families(tmp_path_factory, tiny_models, data_dir):
    """The directory of the trained families, and the scores of each as it was in memory after training."""
    models_dir = tmp_path_factory.mktemp("families")
    articles = load_articles(data_dir / "test.jsonl")
    in_memory = {}
    save = prefilter_common.training.run.save_model_directory

    def scoring_save(directory, output, checkpoint, *rest):
        in_memory[output.name] = Scorer.of(checkpoint, "cpu").score(articles)
        save(directory, output, checkpoint, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefilter_common.training.run, "save_model_directory", scoring_save)
        for name in FAMILIES:
            flags = ["--model", tiny_models[name], "--output", models_dir / name, "--data-dir", data_dir, *TRAIN_FLAGS]
            # classic: what lp-ft makes of a tiny model may be so unsure that its calibrated scores hardly differ.
            script, extra = (
                (train_qwen_lora, ["--merge"]) if name == "qwen" else (train_encoder, ["--recipe", "classic"])
            )
            assert call(script, flags + extra) == 0
    return models_dir, in_memory


@pytest.mark.parametrize("name", FAMILIES)
def test_the_directory_holds_exactly_what_it_should(families, name):
    found = {path.name for path in (families[0] / name).iterdir()} - {"cpu_benchmark.json", "onnxruntime-fp32"}
    assert found == (ADAPTER | TOKENIZER | RECORDS if name == "qwen" else FILES)


def test_the_merged_directory_is_a_plain_checkpoint(families):
    assert {path.name for path in (families[0] / "qwen-merged").iterdir()} == FILES


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reloaded_model_scores_as_it_did_after_training(families, name, data_dir):
    models_dir, in_memory = families
    articles = load_articles(data_dir / "test.jsonl")
    assert in_memory[name].std() > 1e-3  # else agreement would prove nothing
    np.testing.assert_allclose(Scorer.load(models_dir / name, "cpu").score(articles), in_memory[name], atol=1e-6)


def test_adapter_merged_checkpoint_and_training_agree(families, data_dir, capsys):
    """As PEFT itself loads the adapter, too."""
    models_dir, in_memory = families
    articles = load_articles(data_dir / "test.jsonl")
    model = AutoPeftModelForSequenceClassification.from_pretrained(models_dir / "qwen", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "qwen")
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = [tokenizer(format_input(a), truncation=True, max_length=64, return_tensors="pt") for a in articles]
    with torch.inference_mode():
        logits = torch.cat([model(**row).logits for row in rows])
    merged_scorer = Scorer.load(models_dir / "qwen-merged", "cpu")
    adapter = (logits / merged_scorer.contract.temperature).softmax(-1)[:, 1].numpy()
    merged = merged_scorer.score(articles)
    differences = {"adapter": abs(adapter - in_memory["qwen"]).max(), "merged": abs(merged - in_memory["qwen"]).max()}
    with capsys.disabled():
        print(f"\nlargest difference from the scores after training: {differences}")
    assert max(differences.values()) < 1e-4


def test_an_adapter_is_merged_afterwards_too_and_not_over_a_finished_one(families, tmp_path, capsys, monkeypatch):
    import shutil

    shutil.copytree(families[0] / "qwen", tmp_path / "a")
    assert call(train_qwen_lora, ["--merge", tmp_path / "a"]) == 0
    weights = (tmp_path / "a-merged" / "model.safetensors").read_bytes()
    assert weights == (families[0] / "qwen-merged" / "model.safetensors").read_bytes()
    assert call(train_qwen_lora, ["--merge", tmp_path / "a"]) == 2
    assert "already exists; pass --overwrite" in capsys.readouterr().err
    assert call(train_qwen_lora, ["--merge", families[0] / "minilm"]) == 2
    assert "no adapter_config.json" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "a")
    assert train_qwen_lora.merged_name(Path(".")) == tmp_path / "a-merged"


def test_only_adapter_and_head_were_trained_and_in_float32(families, tiny_models):
    from safetensors.torch import load_file

    tensors = load_file(families[0] / "qwen" / "adapter_model.safetensors")
    kinds = {name.split(".")[-2] for name in tensors}
    assert kinds == {"lora_A", "lora_B", "score"} and {t.dtype for t in tensors.values()} == {torch.float32}
    assert sum("score" in name for name in tensors) == 1
    config = json.loads((families[0] / "qwen" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.1)
    assert set(config["target_modules"]) == {"q_proj", "v_proj"}
    assert config["base_model_name_or_path"] == str(tiny_models["qwen"])


def test_an_adapter_finds_its_base_from_any_directory(tiny_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_models["qwen"].parent)
    adapter = train_qwen_lora.Adapter(4, 8, 0.0, ["q_proj"])
    made = train_qwen_lora.with_lora(load_base_model("qwen", max_length=64, seed=1), adapter)
    made.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_models["qwen"])


def test_all_families_in_one_table(families, data_dir, tmp_path, capsys):
    flags = ["--models-dir", families[0], "--test-data", data_dir / "test.jsonl", "--output", tmp_path]
    assert call(evaluate_models, flags) == 0
    results = json.loads((tmp_path / "evaluation_results.json").read_text(encoding="utf-8"))
    assert set(FAMILIES) | {"qwen-merged"} <= set(results)
    out = capsys.readouterr().out
    assert all(name in out for name in FAMILIES)


@pytest.mark.parametrize("name", ["distilbert", "qwen"])
def test_an_encoder_and_an_adapter_are_benchmarked(families, data_dir, tmp_path, quick_benchmark, name):
    flags = ["--model", families[0] / name, "--test-data", data_dir / "test.jsonl", "--output", tmp_path]
    flags += ["--engines", "onnxruntime-fp32", "--n-samples", 4, "--rounds", 1]
    assert call(benchmark_inference, flags) == 0
    result = json.loads((tmp_path / f"benchmark_{name}.json").read_text(encoding="utf-8"))
    assert {row["engine"] for row in result["rows"]} == {"pytorch-fp32", "onnxruntime-fp32"}  # else one was skipped


def test_a_layer_that_is_not_there_is_named(tiny_models, data_dir, tmp_path, capsys):
    flags = ["--model", tiny_models["qwen"], "--data-dir", data_dir, "--output", tmp_path / "m", "--max-length", "64"]
    assert call(train_qwen_lora, [*flags, "--lora-target-modules", "q_proj", "v_porj"]) == 2
    assert "the model has no layer named v_porj; correct the name" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_killed_run_leaves_nothing_that_looks_finished(tiny_models, data_dir, tmp_path, capsys):
    output = tmp_path / "models" / "m"
    flags = ["--model", tiny_models["qwen"], "--data-dir", data_dir, "--output", output, "--max-length", 64]
    flags += ["--batch-size", 1, "--epochs", 100]  # so that it takes long enough to be killed in
    command = [sys.executable, "train_qwen_lora.py", *map(str, flags)]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert any(line.startswith("epoch 1 ") for line in run.stderr)  # an epoch's weights have been saved by now
    run.kill()
    run.communicate()
    # The lock files remain, and mean nothing once their process is gone.
    left = {path.name for path in output.parent.iterdir() if path.suffix != ".lock"}
    assert left == {".m.partial", ".m.checkpoints.partial"}
    assert call(evaluate_models, ["--models-dir", output.parent, "--test-data", data_dir / "test.jsonl"]) == 2
    assert "contains no models" in capsys.readouterr().err
    assert call(benchmark_inference, ["--model", output, "--test-data", data_dir / "test.jsonl"]) == 2
