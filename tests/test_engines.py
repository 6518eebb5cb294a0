"""Every family on every engine scores as PyTorch does, and says in what precision."""

import copy
import importlib.util
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefilter_common.articles import Article, load_articles
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.contract import Contract
from prefilter_common.scoring.engines import converted as converted_engines
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import (
    ENGINES,
    REFERENCE,
    EngineName,
    Unavailable,
    check_available,
    has_bf16,
)
from prefilter_common.scoring.scorer import Scorer

# Without importing it, which every process that collects the tests would do.
without_nncf = importlib.util.find_spec("nncf") is None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(without_nncf, reason="nncf is not installed")]

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
onnxruntime = pytest.importorskip("onnxruntime")

FAMILIES = ["distilbert", "minilm", "xlm-roberta", "qwen"]
FP32 = ["openvino-fp32", "onnxruntime-fp32"]
INT8 = ["openvino-int8", "onnxruntime-int8"]
# Of an int8 engine's log-odds from the reference, over the reference's spread: root mean squares. Unrelated scores
# have 1.2 to 1.6, constant ones 1; these untrained models, whose weights were drawn wide, have 0.06 to 0.43, which
# changes from run to run with the vocabulary that the tiny tokenizer happens upon.
INT8_TOLERANCE = 0.7


@pytest.fixture(scope="module")
def articles(data_dir):
    """Of many lengths, among them an empty one and two that are cut."""
    return [
        *load_articles(data_dir / "test.jsonl"),
        Article("", ""),
        Article("t", "word " * 500),
        Article("kurz", "ja"),
    ]


@pytest.fixture(scope="module")
def train(data_dir):
    return load_articles(data_dir / "train.jsonl")[:16]


@pytest.fixture(scope="module")
def converted(tmp_path_factory, classifiers, train):
    """Family -> a directory with the converted models of all engines in it."""
    folder = tmp_path_factory.mktemp("converted")
    for family, directory in classifiers.items():
        shutil.copytree(directory, folder / family)
        for engine in FP32 + INT8:
            convert(folder / family, EngineName.parse(engine), train)
    return {family: folder / family for family in classifiers}


def log_odds(scorer, articles, batch_size=32):
    scores = scorer.score(articles, batch_size)
    return np.log(scores) - np.log1p(-scores)


def relative_error(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2)) / expected.std()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", FP32)
def test_fp32_engines_score_as_pytorch_does(converted, articles, family, engine):
    expected = Scorer.load(converted[family], engine=REFERENCE).score(articles)
    scorer = Scorer.load(converted[family], engine=engine)
    assert expected.std() > 0.001  # else agreement would prove nothing
    alone = np.concatenate([scorer.score([article]) for article in articles])
    for scores in (alone, scorer.score(articles), scorer.score(articles, batch_size=5)):
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", INT8)
def test_int8_engines_score_about_as_pytorch_does(converted, articles, family, engine):
    expected = log_odds(Scorer.load(converted[family], engine=REFERENCE), articles)
    scorer = Scorer.load(converted[family], engine=engine)
    alone = np.concatenate([log_odds(scorer, [article]) for article in articles])
    errors = [relative_error(found, expected) for found in (alone, log_odds(scorer, articles, batch_size=5))]
    assert 0 < max(errors) < INT8_TOLERANCE
    assert relative_error(np.roll(expected, 1), expected) > 1.2 * INT8_TOLERANCE


@pytest.mark.parametrize("engine", ["pytorch-bf16", "openvino-bf16"])
def test_bf16_engines_score_about_as_pytorch_does(converted, articles, engine):
    try:
        check_available(EngineName.parse(engine))
    except Unavailable as error:
        pytest.skip(str(error))
    expected = log_odds(Scorer.load(converted["minilm"], engine=REFERENCE), articles)
    scorer = Scorer.load(converted["minilm"], engine=engine)
    assert scorer.engine.precision == "bf16"
    assert 0 < relative_error(log_odds(scorer, articles), expected) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_precision_is_what_is_executed(converted, family):
    precisions = {name: Scorer.load(converted[family], engine=name).engine.precision for name in FP32 + INT8}
    assert precisions["openvino-fp32"] == precisions["onnxruntime-fp32"] == "fp32"
    # What is left beside int8 depends on the processor: with VNNI nothing may be.
    assert precisions["openvino-int8"] in ("int8", "int8+fp32", "int8+bf16")
    assert precisions["onnxruntime-int8"] == "int8+fp32"
    # ONNX Runtime does not say what it executes; its model does.
    kinds = {name: _operations(converted[family] / name) for name in ("onnxruntime-fp32", INT8[1])}
    assert "MatMulInteger" in kinds["onnxruntime-int8"] and "MatMulInteger" not in kinds["onnxruntime-fp32"]


