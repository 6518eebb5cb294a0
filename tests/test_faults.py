"""Whatever the file system does and whenever the process is killed: old, new or absent, one line, and it runs again."""

import json
import shutil

import numpy as np
import pytest
from conftest import FILES, TRAIN_FLAGS, call
from faults import Killed, current_plan, faults
from malformed import snapshot

import benchmark_inference
import evaluate_models
import train_encoder
from prefilter_common import outputs
from prefilter_common.models.checkpoints import load_checkpoint
from prefilter_common.outputs import kept_directory, new_directory
from prefilter_common.scoring import rows, streaming
from prefilter_common.scoring.engines import conversion
from prefilter_common.scoring.engines.conversion import is_current
from prefilter_common.training.interruption.resume import complete_checkpoints

ERRORS = ["ENOSPC", "EIO", "EACCES", Killed]
# Where a run takes a second, the three errors take turns, so that each step fails in one way and is killed in another.
IN_TURN = {"ENOSPC": (1, 3), "EIO": (2, 3), "EACCES": (3, 3), Killed: (1, 1)}


def every_step(folder, error, run, prepare=lambda: None, steps=(1, 1)):
    """Call ``run`` with the first step failing, the second ...; yield after each until no step is left.

    Args:
        steps: the first step, and how many further each next one is.
    """
    for step in range(steps[0], 500, steps[1]):
        prepare()
        with faults(folder, step, error) as plan:
            outcome = run()
        if not plan.reached:
            assert step > 3 and outcome == 0
            return
        yield outcome
    raise AssertionError("it never ends")


def visible(folder):
    return {name: found for name, found in snapshot(folder).items() if not name.startswith(".")}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", ERRORS)
def test_a_directory_is_old_or_new_or_absent(tmp_path, monkeypatch, error, existing, exchange):
    if not exchange:
        monkeypatch.setattr(outputs, "_exchange", lambda first, second: False)

    def save(content):
        with new_directory(tmp_path / "m", overwrite=True) as partial:
            (partial / "a").write_text(content)
            (partial / "b").write_text(content)

    def run():
        if existing:
            save("old")
        else:
            shutil.rmtree(tmp_path / "m", ignore_errors=True)
        try:
            with faults(tmp_path, step, error) as plan:
                save("new")
        except (Exception, Killed):
            pass
        return plan.reached

    for step in range(1, 100):
        reached = run()
        found = {path.name: path.read_text() for path in (tmp_path / "m").glob("*")}
        whole = [{"a": text, "b": text} for text in ("old", "new")]
        # Without the system's exchange both are complete under hidden names for a moment.
        gone = not found and (not existing or (not exchange and (tmp_path / ".m.old" / "b").read_text() == "old"))
        assert found in whole or gone, step
        if not reached:
            break
        recovered = tmp_path / ".m.old"
        if not found and recovered.exists():
            with pytest.raises(outputs.InputError, match="already exists"), new_directory(tmp_path / "m"):
                pass
            assert (tmp_path / "m" / "a").read_text() in ("old", "new")
        save("again")
        assert {path.name for path in tmp_path.iterdir()} == {"m"}
    assert 5 < step < 100


@pytest.fixture
def quick_training(monkeypatch):
    """Training itself is not what is tested: its last step, with the model as it is."""
    metrics = {"train_articles": 1, "val_articles": 1, "best_epoch": 1, "eval_f1": 0.5, "eval_precision": 0.5}
    metrics |= {"eval_recall": 0.5, "eval_accuracy": 0.5, "train_seconds": 1, "train_articles_per_second": 1}
    monkeypatch.setattr("prefilter_common.training.fine_tuning.fine_tune", lambda *args, **kwargs: metrics)


def check_end(code, capsys, row="error: "):
    """One line for a failure, no traceback; a failure where nothing depends on it may pass.

    Args:
        row: how the line of a model that cannot be evaluated begins.
    """
    err = capsys.readouterr().err
    assert "Traceback" not in err
    if code != "killed":
        assert code in (0, 1, 2)
        assert sum(line.startswith(("error: ", row)) for line in err.splitlines()) == (code != 0), err


def command(script, argv):
    def run():
        try:
            return call(script, argv)
        except Killed:
            return "killed"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_training(tmp_path, tiny_encoder, data_dir, quick_training, capsys, error):
    run = command(train_encoder, ["--model", tiny_encoder, "--data-dir", data_dir, "--output", tmp_path / "m",
                                  "--max-val-samples", "4", "--overwrite", "--recipe", "classic",
                                  *TRAIN_FLAGS])  # fmt: skip
    assert run() == 0
    for code in every_step(tmp_path, error, run, steps=IN_TURN[error]):
        check_end(code, capsys)
        assert {path.name for path in (tmp_path / "m").iterdir()} == FILES
        json.loads((tmp_path / "m" / "run.json").read_text(encoding="utf-8"))
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


