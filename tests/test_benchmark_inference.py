import json

import pytest
from conftest import call, write_jsonl

import benchmark_inference


def test_the_file_the_card_and_the_last_line(trained, data_dir, capsys):
    flags = ["--model", trained / "tiny", "--test-data", data_dir / "test.jsonl", "--n-samples", 6, "--threads", 1]
    assert call(benchmark_inference, flags) == 0
    result = json.loads((trained / "tiny" / "cpu_benchmark.json").read_text(encoding="utf-8"))
    assert result["model"] == "tiny" and result["n_samples"] == 6 and result["threads"] == 1
    assert result["min_ms"] <= result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"] <= result["max_ms"]
    assert result["tokenize"]["avg_ms"] + result["forward"]["avg_ms"] == pytest.approx(result["avg_ms"], abs=0.01)
    assert result["peak_memory_mib"] > 50 and result["run"]["data"]["articles"]["rows"] == 16
    out = capsys.readouterr().out.splitlines()
    assert "6 articles one at a time, 3 rounds" in out[1] and result["run"]["hardware"]["cpu"] in out[0]
    assert json.loads(out[-1]) == {key: value for key, value in result.items() if key != "run"}


def test_articles_need_no_labels(trained, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"title": "t", "content": "c"}])
    assert call(benchmark_inference, ["--model", trained / "tiny", "--test-data", data, "--rounds", 1]) == 0


def test_the_one_model_is_found_and_several_are_a_question(tmp_path, monkeypatch, capsys, data_dir):
    monkeypatch.chdir(tmp_path)
    flags = ["--test-data", data_dir / "test.jsonl"]
    assert call(benchmark_inference, flags) == 2
    assert "train a model first" in capsys.readouterr().err
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert benchmark_inference.only_model().name == "a"
    (tmp_path / "models" / "b").mkdir()
    assert call(benchmark_inference, flags) == 2
    assert "several models; name one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ms", "words"),
    [(49.9, "meets the target"), (50.0, "meets the minimum (< 100 ms), not"), (100.0, "misses the minimum")],
)
def test_the_verdict(ms, words):
    assert benchmark_inference.verdict(ms).startswith(words)