def _operations(folder):
    return {node.op_type for path in folder.glob("*.onnx") for node in onnx.load(path).graph.node}


def test_int8_weights_leave_room_for_processors_that_add_in_16_bits(converted):
    """Two products of an 8-bit activation and a 7-bit weight fit: 2 * 255 * 64 < 2 ** 15."""
    read = openvino.Core().read_model(converted["minilm"] / "openvino-int8" / "layers_1.xml")
    constants = [node.data for node in read.get_ops() if node.get_type_name() == "Constant"]
    graph = onnx.load(converted["minilm"] / "onnxruntime-int8" / "layers_1.onnx").graph
    for arrays in (constants, [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]):
        shapes = ((32, 32), (32, 64), (64, 32), (32, 96))  # ONNX Runtime has one for queries, keys and values
        matrices = [a for a in arrays if a.dtype == np.int8 and a.shape in shapes]
        # All weights of the first layer.
        assert sum(matrix.size for matrix in matrices) >= 4 * 32 * 32 + 2 * 32 * 64
        assert max(abs(matrix.astype(int)).max() for matrix in matrices) <= 64


def test_openvinos_precision_is_not_read_off_the_name(converted, tmp_path):
    """An int8 folder that holds an fp32 model is not called int8."""
    for path in (converted["minilm"] / "openvino-fp32").iterdir():
        shutil.copy(path, tmp_path)
    expected = "bf16" if has_bf16("openvino", "cpu") else "fp32"  # what OpenVINO lowers the rest of an int8 model to
    assert converted_engines.open_converted(tmp_path, EngineName("openvino", "int8"), None).precision == expected


def test_fp32_is_asked_for_where_openvino_would_take_bf16(converted, monkeypatch):
    asked = []
    compile_model = openvino.Core.compile_model

    def spy(core, path, device, settings):
        asked.append(settings["INFERENCE_PRECISION_HINT"])
        return compile_model(core, path, device, {})

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    monkeypatch.setattr(converted_engines, "has_bf16", lambda *args: True)
    for name in ("openvino-fp32", "openvino-bf16", "openvino-int8"):
        Scorer.load(converted["minilm"], engine=name)
    assert asked == ["f32", "f32", "bf16", "bf16", "bf16", "bf16"]  # of both parts


@pytest.mark.parametrize("engine", FP32)
def test_one_sigmoid_output_of_an_earlier_script(tmp_path, tiny_encoder, articles, engine):
    """No prefilter.json either."""
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    expected = Scorer.load(tmp_path).score(articles)
    assert expected.std() > 0.001
    convert(tmp_path, EngineName.parse(engine), None)
    np.testing.assert_allclose(Scorer.load(tmp_path, engine=engine).score(articles), expected, atol=1e-5)
    (tmp_path / "model.safetensors").unlink()
    scorer = Scorer.load(tmp_path, engine=engine)
    assert scorer.contract == Contract(max_length=128)  # all that the model has positions for
    np.testing.assert_allclose(scorer.score(articles), expected, atol=1e-5)


def test_labels_in_the_other_order(tmp_path, classifiers, articles, engine="onnxruntime-fp32"):
    checkpoint = load_checkpoint(classifiers["minilm"])
    expected = Scorer.of(checkpoint, "cpu").score(articles)
    checkpoint.model.config.id2label = {0: "commerce", 1: "journalism"}
    checkpoint.model.config.label2id = {"commerce": 0, "journalism": 1}
    checkpoint.save(tmp_path)
    convert(tmp_path, EngineName.parse(engine), None)
    np.testing.assert_allclose(Scorer.load(tmp_path, engine=engine).score(articles), 1 - expected, atol=1e-5)


