import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import call
from stub_engine import StubEngine
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import benchmark_inference
import evaluate_models
from prefilter_common.articles import Article, format_input, load_articles
from prefilter_common.errors import InputError, RunError
from prefilter_common.models.checkpoints import Checkpoint, load_base_model, load_checkpoint
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.scoring import streaming
from prefilter_common.scoring.engines import pytorch
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName
from prefilter_common.scoring.latency import time_single_articles
from prefilter_common.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(trained):
    return Scorer.load(trained / "tiny", device="cpu")


@pytest.fixture(scope="module")
def articles(data_dir):
    return load_articles(data_dir / "train.jsonl")


def test_batched_scores_are_those_of_each_article_alone_in_the_order_given(scorer, articles):
    alone = np.concatenate([scorer.score([article]) for article in articles])
    np.testing.assert_allclose(scorer.score(articles, batch_size=7), alone, atol=1e-6)
    np.testing.assert_allclose(scorer.score(articles[::-1], batch_size=7), alone[::-1], atol=1e-6)
    assert alone.std() > 0.01  # else the order could not be seen
    assert scorer.score([]).shape == (0,)


def test_more_articles_than_are_tokenised_at_once(scorer, articles, monkeypatch):
    expected = scorer.score(articles)
    monkeypatch.setattr("prefilter_common.scoring.scorer.CHUNK", 10)
    np.testing.assert_allclose(scorer.score(articles, batch_size=4), expected, atol=1e-6)


def test_an_article_longer_than_max_length_is_cut(scorer):
    long = Article("t", "word " * 1_000)
    assert len(scorer.tokenize([long])[0]) == 64
    assert 0 < scorer.score([long])[0] < 1


def test_an_empty_article_is_scored(scorer):
    assert 0 < scorer.score([Article("", "")])[0] < 1


