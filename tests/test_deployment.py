"""A deployment: a virtual environment with numpy, tokenizers and one engine, and a bundle made elsewhere."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import venv
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, call
from packaging.requirements import Requirement

from prefilter_common.files import write_json
from prefilter_common.models.bundle import pack, unpack
from prefilter_common.models.contract import Stage
from prefilter_common.models.directory import FIRST_STAGE_FILE, RECOMMENDATION_FILE, read_contract, write_contract
from prefilter_common.scoring import streaming
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName
from prefilter_common.scoring.stages.first_stage import TABLE_BITS, FirstStage

pytestmark = pytest.mark.slow

# Engine -> megabytes that its environment may take.
ENGINES = {"onnxruntime-int8": 250, "openvino-fp32": 350}


def installed_by(*names):
    """What pip would install for these: the distributions of this environment that they need, and those in turn."""
    found, queue = {}, list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            needed = map(Requirement, found[name].requires or [])
            queue += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module", params=ENGINES)
def deployed(request, tmp_path_factory, trained):
    """(python, model directory, whether the environment's packages take no more than they may)"""
    name = EngineName.parse(request.param)
    pytest.importorskip(name.library)
    folder = tmp_path_factory.mktemp(str(name))
    model = shutil.copytree(trained / "tiny", folder / "tiny")
    convert(model, name, None)
    ones = np.ones(1 << TABLE_BITS, np.float32)
    first = FirstStage(0.1 * ones, ones, np.ones(3000, dtype=bool), 0.0)
    (model / FIRST_STAGE_FILE).write_bytes(first.content())
    # It decides texts of more than about 45 tokens.
    stage = Stage("linear", 1.0, 0.0, 0.68, coverage=0.9, sha256=hashlib.sha256(first.content()).hexdigest())
    write_contract(model, replace(read_contract(model), stages=(stage,)))
    write_json(model / RECOMMENDATION_FILE, {"engine": str(name), "max_length": 64, "stages": ["first stage"]})
    pack(model, folder / "tiny.tar")
    unpack(folder / "tiny.tar", folder / "deployed")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    size = 0
    for distribution in installed_by("numpy", "tokenizers", name.library).values():
        files = [(path, path.locate()) for path in distribution.files if ".." not in path.parts]
        for top in {path.parts[0] for path, _ in files} - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
        size += sum(path.stat().st_size for _, path in files if path.is_file())
    print(f"{name}: {size / 1e6:.0f} MB")
    return folder / "venv" / "bin" / "python", folder / "deployed", size / 1e6 < ENGINES[str(name)]


def run(python, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([python, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)


def test_the_command_scores_as_where_the_model_was_made(deployed, trained, data_dir, tmp_path):
    python, model, _ = deployed
    source, out, expected = data_dir / "test.jsonl", tmp_path / "out.jsonl", tmp_path / "expected.jsonl"
    done = run(python, "-m", "prefilter_common.scoring", model, source, out)
    assert done.returncode == 0, done.stderr
    engine = json.loads(done.stdout)["engine"]
    assert f"{model}: {engine}" in done.stderr and engine in ENGINES
    assert call(streaming, [model, source, expected]) == 0
    both = [
        [json.loads(line)["score"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (out, expected)
    ]
    np.testing.assert_allclose(*both, atol=2e-6)


def test_it_is_small_and_loads_nothing_else(deployed):
    python, model, is_small = deployed
    script = f"""
import json, sys
from prefilter_common.articles import Article
from prefilter_common.scoring import Scorer
score = Scorer.load({str(model)!r}).score([Article("Half price", "Order now")])
heavy = {{"torch", "transformers", "sklearn", "scipy", "psutil"}}
print(json.dumps([score.tolist(), sorted(heavy & set(sys.modules))]))
"""
    done = run(python, "-c", script)
    assert done.returncode == 0, done.stderr
    (score,), loaded = json.loads(done.stdout)
    assert 0 < score < 1 and loaded == []
    assert is_small
    missing = run(python, "-c", "import torch")
    assert "No module named 'torch'" in missing.stderr
