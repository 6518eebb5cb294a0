"""A converted model is complete or absent, made once, made again when its checkpoint changes, enough on its own."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import logit

from prefilter_common.articles import load_articles
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.directory import ENGINE_FILE, is_current
from prefilter_common.models.encoder_layers import layers_of
from prefilter_common.scoring.engines import conversion, converters
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName, Unavailable
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow

openvino = pytest.importorskip("openvino")
quantization = pytest.importorskip("onnxruntime.quantization")

NAME = EngineName("openvino", "fp32")


@pytest.fixture(scope="module")
def articles(data_dir):
    return load_articles(data_dir / "test.jsonl")


@pytest.fixture(scope="module")
def built(tmp_path_factory, classifiers):
    path = tmp_path_factory.mktemp("built") / "m"
    shutil.copytree(classifiers["minilm"], path)
    assert convert(path, NAME, None) == path / str(NAME)
    return path


@pytest.fixture
def model(tmp_path, built):
    """A copy of a directory with a converted model in it, for a test to change."""
    return shutil.copytree(built, tmp_path / "m")


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def fail(*args, **kwargs):
    raise RuntimeError("no space left")


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [(NAME, openvino, "save_model"), (EngineName("onnxruntime", "int8"), quantization, "quantize_dynamic")],
)
def test_a_conversion_that_fails_leaves_nothing(tmp_path, classifiers, monkeypatch, name, module, function):
    path = shutil.copytree(classifiers["minilm"], tmp_path / "m")
    before = contents(path)
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(RuntimeError, match="no space left"):
        convert(path, name, None)
    assert contents(path) == before and not (path / str(name)).exists()
    assert not [entry for entry in path.iterdir() if entry.name.startswith(".")]


def test_a_conversion_that_fails_keeps_the_earlier_one(model, monkeypatch):
    (model / str(NAME) / ENGINE_FILE).write_text("{}")
    before = contents(model)

    def half(checkpoint, partial, *rest):
        (partial / "model.xml").write_text("half a model")
        fail()

    monkeypatch.setattr(conversion, "to_openvino", half)
    with pytest.raises(RuntimeError, match="no space left"):
        convert(model, NAME, None)
    assert contents(model) == before


def test_the_folder_holds_what_it_should(built):
    assert {path.name for path in (built / str(NAME)).iterdir()} == {
        "engine.json",
        "layers_1.bin",
        "layers_1.xml",
        "model.bin",
        "model.xml",
        "tokenizer.json",
    }
    record = json.loads((built / str(NAME) / ENGINE_FILE).read_text())
    assert record["engine"] == str(NAME) and record["max_length"] == 64 and record["openvino"] == openvino.__version__
    assert set(record["source"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_nothing_is_reported_over_the_network(built):
    from openvino_telemetry import Telemetry

    assert not Telemetry().consent


def test_what_is_current_is_not_made_again(model, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in [model / str(NAME), *(model / str(NAME)).iterdir()]}
    monkeypatch.setattr(conversion, "to_openvino", fail)
    assert convert(model, NAME, None) == model / str(NAME)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (model / "prefilter.json").write_text(json.dumps({"max_length": 64, "temperature": 3.0}))  # read again at each load
    assert is_current(model / str(NAME))
    assert Scorer.load(model, engine=NAME).contract.temperature == 3.0


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_changed_checkpoint_is_noticed(model, file):
    path = model / file
    if file == "model.safetensors":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert not is_current(model / str(NAME))
    expected = (
        rf"m: has no intact {NAME} made from this checkpoint; python benchmark_inference\.py --model .*m makes it$"
    )
    with pytest.raises(InputError, match=expected):
        Scorer.load(model, engine=NAME)


def test_a_changed_checkpoint_is_converted_again(model, articles):
    stale = Scorer.load(model, engine=NAME).score(articles)
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    expected = Scorer.load(model, engine="pytorch-fp32").score(articles)
    assert abs(expected - stale).max() > 0.05
    convert(model, NAME, None)
    # Wide weights: kernels of other processors round 1e-5 apart.
    np.testing.assert_allclose(Scorer.load(model, engine=NAME).score(articles), expected, atol=1e-4)


@pytest.mark.parametrize("damage", [None, "", '{"source": {"config', "[]", "{}", '{"source": 5}', '{"source": {}}'])
def test_a_damaged_record_means_a_conversion(model, damage):
    record = model / str(NAME) / ENGINE_FILE
    record.unlink() if damage is None else record.write_text(damage)
    assert not is_current(model / str(NAME))
    if damage is None:
        convert(model, NAME, None)
        assert is_current(model / str(NAME)) and (model / str(NAME) / "model.xml").is_file()


@pytest.mark.parametrize("file", ["model.xml", "model.bin", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_folder_is_one_line(model, file, damage):
    path = model / str(NAME) / file
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"has no intact {NAME} made .*; python .* makes it") as error:
        Scorer.load(model, engine=NAME)
    assert "\n" not in str(error.value)


def test_a_deployment_without_the_weights(model, articles):
    expected = Scorer.load(model, engine=NAME).score(articles)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / file).unlink()
    np.testing.assert_array_equal(Scorer.load(model, engine=NAME).score(articles), expected)
    (model / "cpu_benchmark.json").write_text(json.dumps({"engine": str(NAME), "max_length": 64, "stages": []}))
    assert Scorer.load(model).engine.name == NAME
    with pytest.raises(InputError, match=r"contains no checkpoint, only openvino-fp32"):
        Scorer.load(model, engine="pytorch-fp32")


@pytest.mark.parametrize(
    ("name", "library", "fix"),
    [
        ("openvino-fp32", "openvino", "openvino is not installed; pip install openvino"),
        ("openvino-int8", "nncf", "nncf, which converts models to it, is not installed; pip install nncf"),
        ("onnxruntime-fp32", "onnxruntime", "onnxruntime is not installed; pip install onnxruntime"),
        ("onnxruntime-int8", "onnx", "onnx, which converts models to it, is not installed; pip install onnx"),
    ],
)
def test_a_missing_library_is_said_before_anything_is_written(
    tmp_path, classifiers, articles, monkeypatch, name, library, fix
):
    path = shutil.copytree(classifiers["minilm"], tmp_path / "m")
    before = contents(path)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(conversion, "new_directory", fail)
    with pytest.raises(Unavailable, match=f"^{name}: {fix}$"):
        convert(path, EngineName.parse(name), articles)
    assert contents(path) == before


@pytest.mark.parametrize("train", [None, []])
def test_int8_needs_articles_to_calibrate_on(model, train):
    before = contents(model)
    with pytest.raises(Unavailable, match=r"^openvino-int8: needs training articles .*; pass --train-data$"):
        convert(model, EngineName("openvino", "int8"), train)
    assert contents(model) == before


def test_what_has_been_converted_runs_without_its_converter(model, articles, monkeypatch):
    shutil.copytree(model / str(NAME), model / "openvino-int8")  # current by its record
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert convert(model, EngineName("openvino", "int8"), None) == model / "openvino-int8"
    assert 0 < Scorer.load(model, engine="openvino-int8").score(articles[:1])[0] < 1


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        convert(tmp_path, NAME, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["openvino-int8", "onnxruntime-int8"])
@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta"])
def test_int8_leaves_the_head_alone(classifiers, data_dir, tmp_path, engine, family):
    """A probe's decision rests on one large weight beside many small ones, which eight bits cannot tell from 0."""
    pytest.importorskip("nncf")
    checkpoint = load_checkpoint(classifiers[family])
    names = ("classifier.out_proj", "classifier")
    head = next(m for m in map(dict(checkpoint.model.named_modules()).get, names) if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        head.weight[:, 0] = 0.0  # of a unit that tells nothing
        rest = head.weight.clone()
        head.weight[:, 0] = 30 * rest.abs().max()
    checkpoint.save(tmp_path / "m")
    convert(tmp_path / "m", EngineName.parse(engine), load_articles(data_dir / "train.jsonl"))
    articles = load_articles(data_dir / "test.jsonl")
    expected = Scorer.load(tmp_path / "m", engine="pytorch-fp32").score(articles)
    scores = Scorer.load(tmp_path / "m", engine=engine).score(articles)
    assert np.corrcoef(scores, expected)[0, 1] > 0.9


@pytest.mark.parametrize(("engine", "at_most"), [("openvino-int8", 0.9), ("onnxruntime-int8", 0.5)])
def test_int8_leaves_alone_what_has_massive_activations(classifiers, data_dir, tmp_path, monkeypatch, engine, at_most):
    """One unit of the lower layer answers to the first token alone, and a thousand times as strongly as the others."""
    pytest.importorskip("nncf")
    train, articles = (load_articles(data_dir / f"{name}.jsonl") for name in ("train", "test"))
    checkpoint = load_checkpoint(classifiers["minilm"])
    with torch.no_grad():  # so that it is unlike all others
        checkpoint.model.bert.embeddings.position_embeddings.weight[0] *= 20
    layer = layers_of(checkpoint.model)[0]
    seen = []
    hook = layer.intermediate.dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    Scorer.of(checkpoint, torch.device("cpu")).score(articles, batch_size=1)
    hook.remove()
    first, others = (torch.cat([states[0, at] for states in seen]) for at in (slice(0, 1), slice(1, None)))
    direction = first.mean(0) - others.mean(0)
    highest, lowest = (others @ direction).max(), (first @ direction).min()
    assert highest < lowest
    with torch.no_grad():
        layer.intermediate.dense.weight[0] = 1000 * direction / (lowest - highest)
        layer.intermediate.dense.bias[0] = -1000 * highest / (lowest - highest)
        layer.output.dense.weight[:, 0] /= 1000
    errors = []
    for limit in (1e9, 20.0):  # a short text of a tiny model has too few values for what real ones reach
        monkeypatch.setattr(converters, "WIDE_RANGE", limit)
        checkpoint.save(tmp_path / str(limit))
        convert(tmp_path / str(limit), EngineName.parse(engine), train)
        scorers = (Scorer.load(tmp_path / str(limit), engine=name) for name in ("pytorch-fp32", engine))
        expected, found = (logit(scorer.score(articles)) for scorer in scorers)
        errors.append(np.abs(found - expected).mean())
    assert errors[1] < at_most * errors[0], errors


def test_int8_without_training_articles_is_made_again_with_some(tmp_path, classifiers, data_dir):
    folder = shutil.copytree(classifiers["minilm"], tmp_path / "m")
    name, train = EngineName("onnxruntime", "int8"), load_articles(data_dir / "train.jsonl")[:8]
    record = folder / str(name) / ENGINE_FILE
    for articles, n in ((None, 0), (train, 2), (None, 2)):  # it looks at every fourth
        convert(folder, name, articles)
        assert json.loads(record.read_text())["calibration_articles"] == n


def test_what_an_earlier_version_converted_is_made_again_but_runs(model):
    path = model / str(NAME) / ENGINE_FILE
    record = json.loads(path.read_text())
    del record["version"]
    path.write_text(json.dumps(record))
    assert is_current(model / str(NAME))
    convert(model, NAME, None)
    assert json.loads(path.read_text())["version"] == conversion.VERSION


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta"])
def test_onnx_attention_is_one_operation(tmp_path, classifiers, family):
    onnx = pytest.importorskip("onnx")
    folder = convert(shutil.copytree(classifiers[family], tmp_path / "m"), EngineName("onnxruntime", "fp32"), None)
    first, last = ({node.op_type for node in onnx.load(path).graph.node} for path in sorted(folder.glob("*.onnx")))
    assert "Attention" in first and "Softmax" not in first
    # The last layer computes one token; torch's fused attention would export what only rows of padding need.
    assert "Softmax" in last and "IsNaN" not in last
