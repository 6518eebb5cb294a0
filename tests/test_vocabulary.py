"""A model with fewer tokens scores what it knows exactly as before."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SPLITS, call, write_jsonl
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, pipeline

import train_encoder
from prefilter_common.articles import Article, capped, load_articles
from prefilter_common.benchmark.stages.cascade import choose_cascade
from prefilter_common.errors import InputError
from prefilter_common.evaluation.results import evaluation_warnings
from prefilter_common.evaluation.run import Data, Options, evaluate
from prefilter_common.models import bundle
from prefilter_common.models.checkpoints import load_base_model, load_checkpoint
from prefilter_common.models.contract import Stage
from prefilter_common.models.directory import read_contract, write_contract
from prefilter_common.scoring import streaming
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import REFERENCE, EngineName
from prefilter_common.scoring.rows import Run
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.tokenization import ArticleTokenizer
from prefilter_common.training.compression.vocabulary import keep_tokens, script_of
from prefilter_common.training.run import calibrate, uncalibrated_scores


@pytest.fixture(params=["distilbert", "minilm", "xlm-roberta"])
def checkpoint(request, tiny_models):
    return load_base_model(str(tiny_models[request.param]), max_length=64, seed=1)


def test_texts_of_kept_tokens_get_the_same_scores(checkpoint, data_dir, tmp_path):
    articles = load_articles(data_dir / "train.jsonl")
    seen, more = articles[:30], articles[30:]
    tokenizer = ArticleTokenizer.of(checkpoint.tokenizer)
    needed = {token for ids in tokenizer.encode(seen) for token in ids}
    before, count = Scorer.of(checkpoint, "cpu").score(articles), len(checkpoint.tokenizer)
    known = np.array([set(ids) <= needed for ids in tokenizer.encode(articles, 64)])
    assert known[:30].all()
    small = keep_tokens(checkpoint, needed)
    assert len(small.tokenizer) == small.model.config.vocab_size < count
    assert (small.tokenizer.model_max_length, small.tokenizer.padding_side) == (64, "right")
    after = Scorer.of(small, "cpu").score(articles)
    assert (after[known] == before[known]).all()
    small.save(tmp_path / "m")
    again = load_checkpoint(tmp_path / "m")
    assert np.abs(Scorer.of(again, "cpu").score(articles) - after).max() < 1e-6
    unknown = again.tokenizer.unk_token_id
    share = [np.mean(np.array(ids) == unknown) for ids in ArticleTokenizer.of(again.tokenizer).encode(more)]
    assert max(share) < 0.05  # shorter tokens stand in for those that are missing
    classify = pipeline("text-classification", model=str(tmp_path / "m"), truncation=True, device="cpu")
    assert classify("[TITLE] a [CONTENT] b")[0]["label"] in ("commerce", "journalism")


GREEK = Article("Νέα", "νέες προσφορές σήμερα με έκπτωση")
CHINESE = Article("新闻", "今天市政府宣布了新的交通计划")  # one unknown token


@pytest.fixture
def english(checkpoint, data_dir, tmp_path):
    """Directory of the model with the tokens of English articles alone."""
    articles = [a for a in load_articles(data_dir / "train.jsonl") if a.language == "en"]
    needed = {token for ids in ArticleTokenizer.of(checkpoint.tokenizer).encode(articles) for token in ids}
    checkpoint.save(tmp_path / "full")
    keep_tokens(checkpoint, needed).save(tmp_path / "english")
    return tmp_path / "english"


def test_what_it_cannot_read_is_for_the_full_model(english, data_dir):
    alone, full = Scorer.load(english), Scorer.load(english.parent / "full")
    known = load_articles(data_dir / "test.jsonl")[:3]
    if load_checkpoint(english).model.config.model_type != "distilbert":  # whose tokenizer leaves full-width letters
        known.append(Article("Ｈａｌｆ　ｐｒｉｃｅ", "ｔｏｄａｙ only"))
    articles = [GREEK, *known, CHINESE]
    scores = alone.score(articles, batch_size=1)
    assert scores[0] == scores[-1] == 0 and scores[1:-1].min() > 0
    assert not alone.is_commerce(GREEK)
    assert (scores[1:-1] == alone.score(known, batch_size=1)).all()
    both = Scorer.load(english, full=english.parent / "full").score(articles, batch_size=1)
    assert (both[1:-1] == scores[1:-1]).all()
    assert (both[[0, -1]] == full.score([GREEK, CHINESE], batch_size=1)).all() and both[[0, -1]].min() > 0


def test_the_full_model_runs_where_the_other_does(english, monkeypatch):
    opened, open_model = [], Scorer._open
    monkeypatch.setattr(Scorer, "_open", staticmethod(lambda *args: opened.append(args[2:]) or open_model(*args)))
    Scorer.load(english, "cpu", threads=1, full=english.parent / "full")
    assert opened == [("cpu", 1)] * 2


def test_a_model_that_reads_everything_loads_no_other(english, caplog):
    with caplog.at_level("INFO"):
        full = Scorer.load(english.parent / "full", full=english)
    assert full.full is None and f"full: has every token of its base model, and needs no {english}" in caplog.text


def test_each_score_is_compared_with_the_operating_point_of_its_own_model(english):
    """Both models' scores lie between 0 and 1, so that 0 and 1 as thresholds tell which of the two was asked."""
    known = Article("New offers today", "half price")
    for own, fulls in ((0.0, 1.0), (1.0, 0.0)):
        for directory, threshold in ((english, own), (english.parent / "full", fulls)):
            write_contract(directory, replace(read_contract(directory), thresholds={"default": 0.5, "x": threshold}))
        both = Scorer.load(english, full=english.parent / "full")
        assert both.classify([GREEK, known], "x")[1].tolist() == [fulls == 0, own == 0]
        assert both.is_commerce(GREEK, "x") == (fulls == 0)
        assert not Scorer.load(english).is_commerce(GREEK, "x")  # not even where everything that is read is
    write_contract(
        english.parent / "full", replace(read_contract(english.parent / "full"), thresholds={"default": 0.5})
    )
    with pytest.raises(InputError, match="no operating point 'x'; this model has default"):
        Scorer.load(english, full=english.parent / "full").classify([known], "x")