def test_the_contract_is_applied(trained, articles):
    plain = load_checkpoint(trained / "tiny")
    contract = Contract(max_length=64, temperature=2.0, thresholds={"default": 0.5, "never": 1.0, "always": 0.0})
    scorer = Scorer.of(Checkpoint(plain.model, plain.tokenizer, contract), "cpu")
    inputs = plain.tokenizer(format_input(articles[0]), truncation=True, max_length=64, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    logits = plain.model(**inputs).logits[0].detach()
    assert scorer.score(articles[:1])[0] == pytest.approx((logits / 2).softmax(-1)[1].item(), abs=1e-6)
    assert scorer.is_commerce(articles[0], "always") and not scorer.is_commerce(articles[0], "never")
    with pytest.raises(InputError, match="no operating point 'high_precision'; this model has default, never, always"):
        scorer.is_commerce(articles[0], "high_precision")


@pytest.mark.parametrize("n_labels", [1, 2])
def test_a_directory_of_the_earlier_scripts_is_scored(tmp_path, tiny_encoder, articles, n_labels):
    """No prefilter.json, no label names; one label means a sigmoid, two a softmax."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=n_labels)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    inputs = tokenizer(
        [format_input(a) for a in articles], truncation=True, max_length=128, padding=True, return_tensors="pt"
    )
    logits = model.eval()(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.detach()
    expected = logits.sigmoid()[:, 0] if n_labels == 1 else logits.softmax(-1)[:, 1]
    np.testing.assert_allclose(Scorer.load(tmp_path, device="cpu").score(articles), expected, atol=1e-5)


def test_labels_in_the_other_order_are_read_by_name(tmp_path, trained, articles):
    checkpoint = load_checkpoint(trained / "tiny")
    expected = Scorer.of(checkpoint, "cpu").score(articles)
    with torch.no_grad():
        for parameter in (checkpoint.model.classifier.weight, checkpoint.model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    checkpoint.model.config.id2label = {0: "commerce", 1: "journalism"}
    checkpoint.model.config.label2id = {"commerce": 0, "journalism": 1}
    checkpoint.save(tmp_path)
    np.testing.assert_allclose(Scorer.load(tmp_path, device="cpu").score(articles), expected, atol=1e-6)


def test_a_decoder_whose_configuration_names_no_padding_is_read_at_its_last_token(tmp_path, classifiers, articles):
    model = shutil.copytree(classifiers["qwen"], tmp_path / "qwen")
    record = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**record, "pad_token_id": None}), encoding="utf-8")
    expected = Scorer.load(classifiers["qwen"], "cpu").score(articles, batch_size=1)
    np.testing.assert_allclose(Scorer.load(model, "cpu").score(articles), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta"])
def test_as_many_tokens_as_there_are_positions(tiny_models, family):
    long = Article("t", "word " * 500)
    scorer = Scorer.of(load_base_model(str(tiny_models[family]), max_length=128, seed=1), "cpu")
    assert len(scorer.tokenize([long])[0]) == 128 and 0 < scorer.score([long])[0] < 1
    with pytest.raises(InputError, match="reads at most 128 tokens; pass --max-length 128 or less"):
        load_base_model(str(tiny_models[family]), max_length=129, seed=1)


def test_what_is_not_a_model_is_named(tmp_path, trained):
    with pytest.raises(InputError, match=r"no config\.json"):
        Scorer.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "prefilter.json").write_text('{"max_length": 64, "colour": "red"}')
    with pytest.raises(InputError, match="not a valid contract"):
        Scorer.load(tmp_path)


def test_single_article_timings(scorer, articles):
    seconds = time_single_articles(scorer, articles[:4])
    assert seconds.shape == (4,) and (seconds > 0).all()


def test_every_article_is_read_once_before_it_is_timed(scorer, articles):
    """An engine may compile kernels for each new width."""
    counted = Scorer(engine := StubEngine(), scorer.tokenizer, scorer.contract)
    time_single_articles(counted, articles[:9])
    assert len(engine.rows) == 18 and engine.rows[:9] == engine.rows[9:]


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory):
    """A copy of the tiny model, to which a test adds engines."""
    return shutil.copytree(trained / "tiny", tmp_path_factory.mktemp("converted") / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "packages"),
    [
        ("pytorch-fp32", []),
        ("openvino-fp32", ["openvino"]),
        ("openvino-int8", ["openvino", "nncf"]),
        ("onnxruntime-fp32", ["onnxruntime", "onnx"]),
    ],
)
def test_threads_share_a_scorer(converted, articles, request, engine, packages):
    """Eight at once, which read 16 tokens, 64, or first 16 and then 64 over one engine, get what one alone gets."""
    for package in packages:
        pytest.importorskip(package)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    convert(converted, EngineName.parse(engine), articles)
    articles = [replace(article, title="", content=article.content[: 3 * i]) for i, article in enumerate(articles)]
    scorer = Scorer.load(converted, engine=engine, threads=1)
    assert len({len(ids) for ids in scorer.tokenize(articles)}) > 10
    readings = [scorer.reading(16), scorer.reading(64), scorer.reading(64, [Stage("encoder", 1.0, 0.3, 0.7, 16)])]
    jobs = [(reading, articles[i : i + 1 + i % 3]) for i in range(len(articles)) for reading in readings]
    expected = [reading.score(some, batch_size=2) for reading, some in jobs]
    short, long = (np.concatenate(expected[i::3]) for i in range(2))
    assert np.abs(short - long).max() > 0.01  # else a reading of the wrong length could not be seen
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda job: job[0].score(job[1], batch_size=2), jobs))
    for found, alone in zip(scores, expected, strict=True):
        np.testing.assert_allclose(found, alone, atol=1e-6)


def exhausted(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.slow
def test_exhausted_gpu_memory_is_one_line_with_the_flag_to_change(
    trained, data_dir, tmp_path, monkeypatch, capsys, quick_benchmark
):
    monkeypatch.setattr(pytorch.LogOdds, "forward", exhausted)
    monkeypatch.setattr(pytorch.States, "forward", exhausted)
    models, test = shutil.copytree(trained, tmp_path / "models"), data_dir / "test.jsonl"
    (models / "tiny" / "cpu_benchmark.json").unlink(missing_ok=True)
    output = ["--output", tmp_path / "r"]
    line = "the GPU's memory does not hold a batch of 8 articles of up to 64 tokens: pass a smaller --batch-size"
    for script, flags, start in [
        (streaming, [models / "tiny", test, tmp_path / "o", "--batch-size", 8], "error: "),
        (benchmark_inference, ["--model", models / "tiny", "--test-data", test, *output, "--batch-size", 8], "error: "),
        (evaluate_models, ["--models-dir", models, "--test-data", test, *output, "--batch-size", 8], "tiny: "),
    ]:
        assert call(script, flags) == 1
        lines = [found for found in capsys.readouterr().err.splitlines() if "GPU's memory" in found]
        assert len(lines) == 1 and re.sub(r"\b\d+ tokens", "64 tokens", lines[0]) == start + line, lines
    with pytest.raises(RunError, match="an article of 64 tokens: stop what else uses the GPU"):
        Scorer.load(models / "tiny", "cpu").score([Article("t", "word " * 500)])


def test_a_model_that_the_gpu_does_not_hold_is_one_line(trained, monkeypatch):
    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.nn.Module, "to", exhaust)
    with pytest.raises(RunError, match="the GPU's memory does not hold the model: stop what else uses the GPU"):
        Scorer.load(trained / "tiny", "cpu")
