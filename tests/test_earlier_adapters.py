"""Adapters as the earlier scripts left them, and adapters whose base model is gone."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import call
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import evaluate_models
from prefilter_common.articles import format_input, load_articles
from prefilter_common.errors import InputError
from prefilter_common.scoring.scorer import Scorer


@pytest.fixture
def earlier_adapter(tmp_path, tiny_models):
    """One sigmoid output, ``lora_config.json``, no ``prefilter.json``, no tokenizer; and the model in memory."""
    base, path = tiny_models["qwen"], tmp_path / "models" / "earlier"
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.eos_token_id
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)  # as after training: a fresh adapter adds nothing
    model.save_pretrained(path)
    (path / "README.md").unlink()
    (path / "lora_config.json").write_text(json.dumps({"base_model": str(base), "lora_r": 4}))
    return path, model.eval(), tokenizer


def test_one_sigmoid_output_without_a_contract(earlier_adapter, data_dir):
    path, model, tokenizer = earlier_adapter
    articles = load_articles(data_dir / "test.jsonl")
    rows = [tokenizer(format_input(a), truncation=True, max_length=256, return_tensors="pt") for a in articles]
    with torch.inference_mode():
        expected = [model(**row).logits.sigmoid().item() for row in rows]
    np.testing.assert_allclose(Scorer.load(path, "cpu").score(articles), expected, atol=1e-5)


def test_the_base_models_name_may_stand_in_lora_config_only(earlier_adapter, data_dir):
    path = earlier_adapter[0]
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert Scorer.load(path, "cpu").score(load_articles(data_dir / "test.jsonl")).shape == (16,)
    (path / "lora_config.json").unlink()
    with pytest.raises(InputError, match="names no base model"):
        Scorer.load(path)


def test_the_base_model_is_the_one_that_the_adapter_was_trained_on(earlier_adapter, monkeypatch):
    """The same commit of its repository; a directory has none."""
    path, asked = earlier_adapter[0], []
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "revision": "0123abc"}))
    for kind in (AutoConfig, AutoModelForSequenceClassification, AutoTokenizer):

        def recorded(*args, load=kind.from_pretrained, **settings):
            asked.append(settings.get("revision"))
            return load(*args, **settings)

        monkeypatch.setattr(kind, "from_pretrained", recorded)
    Scorer.load(path, "cpu")
    assert len(asked) >= 3 and set(asked) == {"0123abc"}


@pytest.mark.parametrize("base", ["someone/not-cached", "/nowhere/at all"])
def test_a_base_model_that_cannot_be_loaded_is_one_line_and_an_error_row(earlier_adapter, data_dir, capsys, base):
    path = earlier_adapter[0]
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    flags = ["--models-dir", path.parent, "--test-data", data_dir / "test.jsonl", "--output", path.parent / "r"]
    assert call(evaluate_models, flags) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if base in line]
    assert len(lines) == 1 and lines[0].startswith("earlier: ")
    assert 'correct "base_model_name_or_path" in its adapter_config.json' in lines[0]


def test_an_adapter_without_its_weights_is_named(earlier_adapter, tmp_path):
    path = earlier_adapter[0]
    (path / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"earlier: cannot be loaded .*adapter_model\.safetensors"):
        Scorer.load(path)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(InputError, match=r"no config\.json or adapter_config\.json"):
        Scorer.load(path)
