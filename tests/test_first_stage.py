"""The linear first stage: what it learns, when it may decide, and what becomes of a file that is not its own."""

import hashlib
import logging
from dataclasses import replace

import numpy as np
import pytest

from prefilter_common.articles import Article, format_input, load_articles
from prefilter_common.benchmark.stages.cascade import Cascade, cascade_of, choose_cascade, store_cascade
from prefilter_common.benchmark.stages.first_stage import choose_first_stage, fit_first_stage, out_of_fold
from prefilter_common.benchmark.stages.soft_labels import folds, stories_of
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.models.directory import FIRST_STAGE_FILE, RECOMMENDATION_FILE, read_contract, write_contract
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.stages.first_stage import (
    TABLE_BITS,
    FirstStage,
    flattened,
    hashed,
    read_first_stage,
    sigmoid,
)
from prefilter_common.scoring.tokenization import ArticleTokenizer

NONE = np.empty(0), np.empty(0)  # no texts that it was fitted on
THRESHOLDS = {"default": 0.5, "high_precision": 0.8}
COMMERCE, JOURNALISM = range(100, 140), range(200, 240)  # tokens that only one of the two has


def texts_of(labels, rng, n_tokens=30, tokens=range(1000, 3000)):
    """Mostly tokens that say nothing, and three that give the label away."""
    return [
        [*rng.choice(COMMERCE if label else JOURNALISM, 3).tolist(), *rng.choice(tokens, n_tokens).tolist()]
        for label in labels
    ]


@pytest.fixture(scope="module")
def first():
    labels = np.arange(2000) % 2
    return fit_first_stage(texts_of(labels, np.random.default_rng(0)), np.where(labels == 1, 0.9, 0.1))


def test_a_feature_is_a_token_or_a_pair_and_counts_once_in_a_text():
    one, two = hashed(*flattened([[7, 8, 7, 8]])), hashed(*flattened([[7, 8], [8, 7]]))
    assert len(one[0]) == 4  # 7, 8, (7, 8), (8, 7)
    assert set(one[0]) == set(two[0]) and two[1].tolist() == [0, 0, 0, 1, 1, 1]  # no pair across two texts
    expected = (1 << TABLE_BITS) * (1 - np.exp(-199_999 / (1 << TABLE_BITS)))  # as many as a random function leaves
    for ids in (np.arange(100_000), np.random.default_rng(0).permutation(250_000)[:100_000]):
        assert len(hashed(*flattened([ids.tolist()]))[0]) > 0.99 * expected


