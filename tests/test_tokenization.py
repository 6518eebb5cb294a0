"""Token ids are those of the model's own tokenizer, at every length."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import SPLITS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefilter_common.articles import Article, format_input, load_articles
from prefilter_common.tokenization import ArticleTokenizer

FAMILIES = {"distilbert": 2, "minilm": 2, "xlm-roberta": 2, "qwen": 0}  # and how many special tokens each adds
ODD = [
    "",
    " ",
    "\n\t\r\x00\x07\x1b\x7f\x85\u2028",
    "\u200b\ufeff\u202e\u2066abc\u2069",
    "e\u0301\u0302\u0323" * 50,
    "👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽",
    "<s> </s> <pad> [SEP] [PAD] [CLS] <|endoftext|> <unk>",
    "नमस्ते ទឹក שָׁלוֹם ﷽ ﬁ Ⅷ ㍿ 漢字",
    "\U0010ffff\ue000\ufffd",
]
LONG = ["a" * 5_000, "word " * 5_000, "漢" * 3_000]


@pytest.fixture(scope="session")
def tokenizers(tiny_models):
    """Family -> the tokenizer that transformers loads and the one that is made of it."""
    loaded = {family: AutoTokenizer.from_pretrained(tiny_models[family]) for family in FAMILIES}
    for tokenizer in loaded.values():
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return {family: (tokenizer, ArticleTokenizer.of(tokenizer)) for family, tokenizer in loaded.items()}


def assert_same(pair, articles, lengths):
    theirs, ours = pair
    whole = ours.encode(articles)
    texts = [format_input(article) for article in articles]
    for n in lengths:
        expected = theirs(texts, truncation=True, max_length=n)["input_ids"]
        assert [ours.cut(ids, n) for ids in whole] == expected, n
        assert max(map(len, expected)) <= n


@pytest.mark.parametrize("family", FAMILIES)
def test_the_splits(tokenizers, family):
    articles = [article for name in ("train", "val", "test") for article in load_articles(SPLITS / f"{name}.jsonl")]
    first = FAMILIES[family] + 1
    assert_same(tokenizers[family], articles, [first, first + 1, 16, 64, 511, 100_000])


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_texts_at_every_length(tokenizers, family):
    articles = [Article(title, content) for title, content in zip(ODD, ODD[::-1], strict=True)]
    assert_same(tokenizers[family], articles, range(FAMILIES[family] + 1, 60))
    assert_same(tokenizers[family], [Article(text, text) for text in LONG], [FAMILIES[family] + 1, 512, 4_000])


@pytest.mark.parametrize("family", FAMILIES)
@given(title=st.text(max_size=30), content=st.text(max_size=200), n=st.integers(1, 100))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(tokenizers, family, title, content, n):
    assert_same(tokenizers[family], [Article(title, content)], [n + FAMILIES[family]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_special_token_stays(tokenizers, family):
    theirs, ours = tokenizers[family]
    ids = ours.encode([Article("a", "b " * 100)])[0]
    for n in (FAMILIES[family] + 1, 20):
        cut = ours.cut(ids, n)
        assert len(cut) == n and (cut[-1] == theirs.sep_token_id) == (FAMILIES[family] > 0)
    assert ours.cut(ids, len(ids)) == ids == ours.cut(ids, 10_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding(tokenizers, family):
    theirs, ours = tokenizers[family]
    texts = [Article("", ""), Article("a b c", "d e f " * 9), Article("x", "")]
    input_ids, attention_mask = ours.pad(ours.encode(texts))
    expected = theirs([format_input(t) for t in texts], padding=True, padding_side="right", return_tensors="np")
    assert input_ids.tolist() == expected["input_ids"].tolist() and input_ids.dtype == "int64"
    assert attention_mask.tolist() == expected["attention_mask"].tolist() and attention_mask.dtype == "int64"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_that_it_is_made_of_keeps_its_settings(tiny_models, tmp_path, family):
    theirs = AutoTokenizer.from_pretrained(tiny_models[family])
    theirs.backend_tokenizer.enable_truncation(7)
    theirs.pad_token = theirs.pad_token or theirs.eos_token
    ours = ArticleTokenizer.of(theirs)
    assert len(ours.encode([Article("", "word " * 100)])[0]) > 100
    assert theirs.backend_tokenizer.truncation["max_length"] == 7
    ours.save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None


def test_saving_after_scoring_writes_no_truncation(tokenizers, tmp_path):
    theirs, ours = tokenizers["minilm"]
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    before = theirs.backend_tokenizer.to_str()
    ours.pad([ours.cut(ids, 9) for ids in ours.encode([Article("a", "b " * 50)])])
    assert theirs.backend_tokenizer.to_str() == before
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None


def test_threads_that_read_to_different_lengths(tokenizers):
    _, ours = tokenizers["minilm"]
    articles = [Article(str(i), "word " * i) for i in range(200)]
    expected = {n: [ours.cut(ids, n) for ids in ours.encode(articles)] for n in (8, 64)}

    def one(i):
        n = (8, 64)[i % 2]
        return [ours.cut(ids, n) for ids in ours.encode(articles)] == expected[n]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(20)))
