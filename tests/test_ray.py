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


TO_PARQUET = {'read_json("in.jsonl", lines=True)': 'read_parquet("in.parquet")', '"scores"': '"of_parquet"'}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_onnx, data_dir):
    """The recipe as it stands, and then reading Parquet, in one cluster: what each read, and id -> score."""
    folder = tmp_path_factory.mktemp("ray")
    rows = [{"id": a.id, "title": a.title, "content": a.content} for a in load_articles(data_dir / "train.jsonl")]
    rows[3]["title"] = None
    rows[5].pop("title")
    (folder / "in.jsonl").mkdir()  # files of a folder, so that there is work for both workers
    for part in range(4):
        write_jsonl(folder / "in.jsonl" / f"{part}.jsonl", rows[part::4])
    untitled = [{"id": a.id, "title": None, "content": a.content} for a in load_articles(data_dir / "val.jsonl")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(untitled), folder / "in.parquet")
    code = "import ray\nray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
    for replaced in ({}, TO_PARQUET):
        code += replace_all(recipe(), {"/data/models/distilbert": str(with_onnx), **replaced})
    # With what the docstring says of PYTHONPATH.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name, read in (("scores", rows), ("of_parquet", untitled)):
        scores = pyarrow.parquet.read_table(folder / name).to_pylist()
        found[name] = read, {row["id"]: row["score"] for row in scores}
    return found


def replace_all(text, replaced):
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("name", ["scores", "of_parquet"])
def test_the_recipe_gives_the_scorers_scores(runs, with_onnx, name):
    """Of rows that lack a title too, and of Parquet in which none has one."""
    rows, found = runs[name]
    scores = Scorer.load(with_onnx).score([Article(row.get("title") or "", row["content"]) for row in rows])
    assert found == pytest.approx({row["id"]: score for row, score in zip(rows, scores, strict=True)}, abs=1e-6)