def test_a_model_trained_further_still_lacks_its_tokens(english):
    assert load_base_model(str(english), max_length=64, seed=1).contract.max_unknown == 0.3
    assert load_base_model(str(english.parent / "full"), max_length=64, seed=1).contract.max_unknown is None


def test_no_stage_decides_what_it_cannot_read(english):
    """Not even one that is always sure; and the full model is asked, whatever the reading."""
    for full in (None, english.parent / "full"):
        sure = Scorer.load(english, full=full).reading(64, [Stage("encoder", 1.0, 0.5, 0.5, 16)])
        expected = 0 if full is None else Scorer.load(full).score([GREEK])[0]
        long = Article("New offers today", "half price today " * 9)
        scores, decided_by = sure.decide([GREEK, long], batch_size=1)
        assert scores[0] == expected and decided_by.tolist() == [2, 0]


@pytest.mark.slow
def test_a_converted_model_that_was_packed_leaves_the_same_articles(english, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    full = Scorer.load(english.parent / "full")
    convert(english, EngineName("onnxruntime", "fp32"), None)
    recommended = {"engine": "onnxruntime-fp32", "max_length": 64, "stages": [], "avg_ms": 1.0}
    (english / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    assert call(bundle, [english, tmp_path / "m.tar"]) == 0
    assert call(bundle, ["--unpack", tmp_path / "m.tar", tmp_path / "there"]) == 0
    scorer = Scorer.load(tmp_path / "there", full=english.parent / "full")
    assert str(scorer.engine.name) == "onnxruntime-fp32" and not (tmp_path / "there" / "model.safetensors").exists()
    known = Article("New offers today", "half price")
    scores = scorer.score([GREEK, known])
    assert scores[0] == full.score([GREEK])[0]
    assert scores[1] == pytest.approx(Scorer.load(english, engine="pytorch-fp32").score([known])[0], abs=1e-5)


def test_training_calibrates_on_what_it_cannot_read_too(english, data_dir, tmp_path):
    """A commerce article of which it said 0 would make the temperature that of a model that errs with certainty."""
    checkpoint, val = load_checkpoint(english), load_articles(data_dir / "val.jsonl")
    val.append(replace(GREEK, label=1))
    assert uncalibrated_scores(checkpoint, val, 8).min() > 0
    assert calibrate(checkpoint, val, tmp_path, 8).contract.max_unknown == 0.3


def test_no_stage_is_chosen_or_fitted_on_what_it_cannot_read(english, data_dir):
    scorer = Scorer.load(english)
    articles = [a for a in load_articles(data_dir / "train.jsonl") if a.language == "en"][:24]
    unread = [replace(GREEK, label=i % 2) for i in range(20)]
    found, among = (choose_cascade(scorer, some, some, 8, 0.01) for some in (articles, [*unread, *articles]))
    assert among == found and found.notes["first stage"]["fitted_texts"] == 48
    assert choose_cascade(scorer, unread, unread, 8, 0.01).stages == ()


def test_a_log_line_says_what_becomes_of_them(english, caplog):
    caplog.set_level(logging.INFO)
    full, words = english.parent / "full", f"{english}: articles with over 30 % unknown characters are"
    Scorer.load(english)
    assert caplog.messages[-1] == f"{words} let through with a score of 0"
    Scorer.load(english, full=full)
    assert caplog.messages[-1] == f"{words} left to {full}"
    Scorer.load(full)
    assert "unknown" not in caplog.messages[-1]


def test_unknown_characters_are_counted_among_the_articles_own(english):
    """As the tokenizer normalises them, and not those of the input format, nor any that are not read."""
    tokenizer = Scorer.load(english).tokenizer

    def at(title, content, bound, max_length=64):
        return tokenizer.unknown([Article(title, content)], max_length, bound)[0]

    assert at("abcdef", "νέα", 0.33) and not at("abcdef", "νέα", 0.34)  # three of nine
    assert at("\u00a0\u2003abcdef\n", "\tνέα  ", 0.33) and not at(" abc  def ", "νέα", 0.34)
    assert at("Νέα", "", 0.99) and not at("", "", 0) and not at(" \n", "\u2003", 0)
    long = "today " * 40 + "σήμερα " * 40
    assert not at("offers", long, 0, max_length=32) and at("offers", long, 0.4, max_length=512)


def test_a_mark_that_a_normalizer_puts_in_place_of_white_space_is_known():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("a", -2.0)], unk_id=0))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert not ArticleTokenizer(tokenizer, 0).unknown([Article("a a", "a a a a a a a é")], 64, 0.3)[0]


