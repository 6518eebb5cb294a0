"""Malformed data, flags and outputs: one line, nothing written. Model directories and engines have their own tests."""

import inspect
import json
import math
import os
import shutil
import sys

import pytest
import test_malformed_models

import benchmark_inference
import evaluate_models
import train_encoder
import train_qwen_lora
from prefilter_common.scoring import streaming

TRAINING = [train_encoder, train_qwen_lora]
FLAGS = [
    *((script, flag, value) for script in TRAINING for flag, value in [
        ("--epochs", "0"), ("--epochs", "1.5"), ("--epochs", "100000"), ("--batch-size", "0"),
        ("--gradient-accumulation-steps", "-1"), ("--learning-rate", "nan"), ("--learning-rate", "inf"),
        ("--learning-rate", "0"), ("--learning-rate", "fast"), ("--max-length", "1"), ("--max-length", "true"),
        ("--max-length", "9" * 5000), ("--warmup-ratio", "1"), ("--weight-decay", "-0.1"), ("--seed", "-1"),
        ("--seed", str(2**32)), ("--precision", "fp8"), ("--max-train-samples", "0"), ("--max-val-samples", "x"),
        ("--bogus", "1"), ("--data-dir", ""),
    ]),
    *((train_qwen_lora, flag, value) for flag, value in [
        ("--lora-rank", "0"), ("--lora-rank", "1000000"), ("--lora-alpha", "1e9"), ("--lora-dropout", "1"),
    ]),
    *((evaluate_models, flag, value) for flag, value in [
        ("--batch-size", "0"), ("--batch-size", "100000"), ("--latency-samples", "-3"), ("--seed", "-1"),
        ("--target-precision", "1"), ("--target-precision", "95"), ("--engine", "tensorrt"), ("--bogus", "1"),
        ("--models-dir", "nowhere"), ("--models", "nobody"), ("--traffic-models", "one"),
    ]),
    *((benchmark_inference, flag, value) for flag, value in [
        ("--threads", "1000000"), ("--threads", "0"), ("--batch-sizes", "0"), ("--max-lengths", "1"),
        ("--no-stages", "3"), ("--max-f1-loss", "2"), ("--max-changed", "nan"), ("--n-samples", "0"),
        ("--rounds", "1000000"), ("--device", "tpu"), ("--engines", "onnx"), ("--model", "nowhere"),
        *((flag, path) for flag in ("--traffic", "--lengths-like") for path in ("nowhere.jsonl", "", "/dev/null")),
    ]),
    *((streaming, flag, value) for flag, value in [
        ("--threads", "1000000"), ("--batch-size", "0"), ("--engine", "x"), ("--threshold", "best"),
    ]),
]  # fmt: skip


@pytest.fixture
def base(trained, tiny_models, data_dir, tmp_path):
    """Script -> a command line that works, but for what a case adds; it writes into tmp_path only."""
    test, output = data_dir / "test.jsonl", tmp_path / "out"
    return {
        train_encoder: ["--model", tiny_models["minilm"], "--data-dir", data_dir, "--output", output],
        train_qwen_lora: ["--model", tiny_models["qwen"], "--data-dir", data_dir, "--output", output],
        evaluate_models: ["--models-dir", trained, "--test-data", test, "--output", output],
        benchmark_inference: ["--model", trained / "tiny", "--test-data", test, "--output", output],
        streaming: [trained / "tiny", test, output],
    }


@pytest.mark.parametrize(("script", "flag", "value"), FLAGS)
def test_flags(refused, base, tmp_path, script, flag, value):
    refused(script, [*base[script], flag, value], tmp_path)


def article(**changes):
    """A good line, but for the changes."""
    return json.dumps({"title": "t", "content": "c", "label": 1, **changes})


