import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, write_jsonl
from malformed import snapshot

import benchmark_inference
from prefilter_common.articles import Article, format_input, load_articles
from prefilter_common.benchmark import rows as benchmark
from prefilter_common.benchmark import timing
from prefilter_common.benchmark.conditions import Options
from prefilter_common.benchmark.data import Data
from prefilter_common.benchmark.fidelity import Tolerance
from prefilter_common.benchmark.report import latency_verdict
from prefilter_common.benchmark.run import take_reference
from prefilter_common.benchmark.stages.cascade import Cascade
from prefilter_common.benchmark.timing import Single, Worker
from prefilter_common.errors import InputError
from prefilter_common.files import read_record, sha256_of, write_json
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.models.contract import Stage
from prefilter_common.models.directory import ENGINE_FILE, read_contract, write_contract
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import REFERENCE, EngineName
from prefilter_common.scoring.engines.pytorch import TorchEngine
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.stages.first_stage import TABLE_BITS, FirstStage

pytestmark = pytest.mark.slow


@pytest.fixture
def model(trained, tmp_path, data_dir):
    """A copy of the tiny model, whose engines and contract may be changed."""
    copy = shutil.copytree(trained / "tiny", tmp_path / "models" / "tiny")
    # It flags most test articles: at 0.5 a tiny model may flag none, and then no way of scoring changes a thing.
    scores = np.sort(Scorer.load(copy).score(load_articles(data_dir / "test.jsonl")))
    threshold = float(scores[2:4].mean())
    write_contract(copy, replace(read_contract(copy), thresholds={"default": threshold}))
    return copy


@pytest.fixture
def run(model, data_dir, tmp_path, quick_benchmark):
    """Runs the benchmark on the copy; returns exit code and results file."""

    def run(*flags, data=data_dir / "test.jsonl"):
        base = ["--model", model, "--test-data", data, "--output", tmp_path / "results", "--n-samples", 4]
        # Eighty articles cannot show less: none changed of 80 may be 4.5 % of all.
        base += ["--max-changed", 0.05, "--max-f1-loss", 0.06]
        code = call(benchmark_inference, [*base, "--rounds", 2, *flags])
        path = tmp_path / "results" / "benchmark_tiny.json"
        return code, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    return run


def recommendation(model):
    return json.loads((model / "cpu_benchmark.json").read_text(encoding="utf-8"))


