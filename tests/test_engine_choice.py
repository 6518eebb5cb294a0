"""With which engine, and how, a model directory is read by default and on request."""

import json
import logging
import shutil

import numpy as np
import pytest

from prefilter_common.articles import load_articles
from prefilter_common.errors import InputError
from prefilter_common.files import sha256_of
from prefilter_common.models.bundle import pack, unpack
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.models.directory import write_contract
from prefilter_common.scoring.engines import conversion, interface
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow

NAME, UNBUILT = "onnxruntime-fp32", "openvino-fp32"
SHORT = Stage("encoder", 1.5, 0.4, 0.6, max_length=32)


@pytest.fixture(scope="module")
def built(tmp_path_factory, classifiers):
    path = tmp_path_factory.mktemp("built") / "m"
    shutil.copytree(classifiers["minilm"], path)
    write_contract(path, Contract(max_length=64, stages=(SHORT,)))
    conversion.convert(path, interface.EngineName.parse(NAME), None)
    return path


@pytest.fixture
def model(tmp_path, built):
    """Converted, not benchmarked, with a short read in its contract; for a test to change."""
    return shutil.copytree(built, tmp_path / "m")


def recommend(model, text=None, **found):
    (model / "cpu_benchmark.json").write_text(text or json.dumps(found))


def warnings_of(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def chosen(model, **kwargs):
    contract = (scorer := Scorer.load(model, **kwargs)).contract
    return str(scorer.engine.name), contract.max_length, contract.stages


def test_pytorch_before_there_is_a_benchmark(model, caplog):
    assert chosen(model) == ("pytorch-fp32", 64, ())
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    ("found", "stages"),
    [
        ({"stages": []}, ()),
        ({"stages": ["32 tokens"]}, (SHORT,)),
        ({"passes": 1}, ()),  # an earlier version's
        ({"passes": 2}, (SHORT,)),
    ],
)
def test_the_recommended_engine_length_and_stages(model, caplog, found, stages):
    caplog.set_level(logging.INFO)
    recommend(model, engine=NAME, max_length=48, **found)
    assert chosen(model) == (NAME, 48, stages)
    assert not warnings_of(caplog)
    words = "32 tokens, then at most" if stages else "at most"
    assert f"{NAME}, {words} 48 tokens" in caplog.messages[-1]


def test_stages_that_know_nothing_of_an_operating_point_are_skipped(model, caplog):
    recommend(model, engine=NAME, max_length=48, stages=["32 tokens"])
    record = json.loads((model / "prefilter.json").read_text(encoding="utf-8"))
    record["thresholds"]["mine"] = 0.38  # below what the short read leaves to the full one
    (model / "prefilter.json").write_text(json.dumps(record), encoding="utf-8")
    assert chosen(model) == (NAME, 48, ())
    assert "its stages were chosen for other operating points, and are skipped" in caplog.text


def test_a_part_of_another_model_is_not_run(model, caplog):
    shutil.copyfile(model / NAME / "model.onnx", model / NAME / "layers_7.onnx")
    recommend(model, engine=NAME, max_length=48, stages=[])
    assert chosen(model)[0] == "pytorch-fp32"
    assert f"has no intact {NAME} made from this checkpoint" in caplog.text


@pytest.mark.parametrize("found", [{"stages": ["first stage", "32 tokens"]}, {"passes": 2}])
def test_stages_that_the_contract_does_not_have_are_none(model, found):
    write_contract(model, Contract(max_length=64))
    recommend(model, engine=NAME, max_length=64, **found)
    assert chosen(model) == (NAME, 64, ())


def test_no_more_tokens_than_the_model_was_trained_on(model, data_dir):
    """As when the file was copied from another model's directory."""
    recommend(model, engine=NAME, max_length=512, stages=[])
    assert chosen(model) == (NAME, 64, ())


def test_what_is_asked_for_goes_before_the_recommendation_and_reads_in_full(model, data_dir):
    recommend(model, engine=NAME, max_length=48, stages=["32 tokens"])
    assert chosen(model, engine="pytorch-fp32") == ("pytorch-fp32", 64, ())
    assert chosen(model, engine=NAME) == (NAME, 64, ())
    assert chosen(model, device="cpu") == ("pytorch-fp32", 64, ())
    articles = load_articles(data_dir / "test.jsonl")
    scores = [Scorer.load(model, engine=name).score(articles) for name in (NAME, "pytorch-fp32")]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (
            UNBUILT,
            "has no intact openvino-fp32 made from this checkpoint; python benchmark_inference.py --model",
        ),
        ("tensorrt-fp16", "tensorrt-fp16: is not an engine"),
        ("pytorch", "pytorch: is not an engine"),
        ("../../etc", "is not an engine"),
    ],
)
def test_a_recommendation_that_is_unavailable_is_skipped_with_one_warning(model, caplog, engine, why):
    recommend(model, engine=engine, max_length=48, stages=["32 tokens"])
    assert chosen(model) == ("pytorch-fp32", 64, ())
    assert [why in record.getMessage() for record in warnings_of(caplog)] == [True]