def test_together_as_alone(first):
    texts = [*texts_of([0, 1, 1], np.random.default_rng(1)), [], [5]]
    together = first(texts)
    alone = [np.concatenate(part) for part in zip(*(first([text]) for text in texts), strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert together[0][3] == first.bias and together[1][3] == 0  # an empty text


def test_it_learns_the_scores_it_is_given_not_only_the_labels(first):
    labels = np.arange(400) % 2
    texts = texts_of(labels, np.random.default_rng(2))
    scores = sigmoid(first(texts)[0])
    assert ((scores >= 0.5) == labels).mean() > 0.99
    surer = fit_first_stage(texts, np.where(labels == 1, 0.999, 0.001))
    unsure = fit_first_stage(texts, np.where(labels == 1, 0.7, 0.3))
    spread = [np.abs(model(texts)[0]).mean() for model in (unsure, surer)]
    assert spread[0] < np.log(7 / 3) * 1.1 and spread[1] > 2 * spread[0]


def test_coverage_is_the_share_of_the_tokens_that_it_was_fitted_on(first):
    known = texts_of([0], np.random.default_rng(3), 17)[0]
    strange = list(range(5000, 5020))
    beyond = [10**9] * 20
    _, coverage = first([known, known + strange, strange, beyond])
    np.testing.assert_allclose(coverage, [1, 0.5, 0, 0])


FORMAT = [7, 8, 9, 7, 8, 10]  # in every text that is fitted


def test_the_words_of_the_input_format_tell_nothing_of_the_language():
    """They are always known, and would outweigh a title."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    texts = [[*FORMAT, *text] for text in texts_of(labels, rng)]
    first = fit_first_stage(texts, np.where(labels == 1, 0.9, 0.1), FORMAT)
    known, strange = texts[0][6:9], [5000, 5001, 5002]
    asked = [[*FORMAT, *strange], [*FORMAT, *known, *strange], [*FORMAT, *known], FORMAT]
    np.testing.assert_allclose(first(asked)[1], [0, 0.5, 1, 0])
    np.testing.assert_array_equal(first(asked)[0], fit_first_stage(texts, np.where(labels == 1, 0.9, 0.1))(asked)[0])
    _, coverage = out_of_fold([[*FORMAT, 1000 + i] for i in range(9)], np.linspace(0, 1, 9), np.arange(9), FORMAT)
    assert (coverage == 0).all()


def validation(first, rng, n=200, hard=0.2):
    """Labels, texts, and the full read's scores, which are right; what gives a hard text away is missing."""
    labels = np.arange(n) % 2
    texts = [*texts_of(labels, rng), *texts_of(labels, rng, 8)]
    texts = [text[3:] if rng.random() < hard else text for text in texts]
    return labels, texts, np.where(np.concatenate([labels, labels]) == 1, 0.98, 0.02)


def test_what_it_may_decide(first):
    labels, texts, full = validation(first, np.random.default_rng(4))
    stage, note = choose_first_stage(first, texts, labels, full, NONE, THRESHOLDS, 0.001)
    assert stage.reader == "linear" and stage.low < 0.5 and stage.high > 0.8
    assert stage.sha256 == hashlib.sha256(first.content()).hexdigest()
    assert 0.5 < note["decided"] < 0.85 and 0.1 < note["decided_cut"] < 0.9
    scores = sigmoid(first(texts)[0] / stage.temperature)
    decided = (scores <= stage.low) | (scores >= stage.high)
    assert ((scores[decided] >= 0.5) == (full[decided] >= 0.5)).all()


def test_it_is_calibrated_before_it_decides_and_a_tenth_of_the_texts_is_not_known_well_enough(first):
    labels, texts, full = validation(first, np.random.default_rng(4))
    texts = [[*text, *range(5000, 5000 + i % 7)] for i, text in enumerate(texts)]
    stage, note = choose_first_stage(first, texts, labels, full, NONE, THRESHOLDS, 0.001)
    assert stage.coverage == pytest.approx(np.quantile(first(texts)[1], 0.1), abs=1e-4) and stage.coverage < 1
    sure = replace(first, weights=4 * first.weights, bias=4 * first.bias)
    other, other_note = choose_first_stage(sure, texts, labels, full, NONE, THRESHOLDS, 0.001)
    assert other.temperature == pytest.approx(4 * stage.temperature, rel=0.01) and other_note == note


def test_it_decides_the_cut_copies_as_the_full_read_does_too(first):
    labels, texts, full = validation(first, np.random.default_rng(5), hard=0.0)
    assert choose_first_stage(first, texts, labels, full, NONE, THRESHOLDS, 0.001)[0] is not None
    swapped = texts[:200] + [texts[200 + (i ^ 1)] for i in range(200)]  # the copies say the opposite
    assert choose_first_stage(first, swapped, labels, full, NONE, THRESHOLDS, 0.001)[0] is None


def test_what_it_gets_wrong_of_articles_that_it_was_not_fitted_on_moves_the_limit(first):
    labels, texts, full = validation(first, np.random.default_rng(5), hard=0.0)
    stage, _ = choose_first_stage(first, texts, labels, full, NONE, THRESHOLDS, 0.001)
    wrong = np.full(5, -8.0), np.ones(5)  # sure that they are journalism, where the full read says commerce
    both = np.concatenate([full, np.full(5, 0.98)])
    other, _ = choose_first_stage(first, texts, labels, both, wrong, THRESHOLDS, 0.001)
    assert other.low < sigmoid(-8.0 / stage.temperature) < stage.low and other.high == stage.high
    unknown = wrong[0], np.zeros(5)  # it may not decide them
    assert choose_first_stage(first, texts, labels, both, unknown, THRESHOLDS, 0.001)[0] == stage


def test_no_text_is_judged_by_a_first_stage_that_saw_it_or_its_copy():
    """One token for each article: known only where the article was fitted on."""
    texts = [[i] * 20 for i in range(30)] * 2
    log_odds, coverage = out_of_fold(texts, np.tile([0.1, 0.9], 30), np.tile(np.arange(30), 2))
    assert (coverage == 0).all() and np.abs(log_odds).max() < 0.1


def test_articles_with_the_same_title_are_one_story():
    articles = [Article("a", "1"), Article("", "2"), Article("b", "3"), Article("", "4"), Article("a", "5")]
    stories = stories_of(articles)
    assert stories[0] == stories[4] and len(set(stories.tolist())) == 4
    for others, these in folds(stories):
        assert not set(stories[others]) & set(stories[these])


def test_one_that_decides_too_little_or_knows_nothing_is_not_kept(first):
    labels, texts, full = validation(first, np.random.default_rng(6), hard=0.95)
    stage, note = choose_first_stage(first, texts, labels, full, NONE, THRESHOLDS, 0.001)
    assert stage is None and "less than 10%" in note["reason"]
    wrong = replace(first, weights=-first.weights, bias=-first.bias)
    labels, texts, full = validation(first, np.random.default_rng(7), hard=0.0)
    assert choose_first_stage(wrong, texts, labels, full, NONE, THRESHOLDS, 0.001)[0] is None
    for few, their_labels in ((200, np.ones(200, int)), (15, labels[:15])):
        note = choose_first_stage(first, texts[: 2 * few], their_labels, full[: 2 * few], NONE, THRESHOLDS, 0.001)[1]
        assert "20 validation articles with both labels" in note["reason"]


def test_another_language_goes_on(first):
    """It shares with those that were fitted only what gives the label away, which alone would decide."""
    labels, texts, full = validation(first, np.random.default_rng(8), hard=0.0)
    stage, _ = choose_first_stage(first, texts, labels, full, NONE, THRESHOLDS, 0.001)
    other = texts_of(labels, np.random.default_rng(9), 8, tokens=range(5000, 7000))
    log_odds, coverage = first(other)
    scores = sigmoid(log_odds / stage.temperature)
    assert ((scores <= stage.low) | (scores >= stage.high)).mean() > 0.9 and (coverage < stage.coverage).all()


class StubEngine:
    """Log-odds 0, and the rows that it was given."""

    name, precision, width_step, places = "stub", "fp32", 1, ()

    def __init__(self):
        self.rows = []

    def __call__(self, input_ids, attention_mask):
        self.rows += [tuple(ids[mask == 1]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return np.zeros(len(input_ids))


@pytest.fixture(scope="module")
def tokenizer(classifiers):
    return ArticleTokenizer.of(load_checkpoint(classifiers["minilm"]).tokenizer)


@pytest.fixture(scope="module")
def articles(data_dir):
    return load_articles(data_dir / "train.jsonl")


@pytest.fixture
def scorer(tokenizer, articles):
    """With a first stage that is fitted on half of the articles, and may decide what it is sure of."""
    half = articles[::2]
    own = [tokenizer.own(ids) for ids in tokenizer.encode(half, 64)]
    scorer = Scorer(StubEngine(), tokenizer, Contract(max_length=64))
    scorer.first_stage = fit_first_stage(own, np.array([0.99 if a.label else 0.01 for a in half]))
    stage = Stage("linear", 0.8, 0.1, 0.9, coverage=0.5, sha256="0" * 64)
    return scorer.reading(stages=[stage])


def test_no_forward_pass_for_what_the_first_stage_decides(scorer, articles):
    scores, decided_by = scorer.decide(articles, batch_size=5)
    assert 10 < (decided_by == 0).sum() < len(articles)
    encodings = scorer.tokenize(articles)
    assert sorted(map(tuple, scorer.engine.rows)) == sorted(tuple(encodings[i]) for i in np.flatnonzero(decided_by))
    assert (scores[decided_by == 1] == 0.5).all()
    first = sigmoid(scorer.first_stage([ids[1:-1] for ids in encodings])[0] / 0.8)  # without <s> and </s>
    np.testing.assert_allclose(scores[decided_by == 0], first[decided_by == 0])
    scorer.engine.rows.clear()
    for article, score, by in zip(articles, scores, decided_by, strict=True):
        assert scorer.is_commerce(article) == (score >= 0.5)
        assert len(scorer.engine.rows) == by
        scorer.engine.rows.clear()


def test_first_stage_then_short_read_then_full_read(scorer, articles):
    linear = scorer.contract.stages[0]
    cascade = scorer.reading(stages=[linear, Stage("encoder", 1.0, 0.4, 0.6, max_length=20)])  # always unsure
    scores, decided_by = cascade.decide(articles)
    before = (decided_by == 0).sum()
    assert (decided_by == 2).sum() == len(articles) - before  # all have more than 20 tokens
    assert [len(row) for row in scorer.engine.rows[: len(articles) - before]] == [20] * (len(articles) - before)
    assert len(scorer.engine.rows) == 2 * (len(articles) - before)
    np.testing.assert_array_equal(scores, scorer.score(articles))
    _, _, seconds = cascade.read(cascade.tokenize(articles))
    assert seconds.shape == (3,) and (seconds > 0).all()
    sure = scorer.reading(stages=[Stage("linear", 1.0, 0.5, 0.5, coverage=0.0, sha256="")])
    assert sure.read(sure.tokenize(articles))[2][1] == 0  # nothing was left


def stored(folder, first):
    """A model directory's contract and file; returns the stages."""
    content = first.content()
    (folder / FIRST_STAGE_FILE).write_bytes(content)
    stage = Stage("linear", 1.0, 0.1, 0.9, coverage=0.5, sha256=hashlib.sha256(content).hexdigest())
    write_contract(folder, Contract(stages=(stage,)))
    return (stage,)


def test_there_and_back(tmp_path, first):
    stages = stored(tmp_path, first)
    texts = texts_of([0, 1], np.random.default_rng(10))
    np.testing.assert_array_equal(read_first_stage(tmp_path, stages)(texts), first(texts))
    assert read_first_stage(tmp_path, ()) is None
    assert (tmp_path / FIRST_STAGE_FILE).stat().st_size < 1 << 20


def test_in_the_file_of_an_earlier_version_every_token_counts(tmp_path):
    """Its limit was chosen so."""
    first = fit_first_stage([[*FORMAT, 20, 30], [*FORMAT, 21, 31]], np.array([0.9, 0.1]), FORMAT)
    text = [[*FORMAT, 20, 99]]
    assert read_first_stage(tmp_path, stored(tmp_path, first))(text)[1] == 0.5
    arrays = {key: getattr(first, key) for key in ("weights", "squares", "known", "bias")}
    np.savez_compressed(tmp_path / FIRST_STAGE_FILE, **arrays)
    sha256 = hashlib.sha256((tmp_path / FIRST_STAGE_FILE).read_bytes()).hexdigest()
    (stage,) = read_contract(tmp_path).stages
    assert read_first_stage(tmp_path, [replace(stage, sha256=sha256)])(text)[1] == 7 / 8


OTHER = FirstStage(*np.zeros((2, 1 << TABLE_BITS)), np.zeros(3, bool), 0.0)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage, "not the file that the benchmark made"),
        (
            lambda path: path.write_bytes(OTHER.content()),
            "not the",
        ),
        (lambda path: path.unlink(), "No such file"),
    ],
    ids=["damaged", "another model's", "missing"],
)
def test_a_file_that_is_not_its_own_is_skipped_with_one_warning(tmp_path, first, caplog, change, words):
    stages = stored(tmp_path, first)
    change(tmp_path / FIRST_STAGE_FILE)
    assert read_first_stage(tmp_path, stages) is None
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert words in record.getMessage() and "first_stage.npz: the first stage is skipped" in record.getMessage()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", bytes(1000)])
def test_a_file_of_another_format_is_skipped_even_with_its_hash(tmp_path, content):
    (tmp_path / FIRST_STAGE_FILE).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    assert read_first_stage(tmp_path, [Stage("linear", 1.0, 0.1, 0.9, coverage=0.5, sha256=sha256)]) is None


class OneToken(StubEngine):
    """Commerce is what has one token, wherever that is."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, attention_mask):
        return np.where((input_ids == self.token).any(1), 4.0, -4.0)


def a_word(tokenizer, articles):
    """One of the articles, its last token, and the words that do not have that token."""
    words = sorted({word for article in articles for word in article.content.split() if word.isalpha()})
    own = [tokenizer.own(ids) for ids in tokenizer.encode([Article("", word) for word in words])]
    marker, token = next((word, ids[-1]) for word, ids in zip(words, own, strict=True) if ids[-1] not in own[0])
    return marker, token, [word for word, ids in zip(words, own, strict=True) if token not in ids]


def test_a_short_read_is_tried_on_no_more_tokens_than_it_reads(tokenizer, articles):
    """What tells commerce comes only after the first 48 tokens, the shortest read that is tried."""
    marker, token, (filler, *_) = a_word(tokenizer, articles)
    scorer = Scorer(OneToken(token), tokenizer, Contract(max_length=64))
    enough = next(n for n in range(99) if len(scorer.tokenize([Article("", " ".join([filler] * n))])[0]) > 50)

    def made(before):
        return [Article("", " ".join([filler] * before + [marker] * (i % 2) + [filler] * 40), i % 2) for i in range(80)]

    assert [stage.max_length for stage in choose_cascade(scorer, made(0), [], 16, 0.01).stages] == [48]
    late = made(enough)
    assert [token in ids for ids in scorer.tokenize(late)] == [False, True] * 40
    assert choose_cascade(scorer, late, [], 16, 0.01).stages == ()


@pytest.mark.parametrize("read", [None, Stage("encoder", 1.0, 0.1, 0.9, max_length=48)])
def test_a_first_stage_may_change_what_a_short_read_leaves(tokenizer, articles, monkeypatch, read):
    shares = {}

    def choose(name, stage):
        def chosen(*arguments):
            shares[name] = arguments[-1]
            return stage, {}

        return chosen

    cascade = "prefilter_common.benchmark.stages.cascade"
    monkeypatch.setattr(f"{cascade}.choose_short_read", choose("read", read))
    monkeypatch.setattr(f"{cascade}.choose_first_stage", choose("first", None))
    scorer = Scorer(OneToken(5), tokenizer, Contract(max_length=64))
    labelled = [replace(article, label=i % 2) for i, article in enumerate(articles)]
    choose_cascade(scorer, labelled, articles, 16, 0.03)
    assert shares == pytest.approx({"read": 0.01 / 4, "first": 0.01 / 4 if read else 0.01 / 2})


def test_a_cascade_reads_no_more_texts_than_it_needs(tokenizer, articles, monkeypatch):
    """And a short read is calibrated at its own length, whatever the temperature of the full one."""
    module, given = "prefilter_common.benchmark.stages.cascade", {}

    def choose(labels, full, short, *rest):
        given.update(full=full, short=short)
        return None, {}

    monkeypatch.setattr(f"{module}.choose_short_read", choose)
    monkeypatch.setattr(f"{module}.MAX_FITTING", 20)
    monkeypatch.setattr(f"{module}.MAX_CHOOSING", 10)
    _, token, _ = a_word(tokenizer, articles)
    scorer = Scorer(OneToken(token), tokenizer, Contract(max_length=64, temperature=2.0))
    cascade = choose_cascade(scorer, articles, articles, 16, 0.03)
    assert cascade.notes["first stage"]["fitted_texts"] == 40
    assert len(given["full"]) == len(given["short"][48]) == 2 * len(articles) + 10
    assert {*given["full"].round(4)} == {*sigmoid(np.array([-2.0, 2.0])).round(4)}
    assert {*given["short"][48].round(4)} <= {*sigmoid(np.array([-4.0, 4.0])).round(4)}
    one_story = [replace(article, title="the same") for article in articles]
    assert "too few articles" in choose_cascade(scorer, articles, one_story, 16, 0.03).notes["first stage"]["reason"]


def test_the_cascade_of_a_model_that_is_as_simple(tmp_path, tokenizer, articles):
    """The first stage learns what that looks for from articles without labels."""
    marker, token, others = a_word(tokenizer, articles)
    rng = np.random.default_rng(0)

    def made(n, labelled):
        labels = np.arange(n) % 2
        texts = [" ".join([marker] * label + rng.choice(others, 15).tolist()) for label in labels]
        return [
            Article("", text, label if labelled else None) for text, label in zip(texts, labels.tolist(), strict=True)
        ]

    scorer = Scorer(OneToken(token), tokenizer, Contract(max_length=64))
    val = made(200, True)
    cascade = choose_cascade(scorer, val, made(1200, False), 16, 0.01)
    assert cascade.stages[0].reader == "linear" and cascade.notes["first stage"]["fitted_texts"] == 2400
    assert cascade.notes["first stage"]["decided"] > 0.5
    assert [cascade.full[format_input(a)] for a in val] == scorer.score(val).tolist()
    none = choose_cascade(scorer, val, [], 16, 0.01)
    assert none.stages == cascade.stages[1:] and not none.files
    assert none.notes["first stage"]["reason"].endswith("pass --train-data or --traffic")

    store_cascade(tmp_path, cascade)
    assert list(tmp_path.iterdir()) == []  # a directory of the earlier scripts has no contract
    write_contract(tmp_path, Contract(max_length=64))
    recommended = tmp_path / RECOMMENDATION_FILE
    recommended.write_text("{}")
    store_cascade(tmp_path, cascade)
    assert not recommended.exists()  # it was measured with other limits
    recommended.write_text("{}")
    assert read_contract(tmp_path).stages == cascade.stages
    (nothing,) = tokenizer.encode([Article("", "")])
    assert read_first_stage(tmp_path, cascade.stages)([tokenizer.own(nothing)])[1] == 0
    kept = cascade_of(tmp_path, scorer, None, [], 16, 0.01)
    assert kept == Cascade(cascade.stages, {})
    store_cascade(tmp_path, kept)
    assert (tmp_path / FIRST_STAGE_FILE).is_file() and recommended.exists()
    damage(tmp_path / FIRST_STAGE_FILE)
    assert cascade_of(tmp_path, scorer, None, [], 16, 0.01).stages == cascade.stages[1:]
    store_cascade(tmp_path, none)
    assert read_contract(tmp_path).stages == none.stages and not (tmp_path / FIRST_STAGE_FILE).exists()