def test_the_rows_the_files_and_the_last_line(run, model, capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("prefilter_common.benchmark.run.Worker", Worker)  # processes, whose memory is measured
    code, result = run("--engines", "pytorch-fp32", "onnxruntime-fp32", "--threads", 1, "--batch-sizes", 1, 8)
    assert code == 0
    reference, onnx = result["rows"]
    assert (reference["engine"], reference["relative_speed"], reference["refused"]) == ("pytorch-fp32", 1.0, None)
    assert reference["fidelity"]["max_score_difference"] < 1e-6 and onnx["fidelity"]["max_score_difference"] < 1e-4
    for row in result["rows"]:
        assert row["min_ms"] <= row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["tokenize"]["avg_ms"] + row["forward"]["avg_ms"] == pytest.approx(row["avg_ms"], abs=0.01)
        assert set(row["articles_per_second"]) == {"1", "8"} and row["disk_mib"] > 0.1 and row["load_s"] > 0
        assert 20 < row["peak_memory_mib"] <= row["peak_memory_bulk_mib"]
        assert row["share_of_bound"] > 0 and row["gflop_per_article"] > 0
        low, high = row["relative_speed_rounds"]
        assert low - 0.01 <= row["relative_speed"] <= high + 0.01
    assert onnx["peak_memory_mib"] < reference["peak_memory_mib"] / 2  # it needs no torch
    assert result["conditions"]["threads"] == 1 and result["conditions"]["matrix_gflops"]["fp32"] > 0
    assert result["run"]["data"]["test"]["rows"] == 16 and "onnxruntime" in result["run"]["versions"]
    record = recommendation(model)
    assert record["engine"] == min(result["rows"], key=lambda row: row["avg_ms"])["engine"]
    assert record["model"] == "tiny" and record["n_samples"] == 4
    hashes = [None, sha256_of(model / "onnxruntime-fp32" / ENGINE_FILE)]
    assert [row["engine_sha256"] for row in result["rows"]] == hashes and record["engine_sha256"] in hashes
    assert (tmp_path / "results" / "benchmark_tiny.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out.splitlines()
    assert "decisions were compared on 80 articles: 16 of test, 48 of train, 16 of val" in out
    assert result["conditions"]["compared"] == {"test": 16, "train": 48, "val": 16}
    assert result["conditions"]["lengths_like"] is None and out[3].endswith(" characters, in full")
    assert result["run"]["hardware"]["cpu"] in out[0] and "4 of them one at a time, 2 rounds" in out[2]
    assert json.loads(out[-1]) == {key: value for key, value in record.items() if key != "run"}
    assert str(Scorer.load(model).engine.name) == record["engine"]


def test_a_broken_int8_model_is_refused_however_fast(run, model, capsys, monkeypatch):
    """It was made from a checkpoint that says the opposite, and planted as if it were this one's."""
    pytest.importorskip("onnxruntime")
    measured = Worker.single

    def single(self, *args):
        """Ten times as fast as the reference, on whatever processor."""
        found = measured(self, *args)
        seconds = np.full(len(found.forward), 0.001 if "int8" in self.opened["precision"] else 0.01)
        return Single(seconds, seconds[:, None], found.shapes)

    monkeypatch.setattr(Worker, "single", single)
    opposite = shutil.copytree(model, model.parent / "opposite")
    checkpoint = load_checkpoint(opposite)
    with torch.no_grad():
        checkpoint.model.classifier.weight.neg_()
        checkpoint.model.classifier.bias.neg_()
    checkpoint.save(opposite)
    good, broken = (convert(path, EngineName("onnxruntime", "int8"), None) for path in (model, opposite))
    shutil.copy(broken / "model.onnx", good / "model.onnx")
    record = read_record(good / ENGINE_FILE)  # with its hash: a changed file alone would only be converted again
    record["files"]["model.onnx"] = read_record(broken / ENGINE_FILE)["files"]["model.onnx"]
    write_json(good / ENGINE_FILE, record)
    code, result = run("--engines", "onnxruntime-int8")
    assert code == 0
    reference, planted = result["rows"]
    assert planted["avg_ms"] < reference["avg_ms"]
    assert "decisions changed" in planted["refused"]
    assert result["recommended"] == "pytorch-fp32 64" and recommendation(model)["engine"] == "pytorch-fp32"
    out = capsys.readouterr().out
    assert "refused: onnxruntime-int8 64: " in out
    assert "in batches: onnxruntime-int8 scales by the whole batch, so an article alone may get another score" in out
    assert str(Scorer.load(model).engine.name) == "pytorch-fp32"


def test_where_everything_is_refused_the_reference_remains(run, monkeypatch):
    """Even where rounding carries one of its own scores over a threshold."""
    monkeypatch.setattr("prefilter_common.benchmark.rows.refusal", lambda *rest: "out of tolerance")
    code, result = run("--engines", "pytorch-fp32", "--no-stages", "--max-lengths", 16, 64)
    assert code == 0 and result["recommended"] == "pytorch-fp32 64"
    assert [row["refused"] for row in result["rows"]] == [None, "out of tolerance"]


def test_an_engine_that_is_unavailable_is_a_row_with_its_reason(run, monkeypatch, capsys):
    monkeypatch.setattr("prefilter_common.scoring.engines.interface.find_spec", lambda name: None)
    code, result = run("--engines", "openvino-fp32", "onnxruntime-int8")
    assert code == 0 and len(result["rows"]) == 1
    assert result["skipped"]["openvino-fp32"] == "openvino is not installed; pip install openvino"
    assert "skipped: onnxruntime-int8: onnxruntime is not installed" in capsys.readouterr().out


def test_what_an_engine_does_at_first_is_not_counted(run, monkeypatch, tmp_path):
    """It may compile kernels for each new shape, which here takes 100 seconds of the clock."""
    shapes, clock, real = set(), time.perf_counter, timing._Counting.__call__

    def first_compiles(self, input_ids, attention_mask):
        shapes.add(input_ids.shape)
        return real(self, input_ids, attention_mask)

    monkeypatch.setattr(timing._Counting, "__call__", first_compiles)
    monkeypatch.setattr(TorchEngine, "width_step", 16)
    monkeypatch.setattr("time.perf_counter", lambda: clock() + 100 * len(shapes))
    stubs = write_jsonl(tmp_path / "stubs.jsonl", [{"title": "", "content": "x" * n} for n in (0, 0, 400)])
    flags = ["--engines", "pytorch-fp32", "--no-stages", "--lengths-like", stubs]
    code, result = run(*flags, "--n-samples", 16, "--batch-sizes", 1, 8)
    assert code == 0 and len(shapes) > 2
    (row,) = result["rows"]
    assert row["max_ms"] < 50_000 and min(row["articles_per_second"].values()) > 1


def test_the_reference_scores_the_other_texts_once_and_a_line_says_what_scores_now(run, monkeypatch, capsys):
    asked, real = [], Worker.scores

    def scores(self, articles, max_length, stages, batch_size):
        asked.append((max_length, len(articles)))
        return real(self, articles, max_length, stages, batch_size)

    monkeypatch.setattr(Worker, "scores", scores)
    code, result = run("--engines", "pytorch-fp32", "--no-stages", "--max-lengths", 64, 16)
    assert code == 0 and asked == [(16, 64)]
    assert result["rows"][0]["fidelity"]["points"]["default"]["n"] == 80
    lines = [line for line in capsys.readouterr().err.splitlines() if ": scoring" in line]
    assert lines == [f"pytorch-fp32 {n}: scoring in batches of 16" for n in (64, 16)]


@pytest.mark.parametrize("method", ["single", "bulk"])
def test_an_engine_that_fails_while_it_is_timed_is_a_row_with_its_reason(run, monkeypatch, capsys, method):
    pytest.importorskip("onnxruntime")
    measured = getattr(Worker, method)

    def fail(self, *args):
        if "int8" in self.opened["precision"]:
            raise InputError("yields scores that are not numbers")
        return measured(self, *args)

    monkeypatch.setattr(Worker, method, fail)
    code, result = run("--engines", "onnxruntime-int8", "onnxruntime-fp32", "--no-stages")
    assert code == 0 and [row["engine"] for row in result["rows"]] == ["pytorch-fp32", "onnxruntime-fp32"]
    assert result["skipped"] == {"onnxruntime-int8": "yields scores that are not numbers"}
    assert "skipped: onnxruntime-int8: yields scores that are not numbers" in capsys.readouterr().out


def test_what_reads_less_is_refused_with_its_engine():
    rows = [
        {"engine": engine, "max_length": length, "stages": stages, "refused": refused}
        for engine, length, stages, refused in (
            ("pytorch-fp32", 64, [], None),
            ("pytorch-fp32", 64, ["first stage"], None),
            ("onnxruntime-int8", 64, [], "4.3% of decisions changed at default"),
            ("onnxruntime-int8", 64, ["first stage"], None),
            ("onnxruntime-int8", 32, [], None),
            ("openvino-int8", 32, [], None),
        )
    ]
    benchmark.refuse_with_their_engine(rows, 64)
    found = [row["refused"] for row in rows]
    assert found[:2] == [None, None] and found[5] is None
    assert found[3] == found[4] == "read in full, 4.3% of decisions changed at default"


SHORT = Stage("encoder", 1.0, 0.0, 1.0, max_length=16)  # all that is cut is read again: the same decisions


def test_the_stages_are_chosen_stored_and_used(run, model, monkeypatch, capsys):
    """The choice itself has its own tests; here it is made beforehand."""
    first = FirstStage(*np.zeros((2, 1 << TABLE_BITS), np.float32), np.array([True, False]), -9.0)
    sha256 = hashlib.sha256(first.content()).hexdigest()
    never = Stage("linear", 1.0, 0.01, 0.99, coverage=1.0, sha256=sha256)  # it knows one token
    always = Stage("linear", 1.0, 0.01, 0.99, coverage=0.0, sha256=sha256)  # for journalism, whatever it is
    for linear, decides in ((never, 0.0), (always, 1.0)):
        files = {"first_stage.npz": first.content()}
        cascade = Cascade((linear, SHORT), {"first stage": {"decided": decides}}, files)
        monkeypatch.setattr(
            "prefilter_common.benchmark.stages.cascade.choose_cascade", lambda *rest, found=cascade: found
        )
        # With so few articles, even a row that changes nothing may lose more than the tolerance of the other tests.
        code, result = run("--engines", "pytorch-fp32", "--max-f1-loss", 0.3)
        assert code == 0
        assert read_contract(model).stages == (linear, SHORT)
        plain, alone, short, both = result["rows"]
        names = [[], ["first stage"], ["16 tokens"], ["first stage", "16 tokens"]]
        assert [row["stages"] for row in result["rows"]] == names
        assert [cost["decides"] for cost in plain["stage_costs"]] == [1.0] and plain["stage_costs"][0]["ms"] > 0
        assert short["gflop_per_article"] > plain["gflop_per_article"] and short["refused"] is None
        for row in (alone, both):
            found = row["stage_costs"]
            assert [cost["name"] for cost in found] == [*row["stages"], "full read"]
            assert found[0]["decides"] == decides and sum(cost["decides"] for cost in found) == pytest.approx(1)
            assert found[0]["ms"] > 0 and all((cost["ms"] is None) == (decides == 1) for cost in found[1:])
            assert (row["gflop_per_article"] == 0) == (decides == 1)  # no forward pass at all
            assert decides == 0 or "F1 at default may be" in row["refused"]
            assert (row["fidelity"]["points"]["default"]["changed"] > 0) == (decides == 1)
        # The test set, and of 48 training articles the fourth that no stage was fitted or chosen on.
        assert [row["fidelity"]["points"]["default"]["n"] for row in (alone, short, both)] == [16 + 12] * 3
        assert "pytorch-fp32 64 after first stage + 16 tokens" in capsys.readouterr().out
    record = recommendation(model)
    assert "first stage" not in record["stages"]
    (model / "cpu_benchmark.json").write_text(json.dumps(record | {"stages": ["first stage", "16 tokens"]}))
    scorer = Scorer.load(model)
    assert scorer.contract.stages == (always, SHORT)
    assert scorer.score([Article("a", "b")])[0] == pytest.approx(1 / (1 + np.exp(9)))

    def stop(*rest):
        raise KeyboardInterrupt

    before = snapshot(model)
    other = replace(cascade, stages=(never, SHORT))
    with monkeypatch.context() as stopped:
        stopped.setattr("prefilter_common.benchmark.stages.cascade.choose_cascade", lambda *rest: other)
        stopped.setattr(Worker, "bulk", stop)
        assert run("--engines", "pytorch-fp32")[0] == 130
    assert snapshot(model) == before  # until all is measured, it is deployed as it was

    monkeypatch.setattr("prefilter_common.benchmark.stages.cascade.choose_cascade", lambda *rest: Cascade((SHORT,), {}))
    assert run("--engines", "pytorch-fp32")[0] == 0
    assert read_contract(model).stages == (SHORT,) and not (model / "first_stage.npz").exists()


def test_without_stages_those_that_exist_are_left_alone(run, model):
    contract = read_contract(model)
    write_contract(model, replace(contract, stages=(SHORT,)))
    assert run("--engines", "pytorch-fp32", "--no-stages")[0] == 0
    assert read_contract(model).stages == (SHORT,)


def test_shorter_reads_are_rows_of_their_own(run, capsys):
    code, result = run("--engines", "pytorch-fp32", "--no-stages", "--max-lengths", 16, 64, 16)
    assert code == 0 and [row["max_length"] for row in result["rows"]] == [64, 16]
    assert result["rows"][1]["gflop_per_article"] < result["rows"][0]["gflop_per_article"]
    assert run("--max-lengths", 128)[0] == 2
    assert "--max-lengths 128: the model reads at most 64 tokens" in capsys.readouterr().err


def test_validation_articles_need_labels_only_to_choose_stages(run, tmp_path, capsys):
    val = write_jsonl(tmp_path / "v.jsonl", [{"title": "t", "content": "c"}])
    flags = ["--engines", "pytorch-fp32", "--val-data", val]
    assert run(*flags)[0] == 2 and '"label" is missing' in capsys.readouterr().err
    code, result = run(*flags, "--no-stages")
    assert code == 0 and result["conditions"]["compared"]["val"] == 1


def test_articles_need_no_labels(run, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"title": "t", "content": "c"}])
    earlier = tmp_path / "results" / "benchmark_tiny.png"
    earlier.parent.mkdir()
    earlier.write_bytes(b"a picture of other articles")
    code, result = run("--engines", "pytorch-fp32", data=data)
    assert code == 0 and result["rows"][0]["f1"] is None and not earlier.exists()
    assert "pass --val-data" in result["skipped"]["stages"]


