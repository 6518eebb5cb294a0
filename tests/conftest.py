"""Tiny checkpoints with the architectures of the real ones, made here: the tests need no hub and no other data."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
# Read when torch is imported, here and in the processes that tests start. On models this small a second thread mostly
# waits for the first, and where both workers of xdist have one per core, ten times as long as the arithmetic takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from prefilter_common.articles import load_articles
from prefilter_common.cli import exit_code
from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# A shell has its background jobs ignore Ctrl-C, and the tests of Ctrl-C would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ROOT / "splits"

CHECKPOINT = {"config.json", "model.safetensors"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
RECORDS = {"README.md", "prefilter.json", "run.json", "training_metrics.json", "validation_predictions.jsonl"}
FILES = CHECKPOINT | TOKENIZER | RECORDS


@pytest.fixture(scope="module", autouse=True)
def no_collection_of_libraries():
    """Collections skip the libraries' million objects, which take a third of a second.

    Training, evaluation and ``faults`` ask for one per run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def texts():
    return [f"{a.title} {a.content}" for a in load_articles(SPLITS / "train.jsonl")]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, texts):
    """Family -> directory of a base model of its architecture and kind of tokenizer, about 0.1 M parameters."""
    folder = tmp_path_factory.mktemp("base")
    makers = {"distilbert": distilbert, "minilm": minilm, "xlm-roberta": xlm_roberta, "qwen": qwen}
    for name, make in makers.items():
        torch.manual_seed(7)  # with which each tells texts apart
        model, tokenizer = make(texts)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in makers}


@pytest.fixture(scope="session")
def tiny_encoder(tiny_models):
    return tiny_models["minilm"]


@pytest.fixture(scope="session")
def without_dropout(tmp_path_factory, tiny_encoder):
    """A base model that learns the same however a batch is divided; what dropout draws depends on the shapes."""
    base = shutil.copytree(tiny_encoder, tmp_path_factory.mktemp("without_dropout") / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0}), encoding="utf-8")
    return base


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory, tiny_models):
    """Family -> directory of an untrained classifier that reads 64 tokens; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("classifiers")
    for name, base in tiny_models.items():
        load_base_model(str(base), max_length=64, seed=1).save(folder / name)
    return {name: folder / name for name in tiny_models}


# A wide initialisation lets untrained layers tell texts apart already.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES["initializer_range"] = 0.3


def minilm(texts):
    """A BERT with an XLM-R vocabulary, as multilingual MiniLM is one; no pooler, as the packaged encoder has none."""
    tokenizer = unigram_tokenizer(texts)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, pad_token_id=1, **SIZES)
    return BertModel(config, add_pooling_layer=False), tokenizer


def xlm_roberta(texts):
    tokenizer = unigram_tokenizer(texts)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=130, pad_token_id=1, **SIZES)
    return XLMRobertaForMaskedLM(config), tokenizer


def distilbert(texts):
    """With a tokenizer that emits token_type_ids, which DistilBERT does not take."""
    normalizer, words = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = pieces_of(texts, special, normalizer, words)
    # Any of them may stand at the beginning of a word or, marked so, later on.
    marked = [*pieces, *(f"##{piece}" for piece in pieces[len(special) :])]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(marked)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    config = DistilBertConfig(
        vocab_size=len(marked),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return DistilBertForMaskedLM(config), PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, **names
    )


def qwen(texts):
    """A bfloat16 language model with byte-level BPE and no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    config = Qwen2Config(vocab_size=2000, num_key_value_heads=2, max_position_embeddings=256, **SIZES)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def pieces_of(texts, special, normalizer, words):
    """A vocabulary, by id, that is the same in every run: the trainers of WordPiece and Unigram draw theirs anew."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


def unigram_tokenizer(texts):
    normalizer, words = normalizers.NFKC(), pre_tokenizers.Metaspace()
    pieces = pieces_of(texts, ["<s>", "<pad>", "</s>", "<unk>"], normalizer, words)
    # The rarer, the less likely; any piece is likelier than two.
    scores = [0.0] * 4 + [-10.0 - i / len(pieces) for i in range(len(pieces) - 4)]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.add_special_tokens(pieces[:4])
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


@pytest.fixture(scope="module")
def one_thread():
    """For tests of equal bytes: sums are then taken in the same order each time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TRAIN_FLAGS = ["--epochs", "2", "--batch-size", "8", "--max-length", "64", "--learning-rate", "1e-3"]
# What "auto" stands for depends on the processor.
TRAIN_FLAGS += ["--precision", "fp32"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_encoder, data_dir):
    """A models/ directory with one finished model, ``tiny``; not to be changed by a test."""
    import train_encoder

    models_dir = tmp_path_factory.mktemp("models")
    flags = ["--model", str(tiny_encoder), "--output", str(models_dir / "tiny"), "--data-dir", str(data_dir)]
    assert call(train_encoder, flags + TRAIN_FLAGS) == 0
    return models_dir


@pytest.fixture(scope="session")
def with_onnx(tmp_path_factory, trained):
    """A copy of ``tiny`` for which ONNX Runtime is recommended: who scores with it need not import torch."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    model = shutil.copytree(trained / "tiny", tmp_path_factory.mktemp("with_onnx") / "tiny")
    convert(model, EngineName("onnxruntime", "fp32"), None)
    recommended = {"engine": "onnxruntime-fp32", "max_length": 64, "stages": []}
    (model / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    return model


@pytest.fixture
def quick_benchmark(monkeypatch):
    """A benchmark whose engines are all in this process, and which takes the machine's measure in no time."""
    from in_process import InProcess

    monkeypatch.setattr("prefilter_common.benchmark.run.Worker", InProcess)
    monkeypatch.setattr("prefilter_common.benchmark.bounds.MATRIX", 64)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 0.0)


def call(script, argv):
    """A script's exit code, as its __main__ block would give it."""
    try:
        return exit_code(lambda: script.main([str(arg) for arg in argv]))
    except SystemExit as stop:  # argparse
        return stop.code


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """``forks(module, *arguments, processes=1)`` runs the module's ``main`` as a script, without waiting for imports.

    Returns what ``subprocess.run`` does, of all processes together.
    """
    if not hasattr(os, "fork"):
        pytest.skip("each run is a fork")
    command, env = [sys.executable, str(ROOT / "tests" / "forks.py")], {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True) as server:

        def run(module, *arguments, processes=1):
            folder, arguments = tmp_path_factory.mktemp("printed"), list(map(str, arguments))
            job = {"module": module, "arguments": arguments, "processes": processes, "folder": str(folder)}
            print(json.dumps(job), file=server.stdin, flush=True)
            code = max(json.loads(server.stdout.readline()), key=abs)
            printed = ((folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
            return subprocess.CompletedProcess(arguments, code, *printed)

        yield run


@pytest.fixture
def refused(capsys, tmp_path_factory):
    """``malformed.check_refused`` with its table: ``refused(script, argv, watch, code=2, words="")``."""
    from malformed import check_refused, table_path

    return partial(check_refused, capsys, table_path(tmp_path_factory.getbasetemp()))


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no worker waits at the end for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter, config):
    from malformed import TABLE

    table = config._tmp_path_factory.getbasetemp() / TABLE
    if table.is_file():
        n_rows = len(table.read_text(encoding="utf-8").splitlines())
        terminalreporter.write_line(f"malformed inputs: {n_rows} refused in one line each, see {table}")
