"""Early exits: a model in parts, what each exit may decide, and what is run of the rest."""

import hashlib
import io
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import BertForSequenceClassification

from prefilter_common.articles import format_input, load_articles
from prefilter_common.benchmark.stages.cascade import Cascade, choose_cascade, store_cascade
from prefilter_common.benchmark.stages.early_exit import Exits, choose_exits, fit_exit, states_of
from prefilter_common.benchmark.stages.first_stage import decided_by_first
from prefilter_common.benchmark.stages.limits import changed_share
from prefilter_common.benchmark.stages.soft_labels import stories_of
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.models.directory import EARLY_EXITS_FILE, read_contract, write_contract
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName
from prefilter_common.scoring.engines.pytorch import TorchEngine
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.stages.early_exit import EarlyExit, exits_content, read_exits
from prefilter_common.scoring.tokenization import ArticleTokenizer

THRESHOLDS = {"default": 0.5}
WIDTH = 8


@pytest.fixture(scope="module")
def articles(data_dir):
    return load_articles(data_dir / "train.jsonl")


@pytest.fixture(scope="module")
def tokenizer(classifiers):
    return ArticleTokenizer.of(load_checkpoint(classifiers["minilm"]).tokenizer)


class PartsEngine:
    """After two and four layers the states of each token are its id's own numbers; the log-odds are 1. ``ran`` has the
    part and the articles of each call.
    """

    name, precision, width_step, places = "stub", "fp32", 1, (2, 4)

    def __init__(self):
        self.ran = []

    def __call__(self, input_ids, attention_mask):
        raise AssertionError("a cascade with exits runs the parts")

    def part(self, number, inputs, attention_mask):
        self.ran.append((number, len(inputs)))
        if number == 0:
            return np.stack([np.sin(inputs * (k + 1)) for k in range(WIDTH)], axis=2).astype(np.float32)
        return inputs if number == 1 else np.ones(len(inputs))


def an_exit(layers, low, high, temperature=1.0):
    return Stage("layers", temperature, low, high, sha256="0" * 64, layers=layers)


@pytest.fixture
def scorer(tokenizer):
    scorer = Scorer(PartsEngine(), tokenizer, Contract(max_length=64))
    rng = np.random.default_rng(0)
    scorer.exits = {n: EarlyExit(rng.normal(0, 8, WIDTH).astype(np.float32), 0.1) for n in (2, 4)}
    return scorer


def means_of(scorer, articles):
    """(n, WIDTH): of the states after any layers, one article at a time and without padding."""
    ids = [np.array([own]) for own in scorer.tokenize(articles)]
    return np.stack([PartsEngine().part(0, own, None)[0].astype(np.float64).mean(0) for own in ids])


def test_each_exit_decides_what_it_is_sure_of_and_the_full_read_the_rest(scorer, articles):
    means = means_of(scorer, articles)
    first, second = (expit((means @ scorer.exits[n].weights + 0.1) / n) for n in (2, 4))
    cascade = scorer.reading(stages=[an_exit(2, 0.2, 0.8, temperature=2.0), an_exit(4, 0.3, 0.7, temperature=4.0)])
    by_first = (first <= 0.2) | (first >= 0.8)
    by_second = ~by_first & ((second <= 0.3) | (second >= 0.7))
    rest = ~by_first & ~by_second
    assert min(by_first.sum(), by_second.sum(), rest.sum()) > 5
    expected = np.select([by_first, by_second], [first, second], expit(1.0))
    for batch_size in (1, 7, 100):
        cascade.engine.ran.clear()
        scores, decided_by = cascade.decide(articles, batch_size)
        np.testing.assert_allclose(scores, expected, rtol=1e-4)
        np.testing.assert_array_equal(decided_by, np.select([by_first, by_second], [0, 1], 2))
        ran = [sum(n for part, n in cascade.engine.ran if part == number) for number in range(3)]
        assert ran == [len(articles), (~by_first).sum(), rest.sum()]
    seconds = cascade.read(cascade.tokenize(articles))[2]
    assert seconds.shape == (3,) and (seconds > 0).all()


