"""Tiny checkpoints with the architectures of the real ones, made here: the tests need no hub and no other data."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast  # noqa: E402

from prefilter_common.articles import load_articles  # noqa: E402
from prefilter_common.cli import exit_code  # noqa: E402

SPLITS = ROOT / "splits"


@pytest.fixture(scope="session")
def texts():
    return [f"{a.title} {a.content}" for a in load_articles(SPLITS / "train.jsonl")]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, texts):
    """A BERT with an XLM-R style unigram vocabulary, as multilingual MiniLM is one; 0.1 M parameters."""
    path = tmp_path_factory.mktemp("base") / "tiny-minilm"
    tokenizer = unigram_tokenizer(texts)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # so that untrained layers already tell texts apart
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def unigram_tokenizer(texts):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False, n_sub_iterations=1
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The first articles of the splits, as a data directory of its own."""
    path = tmp_path_factory.mktemp("data")
    for name, limit in (("train", 48), ("val", 16), ("test", 16)):
        lines = (SPLITS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


TRAIN_FLAGS = ["--epochs", "2", "--batch-size", "8", "--max-length", "64", "--learning-rate", "1e-3"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_encoder, data_dir):
    """A models/ directory with one finished model, ``tiny``; not to be changed by a test."""
    import train_encoder

    models_dir = tmp_path_factory.mktemp("models")
    flags = ["--model", str(tiny_encoder), "--output", str(models_dir / "tiny"), "--data-dir", str(data_dir)]
    assert call(train_encoder, flags + TRAIN_FLAGS) == 0
    return models_dir


def call(script, argv):
    """A script's exit code, as its __main__ block would give it."""
    try:
        return exit_code(lambda: script.main([str(arg) for arg in argv]))
    except SystemExit as stop:  # argparse
        return stop.code


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