@pytest.mark.slow
def test_training_that_is_killed_while_it_writes_checkpoints_continues(tmp_path, tiny_encoder, data_dir):
    output, checkpoints = tmp_path / "m", tmp_path / ".m.checkpoints.partial"
    flags = ["--model", tiny_encoder, "--data-dir", data_dir, "--output", output, *TRAIN_FLAGS]
    flags += ["--max-train-samples", "8", "--max-val-samples", "4", "--checkpoint-minutes", "1e-6"]
    run, resume = command(train_encoder, flags), command(train_encoder, [*flags, "--resume"])
    assert run() == 0
    expected = (output / "model.safetensors").read_bytes()
    complete = 0
    for code in every_step(checkpoints, Killed, run, lambda: shutil.rmtree(output), (1, 4)):
        assert code == "killed"
        complete += bool(complete_checkpoints(checkpoints))
        assert output.exists() or resume() == 0
        assert (output / "model.safetensors").read_bytes() == expected
    assert complete > 3 and {path.name for path in tmp_path.iterdir()} == {"m"}


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_evaluation(tmp_path, trained, data_dir, capsys, error, monkeypatch):
    shutil.copytree(trained, tmp_path / "models")
    flags = ["--models-dir", tmp_path / "models", "--test-data", data_dir / "test.jsonl", "--latency-samples", "1"]
    run = command(evaluate_models, [*flags, "--output", tmp_path / "results"])
    monkeypatch.setattr("prefilter_common.evaluation.run.time_single_articles", lambda *rest: np.ones(1))
    assert run() == 0
    expected = visible(tmp_path).keys()
    for code in every_step(tmp_path, error, run, steps=IN_TURN[error]):
        check_end(code, capsys, "tiny: ")
        found = {name for name in visible(tmp_path) if not name.split("/")[-1].startswith(".")}
        assert found == expected
        for name in found:
            if name.endswith(".json"):
                json.loads((tmp_path / name).read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "results/evaluation_results.json").read_text(encoding="utf-8"))["tiny"]["f1"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_scoring(tmp_path, trained, data_dir, capsys, error, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 10)
    folder = tmp_path / "out"
    run = command(streaming, [trained / "tiny", data_dir / "train.jsonl", folder / "scores.jsonl"])
    assert run() == 0
    complete = (folder / "scores.jsonl").read_bytes()

    for code in every_step(tmp_path, error, run, lambda: shutil.rmtree(folder)):
        check_end(code, capsys)
        output = folder / "scores.jsonl"
        assert not output.exists() or output.read_bytes() == complete
        if not output.exists():
            assert run() == 0 and output.read_bytes() == complete


@pytest.fixture(scope="module")
def exported_once(trained, tmp_path_factory):
    """``to_onnxruntime`` of the tiny model: its files are only written, in as many steps as it takes to make them.

    Where one of those steps is to fail, they are made.
    """
    pytest.importorskip("onnxruntime")
    folder, real = tmp_path_factory.mktemp("exported"), conversion.to_onnxruntime
    with faults(folder, 500, Killed) as plan, conversion._quiet():
        details = real(load_checkpoint(trained / "tiny"), folder, False, None, ())
    n_steps, files = plan.count, {path.name: path.read_bytes() for path in folder.iterdir()}
    assert n_steps > len(files) > 1

    def export(checkpoint, partial, *rest):
        plan = current_plan()
        if plan and plan.count < plan.step <= plan.count + n_steps:
            return real(checkpoint, partial, *rest)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if plan:
            plan.count += n_steps - len(files)
        return details

    return export


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_benchmark(tmp_path, trained, data_dir, quick_benchmark, exported_once, capsys, error, monkeypatch):
    monkeypatch.setattr(conversion, "to_onnxruntime", exported_once)
    monkeypatch.setattr("prefilter_common.benchmark.run.operations", lambda engine: lambda shape: 1.0)
    # Drawn in memory, where no step can fail.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, image, **settings: image.write(b"drawn"))
    flags = ["--test-data", data_dir / "test.jsonl", "--n-samples", "2", "--rounds", "1", "--no-stages"]
    flags += ["--engines", "onnxruntime-fp32", "--model", tmp_path / "tiny", "--output", tmp_path / "results"]
    run = command(benchmark_inference, flags)

    def prepare():
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        shutil.copytree(trained / "tiny", tmp_path / "tiny")

    for number, code in enumerate(every_step(tmp_path, error, run, prepare, IN_TURN[error])):
        check_end(code, capsys)
        folder = tmp_path / "tiny" / "onnxruntime-fp32"
        assert not folder.exists() or is_current(folder)
        for path in tmp_path.rglob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        if number % 5 == 0:  # each costs a second run
            assert run() == 0 and is_current(folder)


def test_kept_directories_follow_no_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "rows.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(outputs.InputError, match="is a link, or contains one"), kept_directory(tmp_path / "out"):
        pass
    (tmp_path / ".new.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(outputs.InputError, match="cannot be created"), new_directory(tmp_path / "new"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