def test_an_engine_that_keeps_kernels_for_each_shape_sees_few_numbers_of_articles(scorer, articles):
    stages = [an_exit(2, 0.05, 0.95), an_exit(4, 0.2, 0.8)]
    expected = scorer.reading(stages=stages).decide(articles, 12)
    scorer.engine.ran.clear()
    scorer.engine.width_step = 16
    found = scorer.reading(stages=stages).decide(articles, 12)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_array_equal(found[1], expected[1])
    later = {n for part, n in scorer.engine.ran if part}
    assert len(later) > 1 and later <= {1, 2, 4, 8, 12}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_exit_that_yields_no_number_decides_nothing(scorer, articles, value):
    scorer.exits[2] = EarlyExit(np.full(WIDTH, value, dtype=np.float32), 0.0)
    with pytest.raises(InputError, match="yields scores that are not numbers with stub"):
        scorer.reading(stages=[an_exit(2, 0.2, 0.8)]).score(articles[:1])


def test_an_exit_after_some_of_the_parts(scorer, articles):
    cascade = scorer.reading(stages=[an_exit(4, 0.0, 0.0)])  # it decides all
    scores, decided_by = cascade.decide(articles, 7)
    assert (decided_by == 0).all() and {part for part, _ in cascade.engine.ran} == {0, 1}
    np.testing.assert_allclose(scores, expit(means_of(scorer, articles) @ scorer.exits[4].weights + 0.1), rtol=1e-4)


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta", "qwen"])
def test_the_parts_together_are_the_model(classifiers, articles, family):
    engine = Scorer.load(classifiers[family], "cpu").engine
    tokenizer = ArticleTokenizer.of(load_checkpoint(classifiers[family]).tokenizer)
    inputs, attention_mask = tokenizer.pad(tokenizer.encode(articles[:5], 64))
    expected = engine(inputs, attention_mask)
    assert engine.places == (() if family == "qwen" else (1,))
    found = inputs
    for number in range(len(engine.places) + 1):
        found = engine.part(number, found, attention_mask)
    assert expected.std() > 0.001 and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("n", "places"), [(4, (1, 2)), (7, (1, 2, 4)), (13, (2, 4, 8))])