def test_the_scoring_command_takes_a_full_model(english, tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "el", "title": GREEK.title, "content": GREEK.content}])
    full = tmp_path / "full"
    assert call(streaming, [english, source, tmp_path / "out.jsonl", "--full", full]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["score"] == pytest.approx(Scorer.load(full).score([GREEK])[0], abs=1e-6)
    kept = tmp_path / ".again.jsonl.partial"
    kept.mkdir()
    made = Run([Scorer.load(english)], source, "default", 16).made_with()
    (kept / "run.json").write_text(json.dumps(made))
    (kept / "rows.jsonl").write_text(json.dumps(row | {"score": 0.0}) + "\n")
    assert call(streaming, [english, source, tmp_path / "again.jsonl", "--full", full]) == 2
    assert "full engine was null" in capsys.readouterr().err
    assert call(streaming, [english, source, tmp_path / "more.jsonl", "--full", tmp_path / "none"]) == 2
    shadowed = [english, source, tmp_path / "both.jsonl", "--shadow", english, tmp_path / "differ.jsonl"]
    assert call(streaming, [*shadowed, "--full", full]) == 0
    row = json.loads((tmp_path / "both.jsonl").read_text())
    assert row["shadow_score"] == row["score"] > 0 and not (tmp_path / "differ.jsonl").read_text()
    assert "unread" not in row and json.loads(capsys.readouterr().out.splitlines()[-1])["unread"] == 0


def test_what_no_model_reads_is_said(english, tmp_path, capsys):
    known = {"title": "New offers today", "content": "half price"}
    source = write_jsonl(tmp_path / "in.jsonl", [known, {"title": GREEK.title, "content": GREEK.content}])
    assert call(streaming, [english, source, tmp_path / "out.jsonl"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["unread" in row for row in rows] == [False, True] and rows[1]["score"] == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["unread"] == 1
    assert "1 of 2 articles are in characters that it does not know; they are let through" in printed.err
    labelled = [Article("New offers today", "half price", 1), Article("News of today", "half", 0)]
    assert call(streaming, [english, source, tmp_path / "both.jsonl", "--full", english]) == 0
    assert (tmp_path / "both.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    assert f"characters that neither it nor {english} knows; they are let through\n" in capsys.readouterr().err
    options = Options(tmp_path, REFERENCE, 8, 1, 0.95, None, 0)
    model, _ = evaluate(english, Data(labelled, None, None, load_articles(source)), options)
    assert evaluation_warnings(None, None, {"m": model}, options)[0] == (
        "m reads 50.0% of the traffic articles; the rest, in characters unknown to it, score 0"
    )


def test_a_script_that_is_only_quoted_is_not_kept(checkpoint):
    tokenizer = ArticleTokenizer.of(checkpoint.tokenizer)
    articles = [*(a for a in load_articles(SPLITS / "train.jsonl") if a.language == "en"), Article("α", "β γ")]
    small = keep_tokens(checkpoint, {token for ids in tokenizer.encode(articles) for token in ids})
    greek = {p for p in small.tokenizer.get_vocab() for c in p if script_of(c) == "GREEK"}
    assert len(greek) <= 6
    tokenizer = ArticleTokenizer.of(small.tokenizer)
    assert tokenizer.unknown([GREEK, *articles], 64, 0.3).tolist() == [True, *[False] * len(articles)]


def test_scripts_that_were_not_seen_are_left_out(checkpoint):
    tokenizer = ArticleTokenizer.of(checkpoint.tokenizer)
    latin = {token for ids in tokenizer.encode([Article("abc", "def")]) for token in ids}
    small = keep_tokens(checkpoint, latin)
    pieces = [
        piece.strip("▁#") for piece in small.tokenizer.get_vocab() if piece not in small.tokenizer.all_special_tokens
    ]
    assert {script_of(character) for piece in pieces for character in piece} == {"LATIN", ""}
    assert "z" in pieces  # a single character, though no article has it
    both = [Article("a b", text * 9) for text in ("new offers today ", "νέες προσφορές σήμερα ")]
    english, greek = ArticleTokenizer.of(small.tokenizer).encode(both)
    unknown = small.tokenizer.unk_token_id
    assert english.count(unknown) == 0 and greek.count(unknown) > len(greek) / 4


def test_what_is_padded_stays_padded(checkpoint):
    """The embeddings of several families count positions from the padding token's id."""
    small = keep_tokens(checkpoint, ArticleTokenizer.of(checkpoint.tokenizer).encode([Article("a b c", "d e f")])[0])
    scorer = Scorer.of(small, "cpu")
    articles = [Article("a", "b"), Article("a b c", "d e f " * 8)]
    assert scorer.score(articles, batch_size=2) == pytest.approx([scorer.score([a])[0] for a in articles], abs=1e-5)
    assert small.tokenizer.pad_token_id == small.model.config.pad_token_id
    assert not torch.equal(*small.model.get_input_embeddings().weight[:2])


def test_byte_level_tokenizers_are_refused(tiny_models):
    with pytest.raises(InputError, match="only Unigram and WordPiece work with fewer tokens"):
        keep_tokens(load_base_model(str(tiny_models["qwen"]), max_length=64, seed=1), {1, 2})


@pytest.mark.slow
def test_the_command_keeps_the_tokens_of_all_its_articles(tiny_encoder, data_dir, tmp_path):
    traffic = write_jsonl(tmp_path / "traffic.jsonl", [{"title": "Εκπτώσεις", "content": "σήμερα"}])
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--max-train-samples", 12, "--max-val-samples", 8]
    flags += ["--epochs", 1, "--max-length", 64, "--vocabulary-from", traffic, "--output", tmp_path / "m"]
    assert call(train_encoder, flags) == 0
    own, base = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "m", tiny_encoder))
    train = capped(load_articles(data_dir / "train.jsonl"), 12)
    val = capped(load_articles(data_dir / "val.jsonl"), 8)
    texts = [f"[TITLE] {a.title} [CONTENT] {a.content}" for a in [*load_articles(traffic), *train, *val]]
    assert [own.tokenize(text) for text in texts] == [base.tokenize(text) for text in texts]
    assert len(own) < len(base)
    run, contract = (
        json.loads((tmp_path / "m" / f).read_text(encoding="utf-8")) for f in ("run.json", "prefilter.json")
    )
    assert contract["max_unknown"] == 0.3
    assert run["data"]["vocabulary_from"]["rows"] == 1
