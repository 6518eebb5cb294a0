"""Nothing that is shipped, or read from a model directory, can run code when it is loaded.

The hidden checkpoints of an unfinished run do contain pickles (``optimizer.pt``, random states): transformers reads
those with ``weights_only=True``, and they are deleted when the run is done.
"""

import ast
import pickletools
import shutil
import zipfile

import pytest
from conftest import ROOT, TRAIN_FLAGS, call

import benchmark_inference
import train_encoder
import train_qwen_lora
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_base_model, load_checkpoint

SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "prefilter_common").rglob("*.py")])
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas"}

pytestmark = pytest.mark.slow


def is_pickle(path):
    """Whether a file is a pickle, bare as ``training_args.bin`` once was or in a zip as torch writes it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    data = path.read_bytes()
    if data[:1] != b"\x80":  # protocol 2 or later
        return False
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(data))
    except Exception:
        return False


def test_what_is_a_pickle(tmp_path):
    import pickle

    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "zip")
    (tmp_path / "bare").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "raw").write_bytes(b"\x80\x02" + bytes(range(256)))
    assert [is_pickle(tmp_path / name) for name in ("zip", "bare", "raw")] == [True, True, False]


@pytest.mark.slow
def test_no_finished_directory_contains_a_pickle(tmp_path, trained, tiny_models, data_dir, quick_benchmark):
    shutil.copytree(trained / "tiny", tmp_path / "encoder")
    flags = ["--model", tiny_models["qwen"], "--data-dir", data_dir, "--output", tmp_path / "adapter", *TRAIN_FLAGS]
    assert call(train_qwen_lora, [*flags, "--merge"]) == 0
    flags = ["--model", tiny_models["minilm"], "--data-dir", data_dir, "--output", tmp_path / "new", *TRAIN_FLAGS]
    assert call(train_encoder, [*flags, "--checkpoint-minutes", "1e-6"]) == 0
    engines = ["openvino-fp32", "onnxruntime-fp32"]
    flags = ["--model", tmp_path / "encoder", "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "results"]
    assert call(benchmark_inference, [*flags, "--engines", *engines, "--n-samples", 4, "--rounds", 1]) == 0
    assert {p.name for p in (tmp_path / "encoder").iterdir() if p.is_dir()} == set(engines)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", "adapter-merged", "encoder", "new", "results"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if is_pickle(path) or path.name == "training_args.bin"] == []


class Exploit:
    """Its pickle opens a file for writing when it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def test_a_base_model_in_a_pickle_is_read_without_running_code(tmp_path, tiny_encoder):
    """The weights of older models on the hub are pickles."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(tiny_encoder / "model.safetensors")
    for name, content in (("good", weights), ("evil", {**weights, "x": Exploit(tmp_path / "executed")})):
        base = shutil.copytree(tiny_encoder, tmp_path / name)
        (base / "model.safetensors").unlink()
        torch.save(content, base / "pytorch_model.bin")
    assert load_base_model(str(tmp_path / "good"), max_length=64, seed=1).model
    with pytest.raises(InputError, match="evil: cannot be loaded"):
        load_base_model(str(tmp_path / "evil"), max_length=64, seed=1)
    assert not (tmp_path / "executed").exists()


def test_a_trained_model_is_read_from_safetensors_alone(tmp_path, trained):
    import torch
    from safetensors.torch import load_file

    model = shutil.copytree(trained / "tiny", tmp_path / "m")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"m: cannot be loaded \(.*model\.safetensors"):
        load_checkpoint(model)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_neither_reads_nor_writes_pickles(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & PICKLES
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in PICKLES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert flags.get("weights_only") == "True"
            assert flags.get("allow_pickle", "False") == "False"