@pytest.fixture
def alone(data_dir, tmp_path):
    """The labelled test articles in a folder without other splits."""
    return shutil.copy(data_dir / "test.jsonl", tmp_path / "alone.jsonl")


@pytest.fixture
def traffic(tmp_path):
    """A feed: 160 short texts, one of them without content, and every text twice in a row."""
    texts = [f"word{i} and {'more ' * (i % 23)}words" if i else "" for i in range(160)]
    rows = [{"title": f"News {i}", "content": c} for i, c in enumerate(texts) for _ in range(2)]
    return write_jsonl(tmp_path / "feed.jsonl", rows)


def test_an_engine_and_a_first_pass_refused_on_few_texts_are_accepted_with_traffic(
    run, alone, traffic, data_dir, monkeypatch
):
    pytest.importorskip("onnxruntime")
    chosen = Cascade((SHORT,), {"short read": {"tokens": 0.5}})
    monkeypatch.setattr("prefilter_common.benchmark.run.cascade_of", lambda *rest: chosen)
    flags = ["--engines", "pytorch-fp32", "onnxruntime-fp32", "--val-data", data_dir / "val.jsonl"]
    _, few = run(*flags, data=alone)
    why = {(row["engine"], len(row["stages"])): row["refused"] for row in few["rows"]}
    assert why["pytorch-fp32", 0] is None and few["conditions"]["compared"] == {"test": 16, "val": 16}
    assert why["onnxruntime-fp32", 0].startswith("0 of 32 decisions changed at default, so up to 10.9% of all may; ")
    assert why["onnxruntime-fp32", 0].endswith("takes 72 without one")
    assert "may be" in why["pytorch-fp32", 1] and "by 16 articles; without a changed decision" in why["pytorch-fp32", 1]
    _, more = run(*flags, "--traffic", traffic, data=alone)
    assert more["conditions"]["compared"] == {"test": 16, "traffic": 160, "val": 16}  # each text once
    assert [row["refused"] for row in more["rows"]] == [None] * 4
    points = [row["fidelity"]["points"]["default"] for row in more["rows"]]
    assert [point["n"] for point in points] == [192, 96, 192, 96] and more["run"]["data"]["traffic"]["rows"] == 320
    # On which texts the stages of an earlier run were fitted is not known.
    monkeypatch.setattr("prefilter_common.benchmark.run.cascade_of", lambda *rest: Cascade((SHORT,), {}))
    _, earlier = run("--engines", "pytorch-fp32", "--traffic", traffic, data=alone)
    assert [row["fidelity"]["points"]["default"]["n"] for row in earlier["rows"]] == [176, 16]