def test_a_deeper_model_is_divided_more_often_and_is_still_itself(classifiers, articles, n, places):
    checkpoint = load_checkpoint(classifiers["minilm"])
    checkpoint.model.config.num_hidden_layers = n
    torch.manual_seed(0)
    engine = TorchEngine(BertForSequenceClassification(checkpoint.model.config), "cpu")
    tokenizer = ArticleTokenizer.of(checkpoint.tokenizer)
    found, attention_mask = tokenizer.pad(tokenizer.encode(articles[:5], 64))
    expected = engine(found, attention_mask)
    assert engine.places == places and expected.std() > 0.001
    for number in range(len(places) + 1):
        found = engine.part(number, found, attention_mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def states(rng, sign, noise):
    """(n, WIDTH): the first tells the label, as far as the noise allows; the others say nothing."""
    found = rng.normal(size=(len(sign), WIDTH))
    found[:, 0] = sign + noise * found[:, 0]
    return found.astype(np.float32)


def test_it_learns_the_scores_it_is_given():
    rng = np.random.default_rng(0)
    targets = rng.uniform(0.02, 0.98, 4000)
    means = states(rng, np.log(targets / (1 - targets)), 0.0)
    found = fit_exit(5 + 3 * means, targets)  # wherever the states lie, and however far apart
    log_odds = (5 + 3 * means) @ found.weights + found.bias
    assert np.abs(expit(log_odds) - targets).mean() < 0.02


def chosen(noises, changed=0.01, left=None, seed=1):
    """Exits after 2, 4, ... layers, whose states are that noisy; articles, their copies and other texts are alike."""
    rng = np.random.default_rng(seed)
    labels = np.arange(300) % 2
    every = np.concatenate([labels, labels, np.arange(2000) % 2])
    full, sign = np.where(every == 1, 0.99, 0.01), np.where(every == 1, 1.0, -1.0)
    found = {2 * (i + 1): states(rng, sign, noise) for i, noise in enumerate(noises)}
    known, fitting = ({n: own[part] for n, own in found.items()} for part in (slice(600), slice(600, None)))
    left = np.ones(len(every), dtype=bool) if left is None else left
    return choose_exits(known, fitting, np.arange(2000), labels, full, left, THRESHOLDS, changed)


def test_an_exit_leaves_what_it_is_not_sure_of():
    exits = chosen([0.6, 0.3])
    assert [stage.layers for stage in exits.stages] == [2, 4]
    assert {stage.sha256 for stage in exits.stages} == {hashlib.sha256(exits.content).hexdigest()}
    first, second = (exits.notes[name] for name in ("2 layers", "4 layers"))
    assert 0.1 < first["decided"] < 0.95 and 0 < second["decided"] < 1.001 - first["decided"]


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_what_the_exits_change_is_within_what_they_may(noise):
    """Judged on texts that no exit was fitted or chosen on."""
    exits, rng = chosen([noise, noise / 2], changed=0.01), np.random.default_rng(7)
    sign = np.where(np.arange(40_000) % 2 == 1, 1.0, -1.0)
    with np.load(io.BytesIO(exits.content)) as file:
        fitted = {int(n): (w, b) for n, w, b in zip(file["layers"], file["weights"], file["biases"], strict=True)}
    left, wrong = np.ones(len(sign), dtype=bool), 0
    for stage in exits.stages:
        weights, bias = fitted[stage.layers]
        own = states(rng, sign, noise if stage.layers == 2 else noise / 2)
        scores = expit((own @ weights + bias) / stage.temperature)
        sure = left & ((scores <= stage.low) | (scores >= stage.high))
        wrong += (sure & ((scores > 0.5) != (sign > 0))).sum()
        left &= ~sure
    assert 0 < wrong / len(sign) < 0.015 and left.mean() < 0.9


def test_each_exit_may_change_its_part_of_what_those_before_have_left(monkeypatch):
    """Those that judge the texts that an exit is fitted on were fitted without them: of noise they know nothing."""
    calls = []

    def limits(full, own, may, thresholds, change):
        calls.append((full, own, may.copy(), change))
        return 0.45, 0.55

    monkeypatch.setattr("prefilter_common.benchmark.stages.early_exit.limits_of", limits)
    left = np.arange(2600) % 5 > 0
    exits = chosen([3.0, 3.0], changed=0.08, left=left)
    assert [stage.layers for stage in exits.stages] == [2, 4]
    (full, own, may, change), (_, _, later, rest) = calls
    decided = left & ((own <= 0.45) | (own >= 0.55))
    assert change == 0.08 / 2 / 2 and (may == left).all() and (later == left & ~decided).all()
    assert rest == (0.08 - changed_share(full, own, decided, THRESHOLDS)) / 2
    # With 500 columns of noise for 2,000 texts an exit that has seen a text says what it was told.
    calls.clear()
    rng, labels = np.random.default_rng(0), np.arange(300) % 2
    full = np.where(rng.random(2600) < 0.5, 0.01, 0.99)
    noise = rng.normal(size=(2600, 500))
    choose_exits({2: noise[:600]}, {2: noise[600:]}, np.arange(2000) // 2, labels, full, left | True, THRESHOLDS, 0.01)
    assert abs(np.corrcoef(calls[0][1][600:], full[600:])[0, 1]) < 0.1


def test_what_is_decided_before_does_not_count():
    """Half of the texts are left to it, or so few that it decides less than a tenth of all, which is worth it still."""
    half, few = (np.random.default_rng(3).random(2600) < share for share in (0.5, 0.06))
    everything, rest = chosen([0.6]), chosen([0.6], left=half)
    assert rest.notes["2 layers"]["decided"] < 0.7 * everything.notes["2 layers"]["decided"]
    assert 0 < chosen([0.6], left=few).notes["2 layers"]["decided"] < 0.1


def test_one_that_knows_nothing_is_not_kept():
    exits = chosen([30.0, 0.3])
    assert [stage.layers for stage in exits.stages] == [4]
    assert "decides less than 10% of the articles that get there" in exits.notes["2 layers"]["reason"]
    assert chosen([30.0]).stages == ()


@pytest.mark.parametrize("labels", [np.arange(19) % 2, np.ones(40, dtype=int)], ids=["too few", "one label"])
def test_there_is_none_without_enough_validation_articles(labels):
    rng, n = np.random.default_rng(0), 2 * len(labels)
    full, left = np.full(n + 50, 0.9), np.ones(n + 50, dtype=bool)
    known, fitting = {2: rng.normal(size=(n, WIDTH))}, {2: rng.normal(size=(50, WIDTH))}
    exits = choose_exits(known, fitting, np.arange(50), labels, full, left, THRESHOLDS, 0.01)
    assert exits.stages == () and "20 validation articles with both labels" in exits.notes["early exits"]["reason"]


def test_there_and_back(tmp_path, caplog):
    exits = {n: EarlyExit(np.full(WIDTH, n, dtype=np.float32), n / 3) for n in (4, 2)}
    content = exits_content(exits)
    (tmp_path / EARLY_EXITS_FILE).write_bytes(content)
    stage = Stage("layers", 1.0, 0.1, 0.9, sha256=hashlib.sha256(content).hexdigest(), layers=2)
    found = read_exits(tmp_path, [stage])
    assert found.keys() == {2, 4}
    for layers, own in found.items():
        np.testing.assert_array_equal(own.weights, exits[layers].weights)
        assert own.bias == exits[layers].bias
    assert read_exits(tmp_path, []) == {} and not caplog.records
    (tmp_path / EARLY_EXITS_FILE).write_bytes(exits_content({2: exits[2]}))
    assert read_exits(tmp_path, [stage]) == {}
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "early_exits.npz: the early exits are skipped (not the file that the" in record.getMessage()


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"layers": 2}, {"reader": "encoder", "max_length": 16}], "not at its end"),
        ([{"layers": 4}, {"layers": 2}], "each after more layers"),
        ([{"layers": 2}, {"layers": 2}], "each after more layers"),
        ([{"layers": 2}, {"reader": "linear", "coverage": 0.5, "layers": 4}], "not at its end"),
        ([{"layers": 0}], "stages.layers"),
        ([{"layers": None}], "stages.layers"),
        ([{"layers": 2, "sha256": None}], "stages.sha256"),
    ],
)
def test_a_malformed_exit_is_named(tmp_path, stages, words):
    good = {"reader": "layers", "temperature": 1.0, "low": 0.2, "high": 0.8, "sha256": "0" * 64, "layers": 1}
    assert Contract.from_record({"stages": [good]}).stage_names == ["1 layer"]
    with pytest.raises(ValueError, match=words):
        Contract.from_record({"stages": [{**good, **stage} for stage in stages]})