GOOD = [article(id="a", label=0), article(id="b")]
LINES = {
    "not JSON": "{",
    "single quotes": "{'title': 't', 'content': 'c', 'label': 1}",
    "two objects": article() * 2,
    "a list": "[]",
    "a string": '"text"',
    "null": "null",
    "NaN": "NaN",
    "too deep": '{"title": "t", "content": "c", "label": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a key twice": '{"title": "t", "content": "c", "label": 0, "label": 1}',
    "a key twice, deeper": article(x=1)[:-2] + '{"a": 1, "a": 2}}',
    "a number of 5000 digits": article()[:-1] + ', "x": ' + "9" * 5000 + "}",
    "no title": '{"content": "c", "label": 1}',
    "no content": '{"title": "t", "label": 1}',
    "title of another type": article(title=1),
    "content of another type": article(content=["c"]),
    "no label": '{"title": "t", "content": "c"}',
    "label true": article(label=True),
    "label 2": article(label=2),
    "label as text": article(label="1"),
    "label 0.5": article(label=0.5),
    "score 11": article(commerce_score=11),
    "score NaN": article(commerce_score=float("nan")),
    "score as text": article(commerce_score="7"),
    "an id twice": article(id="a"),
    "control characters and a forged line": '{"title": 1, "content": "\u202e\x1b[2J"}',
    "an id that forges a row": "\n".join([article(id="a\nok  100 %\x1b[A\u202e")] * 2),
}


@pytest.mark.parametrize("script", [train_encoder, evaluate_models])
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_lines(refused, base, tmp_path, script, line):
    (tmp_path / "train.jsonl").write_text("\n".join([*GOOD, line]) + "\n", encoding="utf-8")
    (tmp_path / "val.jsonl").write_text("\n".join(GOOD), encoding="utf-8")
    flags = ["--data-dir", tmp_path] if script is train_encoder else ["--test-data", tmp_path / "train.jsonl"]
    assert "train.jsonl: " in refused(script, [*base[script], *flags], tmp_path)


