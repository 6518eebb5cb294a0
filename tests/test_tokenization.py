"""Token ids are those of the model's own tokenizer, at every length."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from conftest import SPLITS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from prefilter_common.articles import Article, format_input, load_articles
from prefilter_common.models.packaged_encoder import packaged_encoder
from prefilter_common.scoring import tokenization
from prefilter_common.scoring.tokenization import ArticleTokenizer

pytestmark = pytest.mark.slow

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
        assert ours.encode(articles, n) == expected, n
        assert max(map(len, expected)) <= n


@pytest.mark.parametrize("family", FAMILIES)
def test_the_splits(tokenizers, family):
    articles = [article for name in ("train", "val", "test") for article in load_articles(SPLITS / f"{name}.jsonl")]
    assert_same(tokenizers[family], articles, [64, 511, 100_000])


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_texts_at_every_length(tokenizers, family):
    articles = [Article(title, content) for title, content in zip(ODD, ODD[::-1], strict=True)]
    assert_same(tokenizers[family], articles, range(FAMILIES[family] + 1, 60))
    assert_same(tokenizers[family], [Article(text, text) for text in LONG], [FAMILIES[family] + 1, 512, 4_000])


@pytest.mark.parametrize("family", FAMILIES)
@given(title=st.text(max_size=30), content=st.text(max_size=200), n=st.integers(1, 100))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# Text in which breaks are frequent, and beside them whatever could reach across: marks that combine or reorder, jamo
# and half-width marks that compose, controls that are deleted, several kinds of white space, contractions, specials.
PARTS = [
    *"aZé7 \n\t\r\u00a0\u3000\u2028'-_。，、！？字かガ각ไ",
    *"\u0301\u0323\u0345\uff9e\u1161\u11a8\u200d\ufe0f\u00ad\x00\x1f\u0600\u3164ﷺﬁ⑴Ⅷ㍿¨▁",
    " a", "a ", "  ", "'re", "<s>", "[SEP]", "<|endoftext|>", "👩\u200d👧", "ab" * 60,
]  # fmt: skip
TANGLED = st.one_of(st.lists(st.sampled_from(PARTS), max_size=40).map("".join), st.text(max_size=60))


def variants(tiny_models):
    """Name -> a tokenizer whose steps are those of a family that has no tiny model here."""
    from transformers import AutoTokenizer

    def backend(family):
        return Tokenizer.from_str(AutoTokenizer.from_pretrained(tiny_models[family]).backend_tokenizer.to_str())

    uncased, sentencepiece, joined, qwen = (backend(f) for f in ("distilbert", "minilm", "minilm", "qwen"))
    uncased.normalizer = normalizers.BertNormalizer(lowercase=True)
    sentencepiece.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    sentencepiece.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    joined.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    split = pre_tokenizers.Split(Regex(tokenization.QWEN_WORDS), "isolated")
    qwen.normalizer = normalizers.NFC()
    qwen.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    found = {"uncased": uncased, "sentencepiece": sentencepiece, "joined": joined, "qwen2": qwen}
    return {name: ArticleTokenizer(tokenizer, 0) for name, tokenizer in found.items()}


@pytest.fixture(scope="session")
def dividers(tokenizers, tiny_models):
    """Every kind of tokenizer whose texts are divided."""
    return {**{family: ours for family, (_, ours) in tokenizers.items()}, **variants(tiny_models)}


DIVIDERS = [*FAMILIES, "uncased", "sentencepiece", "joined", "qwen2"]


def assert_breaks_divide(ours, text):
    """At each break the tokens of the parts are those of the whole."""
    whole = ours._tokenizer.encode(text, add_special_tokens=False).ids
    end = len(text)
    while found := ours._breaks.match(text, 0, end):
        end = found.end()
        left, right = (ours._tokenizer.encode(part, add_special_tokens=False).ids for part in (text[:end], text[end:]))
        assert left + right == whole, (text[:end], text[end:])


@pytest.mark.parametrize("kind", DIVIDERS)
@given(text=TANGLED)
@example(text="a \u0301b 字。\u0323字")
@settings(max_examples=1_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_parts_of_a_text_divided_at_a_break_have_the_tokens_of_the_whole(dividers, kind, text):
    assert_breaks_divide(dividers[kind], text)


@pytest.mark.parametrize("family", FAMILIES)
@given(title=TANGLED, content=st.lists(TANGLED, max_size=8).map(" ".join), n=st.integers(1, 40))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_in_pieces_changes_nothing(tokenizers, family, title, content, n):
    theirs, ours = tokenizers[family]
    n += FAMILIES[family]
    expected = theirs(format_input(Article(title, content)), truncation=True, max_length=n)["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "CHARACTERS_PER_TOKEN", 1)
        assert ours.encode([Article(title, content)], n) == [expected]


def test_the_packaged_encoders_own_tokenizer():
    theirs = AutoTokenizer.from_pretrained(packaged_encoder())
    ours = ArticleTokenizer.of(theirs)

    @given(text=TANGLED)
    @settings(max_examples=150)
    def divided(text):
        assert_breaks_divide(ours, text)

    divided()
    articles = [a for name in ("train", "val", "test") for a in load_articles(SPLITS / f"{name}.jsonl")]
    joined = [Article(a.title, " ".join(b.content for b in articles[i : i + 40])) for i, a in enumerate(articles[::8])]
    assert_same((theirs, ours), articles + joined, [3, 64, 512])


@pytest.mark.parametrize(
    ("step", "value"),
    [
        ("pre_tokenizer", None),
        ("pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        ("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first")),
        ("pre_tokenizer", pre_tokenizers.Digits()),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)),
        ("normalizer", normalizers.Strip()),
        ("normalizer", normalizers.Replace("a", "")),
        ("added", AddedToken("two words")),
        ("added", AddedToken("<x>", rstrip=True)),
    ],
    ids=str,
)
def test_a_tokenizer_that_is_not_listed_reads_a_text_whole(tiny_models, step, value):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["minilm"]).backend_tokenizer
    if step == "added":
        tokenizer.add_tokens([value])
    else:
        setattr(tokenizer, step, value)
    assert ArticleTokenizer(tokenizer, 0)._breaks is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["word ", "a", " "])
def test_an_article_of_20_mb_takes_no_memory(tokenizers, family, part):
    """Before, 1 to 6 GB."""
    ours, process = tokenizers[family][1], psutil.Process()
    content = part * (20_000_000 // len(part))
    ours.encode([Article("warm", "up " * 50_000)])
    before = process.memory_info().rss
    peak = []
    tokenize = ours._tokenizer
    try:
        ours._tokenizer = Watched(tokenize, lambda: peak.append(process.memory_info().rss - before))
        ids = ours.encode([Article("", content)], 512)[0]
    finally:
        ours._tokenizer = tokenize
    assert len(ids) == 512 or not content.startswith("word")
    assert max(peak) < 200 * 2**20  # the text itself, and its copy after a title, are 20 MB each


class Watched:
    def __init__(self, tokenizer, look):
        self.tokenizer, self.look = tokenizer, look

    def encode_batch_fast(self, *args, **kwargs):
        found = self.tokenizer.encode_batch_fast(*args, **kwargs)
        self.look()
        return found


@pytest.mark.parametrize("family", FAMILIES)
def test_many_long_articles_are_tokenised_a_few_at_a_time(tokenizers, family, monkeypatch):
    ours = tokenizers[family][1]
    sizes = []
    watched = Watched(ours._tokenizer, None)
    watched.look = lambda: None
    monkeypatch.setattr(tokenization, "CHARACTERS_AT_ONCE", 10_000)

    def spy(texts, **kwargs):
        sizes.append(sum(map(len, texts)))
        return watched.tokenizer.encode_batch_fast(texts, **kwargs)

    watched.encode_batch_fast = spy
    monkeypatch.setattr(ours, "_tokenizer", watched)
    words = random.Random(0).choices(["one", "two", "three", "four"], k=20_000)
    assert {len(ids) for ids in ours.encode([Article("t", " ".join(words))] * 64, 32)} == {32}
    assert max(sizes) <= 10_000 and sum(sizes) < 64 * 32 * 20


def test_no_articles(tokenizers):
    assert tokenizers["minilm"][1].encode([]) == []