@pytest.mark.slow
def test_every_engine_runs_the_exits_of_a_model(tmp_path, trained, articles):
    model = shutil.copytree(trained / "tiny", tmp_path / "tiny")
    scorer = Scorer.load(model, "cpu").reading()
    scores, found = states_of(scorer, scorer.tokenize(articles), 8)
    np.testing.assert_allclose(scores, scorer.score(articles), atol=1e-6)
    assert found.keys() == {1, 2} and found[1].shape == (len(articles), 32)
    own = fit_exit(found[1], scores)
    content = exits_content({1: own})
    (model / EARLY_EXITS_FILE).write_bytes(content)
    stage = Stage("layers", 1.0, 0.5, 0.5, sha256=hashlib.sha256(content).hexdigest(), layers=1)  # it decides all
    for name in ("pytorch-fp32", "onnxruntime-fp32", "openvino-fp32"):
        convert(model, EngineName.parse(name), None)
        engine = Scorer.load(model, engine=name)
        usable = engine.with_files_of(model, (stage,))
        scores, decided_by = engine.reading(stages=usable).decide(articles, 4)
        assert usable == (stage,) and (decided_by == 0).all()
        np.testing.assert_allclose(scores, expit(found[1] @ own.weights + own.bias), atol=1e-4)
    next((model / "onnxruntime-fp32").glob("layers_*")).unlink()
    with pytest.raises(InputError, match="has no intact onnxruntime-fp32"):
        Scorer.load(model, engine="onnxruntime-fp32")


