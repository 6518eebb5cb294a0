"""What only a CUDA device can show."""

import json

import numpy as np
import pytest
import torch
from conftest import TRAIN_FLAGS, call

import benchmark_inference
import evaluate_models
import train_encoder
import train_qwen_lora
from prefilter_common.articles import load_articles
from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.scoring import Scorer
from prefilter_common.training.acceleration import StepGraphs
from prefilter_common.training.progress import ProgressLog

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FLAGS = TRAIN_FLAGS[:-2]  # the device's own precision


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta", "qwen"])
def test_every_family_trains_on_the_gpu_and_scores_alike_on_both_devices(tiny_models, data_dir, tmp_path, family):
    script = train_qwen_lora if family == "qwen" else train_encoder
    output = tmp_path / "model"
    flags = ["--model", tiny_models[family], "--output", output, "--data-dir", data_dir]
    assert call(script, flags + FLAGS) == 0
    metrics = json.loads((output / "training_metrics.json").read_text())
    assert metrics["precision"] == ("bf16" if family == "qwen" else "fp16") and metrics["peak_gpu_memory_mib"] > 0
    articles = load_articles(data_dir / "test.jsonl")
    on_gpu, on_cpu = (Scorer.load(output, device).score(articles) for device in ("cuda", "cpu"))
    assert np.abs(on_gpu - on_cpu).max() < 1e-4 and not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_student_learns_on_the_gpu(trained, data_dir, tmp_path):
    flags = ["--teacher", trained / "tiny", "--layers", "1", "--output", tmp_path / "student", "--data-dir", data_dir]
    assert call(train_encoder, [*flags, *FLAGS]) == 0


def test_a_run_of_two_epochs_goes_on_after_the_first(tiny_encoder, data_dir, tmp_path, monkeypatch):
    flags = ["--model", tiny_encoder, "--output", tmp_path / "model", "--data-dir", data_dir, *FLAGS]
    at_step = ProgressLog.on_step_end

    def interrupt(self, args, state, control, **more):
        at_step(self, args, state, control, **more)
        if state.global_step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ProgressLog, "on_step_end", interrupt)
        assert call(train_encoder, flags) == 130
    assert call(train_encoder, [*flags, "--resume"]) == 0
    metrics = json.loads((tmp_path / "model" / "training_metrics.json").read_text())
    assert metrics["epoch"] == 2 and metrics["steps"] == 12


def test_evaluation_and_benchmark_use_the_gpu(trained, data_dir, tmp_path):
    common = ["--test-data", data_dir / "test.jsonl", "--output", tmp_path]
    assert call(evaluate_models, [*common, "--models-dir", trained]) == 0
    before = {path: path.read_bytes() for path in (trained / "tiny").iterdir() if path.is_file()}
    flags = ["--model", trained / "tiny", "--device", "cuda", "--engines", "pytorch-fp32"]
    assert call(benchmark_inference, [*common, *flags]) == 0
    assert {path: path.read_bytes() for path in (trained / "tiny").iterdir() if path.is_file()} == before
    rows = json.loads((tmp_path / "benchmark_tiny_cuda.json").read_text())
    assert rows["conditions"]["device"] == "cuda"


def test_a_graph_of_a_step_gives_its_loss_and_its_gradients(tiny_models):
    model = load_base_model(str(tiny_models["minilm"]), max_length=64, seed=1).model.to("cuda")
    random = torch.Generator().manual_seed(0)

    def batch(n_tokens):
        ids = torch.randint(5, 200, (4, n_tokens), generator=random)
        labels = torch.randint(0, 2, (4,), generator=random)
        return {"input_ids": ids.cuda(), "attention_mask": torch.ones_like(ids).cuda(), "labels": labels.cuda()}

    def step(inputs):
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach()

    def gradients():
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    model.eval()
    graphs = StepGraphs(step, model)
    for n_tokens in (16, 32, 16, 32, 16):  # without, without, recorded, recorded, replayed
        inputs = batch(n_tokens)
        loss, ours = graphs(inputs), gradients()
        expected, own = step(inputs), gradients()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and ours.keys() == own.keys()
        assert all(torch.allclose(ours[name], own[name], atol=1e-6) for name in own)
    graphs = StepGraphs(step, model.train())
    assert len({round(graphs(inputs).item(), 6) for _ in range(4)}) == 4  # dropout is drawn anew in each
