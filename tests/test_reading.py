"""What is read once, what twice, and what the contract says of it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from stub_engine import FULL, PLAIN, StubEngine

from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.models.directory import read_contract, read_recommendation, recommended_stages, write_contract
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.stages.first_stage import sigmoid
from prefilter_common.scoring.tokenization import ArticleTokenizer

FIRST = 30
SHORT = Stage("encoder", temperature=0.5, low=0.2, high=0.8, max_length=FIRST)


@pytest.fixture(scope="module")
def articles(data_dir):
    """Distinct ones; the last are shorter than the first read."""
    return [*load_articles(data_dir / "train.jsonl"), Article("", ""), Article("a", "b"), Article("b", "a")]


@pytest.fixture(scope="module")
def tokenizer(classifiers):
    return ArticleTokenizer.of(load_checkpoint(classifiers["minilm"]).tokenizer)


@pytest.fixture
def scorer(tokenizer):
    return Scorer(StubEngine(), tokenizer, PLAIN).reading(stages=[SHORT])


@pytest.fixture
def reads(tokenizer, articles):
    """What the two reads of each article give, (n,) each, and which articles are unsure."""
    scorer = Scorer(StubEngine(), tokenizer, PLAIN)
    full = scorer.score(articles)
    cut = np.array([len(ids) > FIRST for ids in scorer.tokenize(articles)])
    first_read = scorer.reading(max_length=FIRST).score(articles)  # at the full read's temperature
    log_odds = 2.0 * (np.log(first_read) - np.log1p(-first_read))
    first = np.where(cut, sigmoid(log_odds / SHORT.temperature), full)
    unsure = cut & (first > SHORT.low) & (first < SHORT.high)
    sure = cut & ~unsure
    assert unsure.sum() > 5 and sure.sum() > 5 and (~cut).sum() == 3  # else nothing could be seen
    short = full[~cut]
    assert ((short > SHORT.low) & (short < SHORT.high)).any()  # uncertain, and still read once
    return full, first, unsure


def test_only_unsure_articles_get_the_full_reads_score(scorer, articles, reads):
    full, first, unsure = reads
    expected = np.where(unsure, full, first)
    alone = [scorer.score([article])[0] for article in articles]
    encodings = scorer.tokenize(articles)
    ways = [scorer.score(articles), scorer.score(articles, batch_size=5), alone]
    ways += [scorer.read(encodings)[0], scorer.read(encodings, batch_size=1)[0]]
    for scores in ways:
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_only_unsure_articles_are_read_again(scorer, articles, reads):
    scorer.score(articles, batch_size=7)
    rows = scorer.engine.rows
    lengths = [len(ids) for ids in scorer.tokenize(articles)]
    assert len(rows) == len(articles) + reads[2].sum()
    assert sorted(map(len, rows[: len(articles)])) == sorted(min(n, FIRST) for n in lengths)
    unsure = [n for n, again in zip(lengths, reads[2], strict=True) if again]
    assert sorted(map(len, rows[len(articles) :])) == sorted(unsure)


def test_a_first_read_as_long_as_the_full_one_is_the_only_one(tokenizer, articles):
    long = Stage("encoder", temperature=9.0, low=0.0, high=1.0, max_length=FULL)
    scorer = Scorer(StubEngine(), tokenizer, PLAIN)
    np.testing.assert_array_equal(scorer.reading(stages=[long]).score(articles), scorer.score(articles))
    assert len(scorer.engine.rows) == 2 * len(articles)


def test_chunks_make_no_difference(scorer, articles, monkeypatch):
    expected = scorer.score(articles)
    monkeypatch.setattr("prefilter_common.scoring.scorer.CHUNK", 10)
    np.testing.assert_array_equal(scorer.score(articles), expected)


@pytest.mark.parametrize("stages", [[], [SHORT]])
def test_identical_texts_are_read_once(tokenizer, articles, stages):
    scorer = Scorer(StubEngine(), tokenizer, PLAIN).reading(stages=stages)
    expected = scorer.score(articles)
    n_rows = len(scorer.engine.rows)
    repeated = scorer.score(articles + articles[::-1] + [Article("a", "b", label=1, id="other")])
    assert len(scorer.engine.rows) == 2 * n_rows
    np.testing.assert_array_equal(repeated, [*expected, *expected[::-1], expected[-2]])


@pytest.mark.slow
def test_two_processes_share_the_batches(tmp_path, tokenizer, data_dir):
    tokenizer.save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", ROOT / "tests" / "stub_engine.py"]
    command += [data_dir / "train.jsonl", tmp_path]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    scorer = Scorer(StubEngine(), tokenizer, PLAIN)
    expected = scorer.score(load_articles(data_dir / "train.jsonl"))
    rows = []
    for rank in "01":
        scores, n_rows = json.loads((tmp_path / f"rank{rank}").read_text())
        np.testing.assert_array_equal(scores, expected)
        rows.append(n_rows)
    assert sum(rows) == len(scorer.engine.rows) and min(rows) > 0.3 * sum(rows)


LINEAR = Stage("linear", temperature=1.5, low=0.1, high=0.9, coverage=0.8, sha256="0" * 64)


def test_the_contract_keeps_the_stages(tmp_path):
    contract = Contract(max_length=FULL, stages=(LINEAR, SHORT))
    write_contract(tmp_path, contract)
    assert read_contract(tmp_path) == contract
    write_contract(tmp_path, Contract())
    assert read_contract(tmp_path).stages == ()


GOOD = {"max_length": 16, "temperature": 1.0, "low": 0.2, "high": 0.8}


def read_record(folder, **record):
    (folder / "prefilter.json").write_text(json.dumps({"max_length": FULL, **record}))
    return read_contract(folder)


def test_the_contract_of_an_earlier_version_reads_as_before(tmp_path, tokenizer, articles):
    two_pass = {"max_length": FIRST, "temperature": 0.5, "low": 0.2, "high": 0.8}
    contract = read_record(tmp_path, temperature=2.0, two_pass=two_pass)
    assert contract == Contract(max_length=FULL, temperature=2.0, stages=(SHORT,))
    assert read_record(tmp_path, two_pass=None) == Contract(max_length=FULL)
    (tmp_path / "cpu_benchmark.json").write_text(json.dumps({"engine": "pytorch-fp32", "max_length": 64, "passes": 2}))
    assert recommended_stages(read_recommendation(tmp_path), contract) == (SHORT,)


@pytest.mark.parametrize(
    "two_pass",
    [
        True,
        [],
        {},
        "yes",
        {"max_length": 16},
        {**GOOD, "colour": "red"},
        {**GOOD, "max_length": "16"},
        {**GOOD, "max_length": 16.5},
        {**GOOD, "max_length": 0},
        {**GOOD, "temperature": 0},
        {**GOOD, "temperature": None},
        {**GOOD, "low": 0.9},
        {**GOOD, "high": 1.5},
    ],
)
def test_a_malformed_stage_is_named(tmp_path, two_pass):
    stage = {"reader": "encoder", **two_pass} if isinstance(two_pass, dict) else two_pass
    assert read_record(tmp_path, stages=[{"reader": "encoder", **GOOD}]).stages == (
        Stage("encoder", 1.0, 0.2, 0.8, 16),
    )
    for record in ({"two_pass": two_pass}, {"stages": [stage]}):
        with pytest.raises(InputError, match=r"prefilter\.json: not a valid contract: .*; correct it, or train"):
            read_record(tmp_path, **record)


@pytest.mark.parametrize(
    "changes",
    [{"reader": "oracle"}, {"reader": None}, {"coverage": None}, {"coverage": 1.5}, {"sha256": None}, {"sha256": 5}],
)
def test_a_malformed_first_stage_is_named(tmp_path, changes):
    good = {"reader": "linear", "temperature": 1.0, "low": 0.2, "high": 0.8, "coverage": 0.9, "sha256": "0" * 64}
    assert read_record(tmp_path, stages=[good]).stages[0].name == "first stage"
    (key,) = changes
    with pytest.raises(InputError, match=rf'not a valid contract: "stages\.{key}" is .*; it must be '):
        read_record(tmp_path, stages=[{**good, **changes}])
    for stages in (None, {}, "none", [None]):
        with pytest.raises(InputError, match=r'"stages" is .*; it must be a list of objects'):
            read_record(tmp_path, stages=stages)


class SteppedEngine(StubEngine):
    width_step = 16

    def __init__(self):
        super().__init__()
        self.widths = set()

    def __call__(self, input_ids, attention_mask):
        self.widths.add(input_ids.shape[1])
        return super().__call__(input_ids, attention_mask)


def test_an_engine_that_keeps_something_for_each_shape_sees_few_lengths(tokenizer, articles):
    engine = SteppedEngine()
    scorer = Scorer(engine, tokenizer, Contract(max_length=FULL - 3))
    some = [Article("", " ".join(["word"] * n)) for n in range(FULL)] + list(articles)
    scores = [scorer.score([article])[0] for article in some]
    assert engine.widths == {*range(32, FULL - 3, 16), FULL - 3}  # an empty article has over 16 tokens
    np.testing.assert_allclose(scorer.score(some), scores)  # whatever the padding