FILES = {
    "empty": b"",
    "blank lines": b"\n \n",
    "UTF-16": '{"title": "t"}'.encode("utf-16"),
    "half a character": '{"title": "é"}'.encode()[:-3],
    "zeros": bytes(1000),
    "one label": (article() + "\n" + article()).encode(),
    "a byte order mark in the middle": b"\n\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("script", [train_encoder, streaming])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_data_files(refused, base, tmp_path, script, content):
    if script is streaming and content == FILES["one label"]:
        pytest.skip("labels are not needed")
    (tmp_path / "train.jsonl").write_bytes(content)
    (tmp_path / "val.jsonl").write_text("\n".join(GOOD), encoding="utf-8")
    argv = [*base[script], "--data-dir", tmp_path]
    if script is streaming:
        argv = [base[script][0], tmp_path / "train.jsonl", tmp_path / "out"]
    assert "train.jsonl: " in refused(script, argv, tmp_path)


@pytest.mark.parametrize("flag", ["--traffic", "--lengths-like"])
@pytest.mark.parametrize("name", ["not JSON", "a list", "too deep", "no title", "no content", "label 2", *FILES])
def test_unlabelled_files_of_the_benchmark(refused, base, tmp_path, flag, name):
    if name == "one label":
        pytest.skip("labels are not needed")
    content = "\n".join([*GOOD, LINES[name]]).encode() if name in LINES else FILES[name]
    (tmp_path / "feed.jsonl").write_bytes(content)
    argv = [*base[benchmark_inference], flag, tmp_path / "feed.jsonl"]
    assert "feed.jsonl: " in refused(benchmark_inference, argv, tmp_path)


def a_file(path):
    path.write_text("kept")


def a_folder(path):
    path.mkdir()
    (path / "kept").write_text("kept")


def a_link_to_nothing(path):
    path.symlink_to(path.parent / "gone")


def a_link_to_itself(path):
    path.symlink_to(path)


def a_fifo(path):
    os.mkfifo(path)


BAD_FOLDERS = [a_file, a_link_to_nothing, a_link_to_itself, a_fifo]
NO_FILES = [a_folder, a_link_to_nothing, a_link_to_itself, a_fifo]


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs of POSIX")
@pytest.mark.parametrize("make", [*BAD_FOLDERS, a_folder])
@pytest.mark.parametrize("script", TRAINING)
def test_outputs_of_training(refused, base, tmp_path, script, make):
    make(tmp_path / "out")
    for overwrite in ([], ["--overwrite"]):
        assert "/out: " in refused(script, [*base[script], *overwrite], tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs of POSIX")
@pytest.mark.parametrize("make", BAD_FOLDERS)
@pytest.mark.parametrize("script", [evaluate_models, benchmark_inference])
def test_folders_of_results(refused, base, tmp_path, script, make):
    make(tmp_path / "out")
    refused(script, base[script], tmp_path, words="/out")


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs of POSIX")
@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize(
    ("script", "name"),
    [
        (evaluate_models, "evaluation_results.json"),
        (evaluate_models, "report.html"),
        (evaluate_models, "predictions/tiny.jsonl"),
        (benchmark_inference, "benchmark_tiny.json"),
        (benchmark_inference, "benchmark_tiny.png"),
    ],
)
def test_files_of_results(refused, base, tmp_path, script, name, make):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    make(path)
    refused(script, base[script], tmp_path, words=path.name)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_smoke_run_of_one_label(refused, base, tmp_path, split):
    argv = [*base[train_encoder], f"--max-{split}-samples", 1]
    refused(train_encoder, argv, tmp_path, words=f"--max-{split}-samples 1: leaves one label of {split}.jsonl; pass mo")


def test_a_mistyped_model(refused, base, tmp_path):
    words = "typo: no such model directory; check the path"
    refused(benchmark_inference, [*base[benchmark_inference], "--model", tmp_path / "typo"], tmp_path, words=words)


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs of POSIX")
@pytest.mark.parametrize("make", NO_FILES)
def test_the_recommendation_that_the_benchmark_writes_last(refused, base, trained, tmp_path, make):
    model = shutil.copytree(trained / "tiny", tmp_path / "tiny")
    (model / "cpu_benchmark.json").unlink(missing_ok=True)
    make(model / "cpu_benchmark.json")
    argv = [*base[benchmark_inference], "--model", model]
    refused(benchmark_inference, argv, tmp_path, words="cpu_benchmark.json")


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs of POSIX")
@pytest.mark.parametrize("make", [a_file, *NO_FILES])
def test_outputs_of_scoring(refused, base, tmp_path, make):
    make(tmp_path / "out")
    refused(streaming, base[streaming], tmp_path, words="/out: ")


@pytest.mark.parametrize("script", [*TRAINING, evaluate_models, benchmark_inference, streaming])
@pytest.mark.parametrize("name", ["n" * 300, "file/out", "/proc/out"], ids=["too long", "in a file", "read-only"])
def test_places_of_outputs(refused, base, tmp_path, script, name):
    if name.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("no read-only file system at hand")
    (tmp_path / "file").write_text("kept")
    output = tmp_path / name
    argv = [output if arg == tmp_path / "out" else arg for arg in base[script]]
    refused(script, argv, tmp_path, words="cannot be created")


def test_overwrite_replaces_only_models(refused, tmp_path, data_dir, tiny_encoder, trained, monkeypatch, classifiers):
    """The folders that a slip of the keyboard names: of all models, of the data, of the base model, above them all."""
    shutil.copytree(data_dir, tmp_path / "data")
    shutil.copytree(tiny_encoder, tmp_path / "bases" / "base")
    shutil.copytree(trained, tmp_path / "models")
    (tmp_path / "work" / "here").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "models")
    monkeypatch.chdir(tmp_path / "work" / "here")
    flags = ["--data-dir", tmp_path / "data", "--model", tmp_path / "bases" / "base", "--overwrite"]
    for name in ("models", "alias", "data", "bases", "bases/base", "work", "work/here", ".", "../.."):
        refused(train_encoder, [*flags, "--output", tmp_path / name], tmp_path, words=": ")
        refused(train_qwen_lora, [*flags, "--output", tmp_path / name], tmp_path, words=": ")
    for name in ("data", "bases/base"):  # as what --merge would write
        (tmp_path / f"{name}-merged").symlink_to(tmp_path / name)
        argv = [*flags, "--output", tmp_path / name, "--merge"]
        refused(train_qwen_lora, argv, tmp_path)
    shutil.copytree(classifiers["qwen"], tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    a_folder(tmp_path / "adapter-merged")
    words = "is not a model directory, so --overwrite does not replace it"
    refused(train_qwen_lora, ["--merge", tmp_path / "adapter", "--overwrite"], tmp_path, words=words)
    flags = ["--merge", tmp_path / "adapter", "--output", tmp_path / "elsewhere"]
    refused(train_qwen_lora, flags, tmp_path, words="--merge DIR writes DIR-merged; leave out --output")


def rows_of(module):
    """How many rows its tests add to the table of malformed inputs: at least one for each of their cases."""
    total = 0
    for name, test in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("test_") and {"refused", "score"} & inspect.signature(test).parameters.keys():
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            total += math.prod(len(mark.args[1]) for mark in marks)
    return total


def test_the_table_of_malformed_inputs_is_long():
    here, models = rows_of(sys.modules[__name__]), rows_of(test_malformed_models)
    assert here >= 150 and models >= 150, (here, models)
