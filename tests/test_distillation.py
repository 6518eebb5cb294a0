"""A student learns from teachers: texts and targets by themselves, then the command."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILES, call, write_jsonl
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import train_encoder
from prefilter_common.articles import CUT_TO, Article, labels_of, load_articles
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.directory import read_contract, write_contract
from prefilter_common.models.encoder_layers import in_parts
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.tokenization import ArticleTokenizer
from prefilter_common.training import fine_tuning
from prefilter_common.training.compression import distillation
from prefilter_common.training.compression.deep_supervision import STATE_SCALE, exit_heads
from prefilter_common.training.compression.distillation import (
    LABEL_SHARE,
    PASSAGES,
    DistillationTexts,
    load_teacher,
    passage,
)
from prefilter_common.training.data import Source, load
from prefilter_common.training.progress import ProgressLog

FLAGS = ["--max-train-samples", 24, "--max-val-samples", 16, "--epochs", 2, "--max-length", 64]
# What "auto" stands for depends on the processor.
FLAGS += ["--learning-rate", "1e-3", "--precision", "fp32", "--layers", 1]


def by_length(articles):
    """A teacher that says something else of every text."""
    return np.array([1 / (1 + len(article.content)) for article in articles])


@pytest.fixture
def epoch_texts(classifiers):
    tokenizer = ArticleTokenizer.of(load_checkpoint(classifiers["minilm"]).tokenizer)
    articles = [Article("a", "one two " * 100, label=1), Article("b", "three", label=0), Article("c", "four " * 200)]
    return DistillationTexts(by_length, tokenizer, articles, np.array([1, 0, 0]), 64, 0.0, 7)


def test_targets_are_the_teachers_and_half_the_labels(epoch_texts, monkeypatch):
    drawn = []
    monkeypatch.setattr(distillation, "passage", lambda article, rng: drawn.append(passage(article, rng)) or drawn[-1])
    lengths = epoch_texts.start_epoch(0)
    assert len(epoch_texts) == len(lengths) == 3 * (1 + PASSAGES) and len(drawn) == 3 * PASSAGES
    rows = [epoch_texts[i] for i in range(len(epoch_texts))]
    assert [len(row["input_ids"]) for row in rows] == lengths.tolist()
    said = by_length(epoch_texts.articles)
    expected = [LABEL_SHARE + (1 - LABEL_SHARE) * said[0], (1 - LABEL_SHARE) * said[1], said[2], *by_length(drawn)]
    assert [row["labels"] for row in rows] == pytest.approx(expected)
    assert [row["input_ids"] for row in rows[3:]] == epoch_texts.encode(drawn)


def test_an_epoch_draws_the_same_passages_in_every_run_and_other_ones_than_the_next(epoch_texts):
    epoch_texts.start_epoch(0)
    first = list(epoch_texts.ids)
    epoch_texts.start_epoch(1)
    assert epoch_texts.ids[:3] == first[:3] and epoch_texts.ids[3:] != first[3:]
    epoch_texts.start_epoch(0)
    assert epoch_texts.ids == first


def test_passages_are_parts_of_the_article_that_begin_and_end_with_a_word():
    words = [f"word{i}" for i in range(400)]
    article, rng = Article("Title", " ".join(words), label=1), np.random.default_rng(0)
    drawn = [passage(article, rng) for _ in range(300)]
    assert all(each.title == "Title" and each.label == 1 for each in drawn)
    assert all(set(each.content.split(" ")) <= set(words) and each.content in article.content for each in drawn)
    starts = [article.content.index(each.content) for each in drawn]
    assert min(starts) < 200 and max(starts) > 2_000
    lengths = [len(each.content) for each in drawn]
    assert CUT_TO[0] - 10 <= min(lengths) < CUT_TO[0] + 20 and CUT_TO[1] - 20 < max(lengths) <= CUT_TO[1]
    unbroken = passage(Article("", "字" * 1_000), rng)
    assert CUT_TO[0] <= len(unbroken.content) <= CUT_TO[1]
    assert passage(Article("", "short"), rng).content == "short" and passage(Article("", ""), rng).content == ""


@pytest.mark.slow
def test_teachers_of_every_family_and_their_mean(classifiers, data_dir):
    articles = load_articles(data_dir / "test.jsonl")[:4]
    alone = [Scorer.load(directory).score(articles) for directory in classifiers.values()]
    assert load_teacher(list(classifiers.values()), 2, "fp32")(articles) == pytest.approx(
        np.mean(alone, axis=0), abs=1e-6
    )


@pytest.fixture(scope="module")
def teacher(trained):
    return trained / "tiny"


def test_a_teacher_reads_everything_in_full(classifiers, tmp_path, data_dir):
    """Whatever its benchmark recommends, and what its vocabulary would leave to another model."""
    articles = [*load_articles(data_dir / "test.jsonl")[:3], Article("ꙮꙮꙮ", "ꙮ" * 60)]
    expected = Scorer.load(classifiers["minilm"]).score(articles)
    copy = shutil.copytree(classifiers["minilm"], tmp_path / "teacher")
    write_contract(copy, replace(read_contract(copy), max_unknown=0.1))
    recommended = {"engine": "pytorch-fp32", "max_length": 8, "stages": [], "avg_ms": 1.0}
    (copy / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    assert Scorer.load(copy).score(articles)[-1] == 0 < expected.min()
    assert load_teacher([copy], 2, "fp32")(articles) == pytest.approx(expected, abs=1e-6)


def test_where_bf16_would_be_emulated_a_teacher_computes_in_fp32(classifiers, data_dir, monkeypatch):
    monkeypatch.setattr("prefilter_common.scoring.engines.interface.has_bf16", lambda *device: False)
    articles = load_articles(data_dir / "val.jsonl")
    found = (load_teacher([classifiers["minilm"]], 8, precision)(articles) for precision in ("bf16", "fp32"))
    np.testing.assert_array_equal(*found)


def test_only_the_teacher_is_heard_of_unlabelled_articles_and_labels_stay_hard(data_dir, tmp_path, classifiers):
    traffic = [{"title": f"Text {i}", "content": "wo " * i, "label": 1, "commerce_score": 9} for i in range(1, 4)]
    unlabelled = write_jsonl(tmp_path / "traffic.jsonl", traffic)
    middle = write_jsonl(tmp_path / "middle.jsonl", [{"title": "Both", "content": "one two", "commerce_score": 9}])
    tokenizer = ArticleTokenizer.of(load_checkpoint(classifiers["minilm"]).tokenizer)
    labels = labels_of(load_articles(data_dir / "train.jsonl"))
    data = load(Source(data_dir, None, None, False, None, [classifiers["minilm"]], unlabelled))
    assert data.targets.tolist() == [*labels, 0.5, 0.5, 0.5]
    assert len(load(Source(data_dir, 2, None, False, None, [classifiers["minilm"]], unlabelled)).targets) == 2 + 2
    texts = DistillationTexts(by_length, tokenizer, data.articles, data.targets, 64)
    assert texts.of_whole[-3:] == pytest.approx(by_length(data.articles[-3:]))
    assert texts.of_whole[:-3] == pytest.approx((labels + by_length(data.train)) / 2)
    data = load(Source(data_dir, None, None, False, middle, [classifiers["minilm"]], unlabelled))
    texts = DistillationTexts(by_length, tokenizer, data.articles, data.targets, 64)
    assert texts.of_whole[-4] == pytest.approx((1 / (1 + np.exp(-4)) + by_length(data.articles[-4:-3])[0]) / 2)


@pytest.mark.parametrize("role", ["soft_labels", "unlabelled"])
def test_what_train_has_is_not_trained_on_again_as_it_was_scored(data_dir, tmp_path, classifiers, caplog, role):
    caplog.set_level("INFO")
    train = [json.loads(line) for line in (data_dir / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    again = [{"title": row["title"].upper(), "content": row["content"], "commerce_score": 5} for row in train[:3]]
    path = write_jsonl(tmp_path / "more.jsonl", [*again, {"title": "New", "content": "one two", "commerce_score": 5}])
    source = Source(data_dir, 10, None, False, **{"soft_labels": None, role: path}, teacher=[classifiers["minilm"]])
    data = load(source)
    assert [article.title for article in data.articles[10:]] == ["New"] and len(data.targets) == 11
    assert caplog.messages[-1] == f"{path}: 3 articles are left out, since train.jsonl has them"


@pytest.fixture
def train(teacher, data_dir, one_thread):
    """Train a student; returns the exit code."""

    def run(output, *flags):
        return call(train_encoder, ["--teacher", teacher, "--data-dir", data_dir, "--output", output, *FLAGS, *flags])

    return run


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_student_is_a_plain_checkpoint_that_starts_from_the_teachers_layers(train, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(ProgressLog, "step_seconds", [0.5] * 4)
    unlabelled = write_jsonl(
        tmp_path / "traffic.jsonl", [{"title": f"Text {i}", "content": "wo " * i} for i in range(9)]
    )
    student = tmp_path / "student"
    assert train(student, "--unlabelled", unlabelled, "--learning-rate", "1e-12") == 0
    assert {path.name for path in student.iterdir()} == FILES
    model = AutoModelForSequenceClassification.from_pretrained(student)
    own = load_checkpoint(teacher).model
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 2  # one of the teacher's, and the mean's
    kept = own.bert.encoder.layer[0].state_dict()
    layer = model.bert.encoder.layer[0].state_dict()
    assert all(weight.allclose(kept[name], atol=1e-6) for name, weight in layer.items())
    run, metrics = read(student / "run.json"), read(student / "training_metrics.json")
    assert metrics["train_articles_per_second"] == 2 * 33 / 2  # each article once an epoch
    assert metrics["train_articles"] == 24 + 9 and metrics["steps"] == 2 * -(-33 * (1 + PASSAGES) // 16)
    assert run["base_model"]["name"] == str(teacher) and run["data"]["unlabelled"]["rows"] == 9
    assert [set(files) for files in run["teachers"]] == [{"config.json", "model.safetensors", "tokenizer.json",
                                                          "tokenizer_config.json"}]  # fmt: skip
    assert f"--teacher {teacher} --unlabelled {unlabelled} --layers 1" in run["repeat"]
    card = (student / "README.md").read_text(encoding="utf-8")
    assert "on 33 articles of\n`" in card and f" and `{unlabelled}` (sha256 `" in card


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta"])
def test_heads_read_the_mean_of_the_states_at_each_exit(classifiers, family):
    model = load_checkpoint(classifiers[family]).model
    with exit_heads(model):
        heads = model.exit_heads
        assert heads.places == (1,) and all((weight == 0).all() for weight in heads.parameters())
        heads.load_state_dict({name: torch.randn(weight.shape) for name, weight in heads.state_dict().items()})
        input_ids = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(0))
        attention_mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
        states = in_parts(model, heads.places)[0](input_ids=input_ids, attention_mask=attention_mask)[0]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "output_hidden_states": True}
        (logits,) = heads(model(**inputs).hidden_states, attention_mask)
        for row, n, one in zip(states, (9, 4, 1), logits, strict=True):
            torch.testing.assert_close(one, heads.heads[0](STATE_SCALE * row[:n].mean(0)))
    assert not any("exit_heads" in name for name in model.state_dict())


@pytest.mark.slow
def test_the_heads_learn_along_with_a_student_and_are_gone_from_it(train, teacher, tmp_path, monkeypatch):
    """Their loss is that of a coin at first, in the trainer's log, and their gradients reach the lowest layer, but not
    the embeddings.
    """
    curves, layers = [], []
    for weight in (0.0, 0.5):
        monkeypatch.setattr(fine_tuning, "HEAD_WEIGHT", weight)
        student = tmp_path / str(weight)
        assert train(student, "--learning-rate", "1e-3", "--warmup-ratio", 0) == 0
        curve = read(student / "training_metrics.json")["curve"]
        curves.append([entry["loss"] for entry in curve if "loss" in entry])
        weights = load_file(student / "model.safetensors")
        assert not any("exit_heads" in name for name in weights)
        layers.append(weights["bert.encoder.layer.0.output.dense.weight"])
    assert curves[1][0] - curves[0][0] == pytest.approx(0.5 * np.log(2), abs=1e-3)
    assert not torch.equal(*layers)
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(weights[name], load_file(teacher / "model.safetensors")[name])


@pytest.mark.slow
def test_a_student_agrees_with_its_teacher_where_the_labels_do_not(train, tmp_path, monkeypatch):
    """The teacher calls commerce what has one half of the words; of each half, half is labelled commerce."""
    rng = np.random.default_rng(0)
    words = np.array(["sale", "discount", "offer", "price", "buy", "minister", "court", "police", "city", "game"])

    def made(n):
        texts = [" ".join(rng.choice(words[5 * (i % 2) :][:5], 12)) for i in range(n)]
        return [{"title": text[:20], "content": text, "label": i // 2 % 2} for i, text in enumerate(texts)]

    def says(articles):
        return np.array([0.01 if set(article.content.split()) & set(words[5:]) else 0.99 for article in articles])

    for name, n in (("train", 48), ("val", 16), ("test", 32)):
        write_jsonl(tmp_path / f"{name}.jsonl", made(n))
    monkeypatch.setattr("prefilter_common.training.fine_tuning.load_teacher", lambda *_: says)
    monkeypatch.setattr("prefilter_common.training.compression.distillation.LABEL_SHARE", 0.0)
    flags = ["--data-dir", tmp_path, "--epochs", 4, "--max-train-samples", 48, "--allow-overlap"]
    flags += ["--learning-rate", "5e-3"]
    assert train(tmp_path / "m", *flags) == 0
    fresh = load_articles(tmp_path / "test.jsonl")
    agree = (Scorer.load(tmp_path / "m").score(fresh) > 0.5) == (says(fresh) > 0.5)
    assert agree.mean() > 0.8, agree.mean()


@pytest.mark.slow
def test_a_student_keeps_the_epoch_with_the_lowest_log_loss_whatever_its_f1(train, tmp_path, monkeypatch):
    epochs = iter([(0.9, 0.7), (0.5, 0.3), (0.6, 0.4), (0.7, 0.5)])

    def figures(_):
        f1, log_loss = next(epochs)
        return {"f1": f1, "log_loss": log_loss, "accuracy": 0.5, "precision": 0.5, "recall": 0.5}

    monkeypatch.setattr(fine_tuning, "epoch_figures", figures)
    assert train(tmp_path / "s", "--epochs", 9) == 0
    metrics = read(tmp_path / "s" / "training_metrics.json")
    assert metrics["best_epoch"] == 2 and metrics["epoch"] == 4  # two epochs were no better


@pytest.mark.slow
def test_a_stopped_student_continues_with_the_same_teacher_only(train, teacher, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    assert train(tmp_path / "whole", "--teacher", copy) == 0
    original = ProgressLog.on_step_begin

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 7:
            signal.raise_signal(signal.SIGTERM)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLog, "on_step_begin", stop)
    assert train(tmp_path / "m", "--teacher", copy) == 143
    monkeypatch.undo()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    # Moved, not written over: what is loaded may still be a view of the file.
    good = (copy / "model.safetensors").rename(tmp_path / "good")
    (copy / "model.safetensors").write_bytes(weights)
    assert train(tmp_path / "m", "--teacher", copy, "--resume") == 2
    assert "what the teachers say has changed; the base model has changed; restore" in capsys.readouterr().err
    good.replace(copy / "model.safetensors")
    contract = read_contract(copy)
    for change in ({"temperature": 9.0}, {"max_length": 12}):
        write_contract(copy, replace(contract, **change))
        assert train(tmp_path / "m", "--teacher", copy, "--resume") == 2
        assert "what the teachers say has changed; restore" in capsys.readouterr().err
    write_contract(copy, contract)
    assert train(tmp_path / "m", "--teacher", copy, "--resume") == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "whole"))
    assert one == other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unlabelled", "x.jsonl", "--teacher"], "expected at least one argument"),
        (["--layers", 3], "--layers 3: the base model has only 2"),
        (["--output", "{teacher}", "--overwrite"], "which would be lost; name another output"),
        (["--teacher", "nowhere"], "nowhere: "),
        (["--teacher", "{data_dir}"], "no config.json"),
        (["--unlabelled", "{data_dir}/test.jsonl"], "delete them, or pass --allow-overlap"),
        (["--model", "{qwen}"], "--layers needs a base model of one of the types"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_line_and_nothing_is_written(
    train, teacher, tmp_path, data_dir, tiny_models, capsys, flags, message
):
    places = {"teacher": teacher, "data_dir": data_dir, "qwen": tiny_models["qwen"]}
    before = {path: path.stat().st_mtime_ns for path in Path(teacher).iterdir()}
    assert train(tmp_path / "m", *[str(flag).format(**places) for flag in flags]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in Path(teacher).iterdir()} == before


@pytest.mark.parametrize("flag", ["--unlabelled", "--vocabulary-from", "--soft-labels"])
def test_overwrite_spares_what_the_run_reads(train, teacher, tmp_path, capsys, flag):
    before = shutil.copytree(teacher, tmp_path / "m")
    week = write_jsonl(before / "week.jsonl", [{"title": "a", "content": "b"}])
    assert train(tmp_path / "m", flag, week, "--overwrite") == 2
    assert f"m: contains {week}, which would be lost" in capsys.readouterr().err and week.exists()


def test_unlabelled_articles_need_a_teacher(tmp_path, data_dir, capsys):
    assert call(train_encoder, ["--unlabelled", data_dir / "test.jsonl", "--output", tmp_path / "m"]) == 2
    assert "--unlabelled needs --teacher" in capsys.readouterr().err