class TellingEngine(PartsEngine):
    """Commerce is what has one token, and the states say so."""

    def __init__(self, token):
        super().__init__()
        self.token = token

    def __call__(self, input_ids, attention_mask):
        return np.where((input_ids == self.token).any(axis=1), 6.0, -6.0)

    def part(self, number, inputs, attention_mask):
        if number == 0:
            inputs = np.repeat(self(inputs, None)[:, None, None], inputs.shape[1], axis=1) * np.ones(WIDTH)
        return inputs if number < 2 else inputs[:, 0, 0]


@pytest.mark.parametrize("kept", [True, False])
def test_exits_get_what_the_first_stage_has_left(tokenizer, articles, monkeypatch, kept):
    """Texts, and changes that may be made; and the first stage is judged on stories that it was not fitted on."""
    seen, cascade = {}, "prefilter_common.benchmark.stages.cascade"
    stage = Stage("linear", 1.0, 0.4, 0.6, coverage=0.99, sha256="0" * 64) if kept else None

    def first(own, known, labels, both, unseen, thresholds, share):
        seen.update(own=own, known=known, both=both, unseen=unseen, share=share)
        return stage, {}

    def exits(states, fitting, stories, labels, both, left, thresholds, changed):
        seen.update(left=left, changed=changed, stories=stories)
        return Exits((), b"", {})

    monkeypatch.setattr(f"{cascade}.choose_first_stage", first)
    monkeypatch.setattr(f"{cascade}.choose_exits", exits)
    scorer = Scorer(PartsEngine(), tokenizer, Contract(max_length=512))
    labelled = [replace(article, label=i % 2) for i, article in enumerate(articles)]
    choose_cascade(scorer, labelled, articles, 16, 0.03)
    n, texts = 2 * len(labelled), 2 * len(articles)
    assert seen["share"] == pytest.approx(0.01 / 4) and len(seen["known"]) == n and len(seen["both"]) == n + texts
    assert seen["stories"].tolist() == 2 * stories_of(articles).tolist()
    assert any(len(ids) < len(whole) for whole, ids in zip(seen["known"], seen["known"][n // 2 :], strict=False))
    assert len(seen["unseen"][1]) == texts and seen["unseen"][1].min() < 1  # some of their tokens were not known
    if not kept:
        assert seen["left"].all() and seen["changed"] == pytest.approx(0.01)
        return
    decided, scores = decided_by_first(stage, seen["own"], seen["known"], seen["unseen"])
    assert 0 < decided.sum() < len(decided) and (seen["left"] == ~decided).all()
    assert seen["changed"] == pytest.approx(0.01 - changed_share(seen["both"], scores, decided, THRESHOLDS))


def test_the_exits_of_a_cascade_are_stored_and_used(tmp_path, tokenizer, articles, monkeypatch):
    monkeypatch.setattr("prefilter_common.benchmark.stages.cascade.choose_first_stage", lambda *_: (None, {}))
    token = tokenizer.own(tokenizer.encode([articles[0]], 64)[0])[-1]
    scorer = Scorer(TellingEngine(token), tokenizer, Contract(max_length=64))
    labelled = [replace(a, label=int(token in ids)) for a, ids in zip(articles, scorer.tokenize(articles), strict=True)]
    some = [a for label in (0, 1) for a in labelled if a.label == label] * 3
    cascade = choose_cascade(scorer, some, articles, 16, 0.01)
    assert cascade.stages[0].layers == 2 and cascade.notes["2 layers"]["decided"] > 0.5
    assert [cascade.full[format_input(a)] for a in articles] == pytest.approx(scorer.score(articles).tolist())

    write_contract(tmp_path, Contract(max_length=64))
    store_cascade(tmp_path, cascade)
    stages = read_contract(tmp_path).stages
    assert stages == cascade.stages == scorer.with_files_of(tmp_path, stages)
    scores, decided_by = scorer.reading(stages=stages).decide(labelled)
    assert (decided_by == 0).any() and ((scores >= 0.5) == [a.label == 1 for a in labelled]).all()
    scorer.engine.places = ()  # as of a decoder, or of a conversion by an earlier version
    assert scorer.with_files_of(tmp_path, stages) == ()
    store_cascade(tmp_path, Cascade((), {}))
    assert read_contract(tmp_path).stages == () and not (tmp_path / EARLY_EXITS_FILE).exists()
