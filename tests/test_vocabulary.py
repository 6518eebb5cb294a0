"""A model with fewer tokens scores what it knows exactly as before."""

import json

import numpy as np
import pytest
import torch
from conftest import call, write_jsonl
from transformers import AutoTokenizer, pipeline

import train_encoder
from prefilter_common.articles import Article, capped, load_articles
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_base_model, load_checkpoint
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.tokenization import ArticleTokenizer
from prefilter_common.training.compression.vocabulary import keep_tokens, script_of


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
    texts = [f"[TITLE] {a.title} [CONTENT] {a.content}" for a in [*load_articles(traffic), *train]]
    assert [own.tokenize(text) for text in texts] == [base.tokenize(text) for text in texts]
    assert len(own) < len(base)
    run = json.loads((tmp_path / "m" / "run.json").read_text(encoding="utf-8"))
    assert run["data"]["vocabulary_from"]["rows"] == 1