def test_a_recommendation_whose_checkpoint_has_changed(model, caplog):
    recommend(model, engine=NAME, max_length=48, stages=[])
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")
    assert chosen(model) == ("pytorch-fp32", 64, ())
    assert len(warnings_of(caplog)) == 1 and "made from this checkpoint" in caplog.text


def test_an_engine_that_was_converted_again_is_not_the_one_that_was_judged(model, caplog, tmp_path):
    """As a benchmark leaves it that was stopped before it had judged what it converted."""
    judged = sha256_of(model / NAME / "engine.json")
    recommend(model, engine=NAME, max_length=48, stages=[], engine_sha256=judged)
    assert chosen(model) == (NAME, 48, ())
    pack(model, tmp_path / "m.tar")
    unpack(tmp_path / "m.tar", tmp_path / "there")
    assert chosen(tmp_path / "there") == (NAME, 48, ()) and not warnings_of(caplog)
    record = model / NAME / "engine.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"version": 0}))
    assert chosen(model) == ("pytorch-fp32", 64, ())
    why = f"{NAME}: was made again since it was recommended; python benchmark_inference.py --model {model} judges it"
    assert [why in record.getMessage() for record in warnings_of(caplog)] == [True]
    with pytest.raises(InputError, match=f"{NAME}: made again since it was recommended; python benchmark_inf"):
        pack(model, tmp_path / "again.tar")


def test_where_the_processor_has_no_bf16_the_same_model_runs_in_fp32(model, caplog, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    conversion.convert(model, interface.EngineName.parse("openvino-bf16"), None)
    recommend(model, engine="openvino-bf16", max_length=48, stages=["32 tokens"])
    pack(model, tmp_path / "m.tar")
    unpack(tmp_path / "m.tar", tmp_path / "bundle")
    monkeypatch.setattr(interface, "has_bf16", lambda *_: False)
    for directory in (model, tmp_path / "bundle"):
        caplog.clear()
        assert chosen(directory) == ("openvino-fp32", 48, (SHORT,))
        (record,) = warnings_of(caplog)
        assert record.getMessage() == (
            "openvino-bf16: this processor has no bf16 arithmetic; its model is run as openvino-fp32"
        )
    (model / "openvino-fp32" / "engine.json").unlink()
    caplog.clear()
    assert chosen(model) == ("pytorch-fp32", 64, ()) and len(warnings_of(caplog)) == 1


def test_a_recommendation_that_is_not_installed(model, caplog, monkeypatch):
    monkeypatch.setattr(interface, "find_spec", lambda name: None)
    recommend(model, engine=NAME, max_length=48, stages=[])
    assert chosen(model) == ("pytorch-fp32", 64, ())
    assert len(warnings_of(caplog)) == 1 and "pip install onnxruntime" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        '{"model": "tiny", "engine": "pytorch", "precision": "fp32", "avg_ms": 20.1}',  # the earlier format
        "",
        '{"engine": "onnxruntime-fp32", "max_le',
        "[]",
        "null",
        '"onnxruntime-fp32"',
        '{"engine": ["onnxruntime-fp32"], "max_length": 64, "passes": 1}',
        '{"engine": null, "max_length": 64, "passes": 1}',
        '{"engine": "onnxruntime-fp32", "max_length": "64", "passes": 1}',
        '{"engine": "onnxruntime-fp32", "max_length": 0, "passes": 1}',
        '{"engine": "onnxruntime-fp32", "max_length": 64, "passes": 3}',
        '{"engine": "onnxruntime-fp32", "max_length": 64, "passes": "two"}',
        '{"engine": "onnxruntime-fp32", "max_length": 64, "stages": "32 tokens"}',
        '{"engine": "onnxruntime-fp32", "max_length": 64, "stages": null}',
    ],
)
def test_a_benchmark_that_recommends_nothing_readable(model, text):
    (model / "cpu_benchmark.json").write_text(text)
    assert chosen(model) == ("pytorch-fp32", 64, ())


def test_an_engine_that_is_asked_for_and_unavailable(model):
    with pytest.raises(
        InputError, match=r"made from this checkpoint; python benchmark_inference\.py --model .*m makes"
    ):
        Scorer.load(model, engine=UNBUILT)
    with pytest.raises(InputError, match="openvino: is not an engine; there are pytorch-fp32, "):
        Scorer.load(model, engine="openvino")
    with pytest.raises(InputError, match="onnxruntime-fp32: runs on the CPU only"):
        Scorer.load(model, engine=NAME, device="cuda")
