"""The recipe for Ray Data in the docstring of the scoring package, as it stands there, in two local workers."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pyarrow.parquet
import pytest
from conftest import ROOT, write_jsonl

from prefilter_common import scoring
from prefilter_common.articles import Article, load_articles
from prefilter_common.scoring.scorer import Scorer

# Without importing it, which every process that collects the tests would do.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")]


def recipe():
    """The lines that are indented, from the comment ``# ray`` on."""
    return textwrap.dedent(scoring.__doc__[scoring.__doc__.index("    # ray\n") :])


def run_recipe(tmp_path, model, **replaced):
    """Run the recipe in a directory of its own with what is said there of PYTHONPATH; id -> score."""
    code = recipe()
    for old, new in {"/data/models/distilbert": str(model), **replaced}.items():
        assert old in code
        code = code.replace(old, new)
    code = f"import ray\nray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n{code}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = pyarrow.parquet.read_table(tmp_path / "scores").to_pylist()
    return {row["id"]: row["score"] for row in rows}


def test_the_recipe_gives_the_scorers_scores(tmp_path, with_onnx, data_dir):
    articles = load_articles(data_dir / "train.jsonl")
    rows = [{"id": a.id, "title": a.title, "content": a.content} for a in articles]
    rows[3]["title"] = None
    rows[5].pop("title")
    expected = [Article(row.get("title") or "", row["content"]) for row in rows]
    scores = Scorer.load(with_onnx).score(expected)
    (tmp_path / "in.jsonl").mkdir()  # files of a folder, so that there is work for both workers
    for part in range(4):
        write_jsonl(tmp_path / "in.jsonl" / f"{part}.jsonl", rows[part::4])
    found = run_recipe(tmp_path, with_onnx)
    assert found == pytest.approx({row["id"]: score for row, score in zip(rows, scores, strict=True)}, abs=1e-6)


def test_the_recipe_reads_parquet_in_which_no_article_has_a_title(tmp_path, with_onnx, data_dir):
    articles = load_articles(data_dir / "val.jsonl")
    table = pyarrow.table({
        "id": [a.id for a in articles], "title": [None] * len(articles), "content": [a.content for a in articles],
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    found = run_recipe(tmp_path, with_onnx, **{'read_json("in.jsonl", lines=True)': 'read_parquet("in.parquet")'})
    scores = Scorer.load(with_onnx).score([Article("", a.content) for a in articles])
    assert found == pytest.approx({a.id: score for a, score in zip(articles, scores, strict=True)}, abs=1e-6)