def test_what_the_stages_were_chosen_on_is_not_read_again(model, data_dir, monkeypatch):
    val, test = (load_articles(data_dir / f"{role}.jsonl") for role in ("val", "test"))
    known = {format_input(article): 0.25 for article in val[:5]}
    monkeypatch.setattr("prefilter_common.benchmark.run.cascade_of", lambda *rest: Cascade((), {}, full=known))
    options = Options([REFERENCE], None, False, [16], Tolerance(), "cpu", 1, None)
    reference, data = take_reference(model, Data(test, test, val=val), options)
    assert data.all_more == val and (reference.more[:5] == 0.25).all()
    assert reference.more[5:] == pytest.approx(Scorer.load(model, "cpu").score(val[5:]))


def test_what_the_model_cannot_read_says_nothing_for_an_engine(run, model, data_dir, tmp_path, capsys):
    """With every engine it scores 0, so that no number of such texts shows that one decides as the reference does."""
    pytest.importorskip("onnxruntime")
    write_contract(model, replace(read_contract(model), max_unknown=0.3))
    unread = [{"title": f"ახალი ამბები {i}", "content": "დღეს ქალაქში", "label": i % 2} for i in range(160)]
    traffic = write_jsonl(tmp_path / "feed.jsonl", unread)
    known = [json.loads(line) for line in (data_dir / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    data = write_jsonl(tmp_path / "mixed.jsonl", [row for both in zip(known, unread, strict=False) for row in both])
    flags = ["--engines", "onnxruntime-fp32", "--no-stages", "--traffic", traffic, "--n-samples", 32]
    code, result = run(*flags, data=data)
    assert code == 0 and result["conditions"]["compared"] == {"test": 16}
    assert result["conditions"]["timed_articles"] == 16 and result["conditions"]["unread_articles"] == 160
    assert [row["fidelity"]["points"]["default"]["n"] for row in result["rows"]] == [16, 16]
    assert result["rows"][1]["refused"].startswith("0 of 16 decisions changed at default, so up to ")
    assert "without 160 texts that the model cannot read: with every engine they score 0" in capsys.readouterr().out
    code, _ = run(*flags, data=traffic)
    assert code == 2
    assert "tiny: knows the characters of none of the test articles; pass others as" in capsys.readouterr().err


def test_everything_is_cut_to_the_lengths_of_a_file_but_what_calibrates_int8(
    run, data_dir, tmp_path, monkeypatch, capsys
):
    stubs = write_jsonl(tmp_path / "stubs.jsonl", [{"title": "", "content": "x" * n} for n in range(5, 26)])
    seen = {}

    def convert(directory, engine, train, device):
        seen["calibration"] = train

    def choose(directory, scorer, val, *rest):
        seen["val"] = np.array([len(ids) for ids in scorer.tokenize(val)])
        return Cascade((), {})

    monkeypatch.setattr("prefilter_common.benchmark.run.convert", convert)
    monkeypatch.setattr("prefilter_common.benchmark.run.cascade_of", choose)
    _, whole = run("--engines", "pytorch-fp32")
    n_val = seen["val"]
    capsys.readouterr()
    code, short = run("--engines", "pytorch-fp32", "--lengths-like", stubs)
    assert code == 0 and (seen["val"] <= n_val).all() and seen["val"].sum() < n_val.sum()
    assert seen["calibration"] == load_articles(data_dir / "train.jsonl")
    before, after = whole["conditions"], short["conditions"]
    assert after["lengths_like"] == str(stubs) and after["median_characters"] < 26 < before["median_characters"]
    assert after["mean_tokens"] < before["mean_tokens"]
    assert short["rows"][0]["gflop_per_article"] < whole["rows"][0]["gflop_per_article"]
    sha256 = short["run"]["data"]["lengths_like"]["sha256"]
    card = capsys.readouterr().out.splitlines()[3]
    words = f"median {after['median_characters']} characters, at lengths drawn from {stubs} (sha256 {sha256[:12]})"
    assert words in card


def test_traffic_as_test_data_keeps_its_lengths(run, traffic, data_dir, monkeypatch):
    monkeypatch.setattr("prefilter_common.benchmark.run.cascade_of", lambda *rest: Cascade((SHORT,), {}))
    splits = ["--train-data", data_dir / "train.jsonl", "--val-data", data_dir / "val.jsonl"]
    flags = ["--engines", "pytorch-fp32", *splits, "--lengths-like", traffic, "--traffic", traffic]
    code, result = run(*flags, data=traffic)
    assert code == 0
    lengths = [len(article.content) for article in load_articles(traffic)]
    assert result["conditions"]["median_characters"] == round(np.median(lengths))
    assert result["conditions"]["compared"] == {"test": 160, "train": 48, "val": 16}  # each text once
    one, two = result["rows"]
    assert one["f1"] is None and one["refused"] is None and two["refused"] == "no labels to judge it on"


def test_the_one_model_is_found_and_several_are_a_question(tmp_path, monkeypatch, capsys, data_dir):
    monkeypatch.chdir(tmp_path)
    flags = ["--test-data", data_dir / "test.jsonl"]
    assert call(benchmark_inference, flags) == 2
    assert "train a model first" in capsys.readouterr().err
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert benchmark_inference.only_model().name == "a"
    (tmp_path / "models" / "b").mkdir()
    assert call(benchmark_inference, flags) == 2
    message = f"models contains several models (a, b); pass --model {Path('models') / 'a'}, for example"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ms", "words"),
    [(49.9, "meets the target"), (50.0, "meets the minimum (< 100 ms), not"), (100.0, "misses the minimum")],
)
def test_the_verdict(ms, words):
    assert latency_verdict(ms).startswith(words)


def test_the_frontier_is_what_nothing_else_beats():
    rows = [{"avg_ms": ms, "f1": f1} for ms, f1 in [(10, 0.8), (20, 0.9), (30, 0.85), (40, 0.95), (5, 0.7), (6, 0.7)]]
    assert [row["avg_ms"] for row in benchmark.frontier(rows)] == [5, 10, 20, 40]


def test_operations_are_those_that_the_layers_need(trained):
    from prefilter_common.benchmark.bounds import operations

    of_part = operations(Scorer.load(trained / "tiny", engine=REFERENCE).engine)
    n, t, width, inner = 3, 50, 32, 64
    whole = 2 * t * (4 * width**2 + 2 * width * inner) + 4 * t**2 * width
    last = 2 * t * 2 * width**2 + 2 * (2 * width**2 + 2 * width * inner) + 4 * t * width  # of the first token alone
    assert [of_part((part, n, t)) for part in range(3)] == pytest.approx([n * whole, n * whole, n * last], rel=0.02)