def test_an_adapter_is_converted_merged(tmp_path, tiny_models, articles, engine="onnxruntime-fp32"):
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_models["qwen"], num_labels=2, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)  # a fresh adapter adds nothing
    model.save_pretrained(tmp_path)
    expected = Scorer.load(tmp_path).score(articles)
    convert(tmp_path, EngineName.parse(engine), None)
    (tmp_path / "adapter_model.safetensors").unlink()
    np.testing.assert_allclose(Scorer.load(tmp_path, engine=engine).score(articles), expected, atol=1e-5)


@pytest.mark.parametrize("engine", FP32)
def test_a_converted_engine_imports_neither_torch_nor_transformers(converted, engine):
    program = (
        "import sys; from prefilter_common.articles import Article; from prefilter_common.scoring import Scorer; "
        f"print(Scorer.load({str(converted['minilm'])!r}, engine={engine!r}).score([Article('a', 'b')])[0]); "
        "print(sorted({'torch', 'transformers', 'peft', 'onnx', 'nncf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    score, modules = done.stdout.splitlines()
    assert modules == "[]"
    expected = Scorer.load(converted["minilm"], engine=REFERENCE).score([Article("a", "b")])[0]
    assert float(score) == pytest.approx(expected, abs=1e-5)


def test_models_of_one_thread_are_not_all_on_the_first_core(converted):
    engine = Scorer.load(converted["minilm"], engine="openvino-fp32", threads=1).engine
    for part in engine._parts:
        assert part.get_property("ENABLE_CPU_PINNING") is False
        assert part.get_property("INFERENCE_NUM_THREADS") == 1
    engine = Scorer.load(converted["minilm"], engine="onnxruntime-fp32", threads=1).engine
    assert [part.get_session_options().intra_op_num_threads for part in engine._parts] == [1, 1]


@pytest.mark.parametrize("engine", FP32)
def test_threads_rest_between_articles(converted, articles, engine):
    scorer = Scorer.load(converted["minilm"], engine=engine)
    scorer.score(articles)
    started = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - started < 0.05


def test_onnx_runtime_keeps_normalisation_apart(converted, tmp_path, monkeypatch):
    """Fused with the sum before it, layer normalisation takes longer than the two on the CPU."""
    session, run = onnxruntime.InferenceSession, tmp_path / "run.onnx"

    def recording(path, options, *others, **more):
        options.optimized_model_filepath = str(run)
        return session(path, options, *others, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    for engine in ("onnxruntime-fp32", "onnxruntime-int8"):
        Scorer.load(converted["minilm"], engine=engine)
        operations = [node.op_type for node in onnx.load(run).graph.node]
        assert operations.count("LayerNormalization") == 2 and "SkipLayerNormalization" not in operations


@pytest.mark.parametrize("name", [str(name) for name in ENGINES if name.library != "pytorch"])
def test_a_library_that_is_not_installed(monkeypatch, name):
    library = name.split("-")[0]
    monkeypatch.setitem(sys.modules, library, None)
    assert importlib.util.find_spec(library) is None
    with pytest.raises(Unavailable, match=f"^{name}: {library} is not installed; pip install {library}$"):
        check_available(EngineName.parse(name))


def test_a_processor_without_bf16(monkeypatch):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *args: ["FP32", "INT8"])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for name in ("pytorch-bf16", "openvino-bf16"):
        with pytest.raises(Unavailable, match=f"^{name}: this processor has no bf16 arithmetic$"):
            check_available(EngineName.parse(name))
    monkeypatch.setattr(openvino.Core, "get_property", lambda *args: ["FP32", "BF16"])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for name in ("pytorch-bf16", "openvino-bf16"):
        check_available(EngineName.parse(name))


@pytest.mark.parametrize("name", ["tensorrt-fp16", "pytorch", "openvino-fp32-x", "onnxruntime-bf16", ""])
def test_an_engine_that_does_not_exist(name):
    with pytest.raises(Unavailable, match="is not an engine; there are pytorch-fp32, "):
        check_available(EngineName.parse(name))


def test_a_process_can_send_the_reason_back():
    error = copy.copy(Unavailable("m", "has no intact engine"))  # by the same two functions as between processes
    assert (type(error), str(error), error.reason) == (Unavailable, "m: has no intact engine", "has no intact engine")


def test_what_only_runs_on_the_cpu():
    with pytest.raises(Unavailable, match=r"^openvino-fp32: runs on the CPU only$"):
        check_available(EngineName("openvino", "fp32"), "cuda")
