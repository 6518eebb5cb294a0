"""Several seeds of one run, and soft labels, through the command."""

import json
import signal

import pytest
import torch
from conftest import call, write_jsonl
from safetensors.torch import load_file

import prefilter_common.training.run
import train_encoder
from prefilter_common.training import fine_tuning
from prefilter_common.training.progress import ProgressLog

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FLAGS = ["--max-train-samples", 24, "--max-val-samples", 16, "--epochs", 1, "--max-length", 64]
# What "auto" stands for depends on the processor.
FLAGS += ["--learning-rate", "1e-3", "--precision", "fp32"]
GOOD = {"eval_loss": 0.0, "eval_accuracy": 1.0, "eval_f1": 1.1, "eval_precision": 1.0, "eval_recall": 1.0}


@pytest.fixture(scope="module")
def train(tiny_models, data_dir):
    def run(output, *flags):
        return call(
            train_encoder,
            ["--model", tiny_models["minilm"], "--data-dir", data_dir, "--output", output, *FLAGS, *flags],
        )

    return run


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """The seeds 5, 6 and 7, each in a run of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (5, 6, 7):
        assert train(folder / str(seed), "--seed", seed, "--recipe", "lp-ft") == 0
    return folder


def read(model, name="training_metrics.json"):
    return json.loads((model / name).read_text(encoding="utf-8"))


def weights(model):
    return load_file(model / "model.safetensors")


def test_the_best_seed_is_kept_and_each_is_reported(train, alone, tmp_path, monkeypatch, capsys):
    expected = [read(alone / str(seed)) for seed in (5, 6, 7)]
    above_average = sum(row["eval_loss"] for row in expected) / 3 + 1e-6
    monkeypatch.setattr(prefilter_common.training.run, "validate", lambda *_: GOOD | {"eval_loss": above_average})
    monkeypatch.setattr(ProgressLog, "seconds", lambda self: 10.0)
    output = tmp_path / "m"
    assert train(output, "--seed", 5, "--seeds", 3, "--recipe", "lp-ft") == 0
    metrics = read(output)
    assert [row["seed"] for row in metrics["seeds"]] == [5, 6, 7]
    assert [row["eval_loss"] for row in metrics["seeds"]] == [row["eval_loss"] for row in expected]
    best = max(expected, key=lambda row: (row["eval_f1"], -row["eval_loss"]))
    assert metrics["train_seconds"] == 30.0
    assert metrics["eval_loss"] == best["eval_loss"] and metrics["kept"] == str(5 + expected.index(best))
    own = weights(alone / metrics["kept"])
    assert all(torch.equal(weight, own[name]) for name, weight in weights(output).items())
    err = capsys.readouterr().err
    assert "3 seeds | validation f1" in err and f"keeping seed {metrics['kept']}" in err
    assert "--seeds 3" in read(output, "run.json")["repeat"] and read(output, "run.json")["recipe"]["seed"] == 5
    assert f"The best of 3 runs, seed {metrics['kept']}; " in (output / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_best_student_is_the_one_with_the_lowest_log_loss(train, trained, tmp_path, monkeypatch):
    figures = {5: (0.9, 0.7), 6: (0.5, 0.3), 7: (0.6, 0.4)}
    fine_tune = fine_tuning.fine_tune

    def with_figures(checkpoint, data, recipe, saver):
        f1, log_loss = figures[recipe.seed]
        return fine_tune(checkpoint, data, recipe, saver) | {"eval_f1": f1, "eval_loss": log_loss}

    monkeypatch.setattr(fine_tuning, "fine_tune", with_figures)
    monkeypatch.setattr(prefilter_common.training.run, "validate", lambda *_: GOOD | {"eval_loss": 1.0})
    assert train(tmp_path / "m", "--teacher", trained / "tiny", "--layers", 1, "--seed", 5, "--seeds", 3) == 0
    assert read(tmp_path / "m")["kept"] == "6"


def test_the_mean_of_the_weights_is_kept_where_it_is_better_than_the_average(train, alone, tmp_path, monkeypatch):
    losses = [read(alone / str(seed))["eval_loss"] for seed in (5, 6, 7)]
    figures = GOOD | {"eval_f1": 0.0, "eval_loss": sum(losses) / 3 - 1e-9}  # worse than the best in either figure
    monkeypatch.setattr(prefilter_common.training.run, "validate", lambda *_: figures)
    output = tmp_path / "m"
    assert train(output, "--seed", 5, "--seeds", 3, "--recipe", "lp-ft") == 0
    assert read(output)["kept"] == "mean" and read(output)["eval_f1"] == 0.0
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "The mean of the weights of 3 runs; " in card and "| mean of the weights, threshold 0.5 | 0.000 " in card
    parts = [weights(alone / str(seed)) for seed in (5, 6, 7)]
    for name, weight in weights(output).items():
        torch.testing.assert_close(weight, sum(part[name] for part in parts) / 3)


def test_the_mean_is_judged_as_the_epochs_are(alone, data_dir):
    """``validate`` gives what training reports of the weights that it keeps."""
    from prefilter_common.articles import capped, load_articles
    from prefilter_common.models.checkpoints import load_checkpoint

    val = capped(load_articles(data_dir / "val.jsonl"), 16)
    figures = prefilter_common.training.run.validate(load_checkpoint(alone / "5"), val, 8)
    reported = read(alone / "5")
    assert figures == pytest.approx({key: reported[key] for key in figures}, abs=1e-5)


def test_a_run_of_several_seeds_continues_in_the_seed_where_it_stopped(train, tmp_path, monkeypatch, capsys):
    expected, output = tmp_path / "expected", tmp_path / "m"
    flags = ["--seed", 5, "--seeds", 2, "--batch-size", 8]
    assert train(expected, *flags) == 0
    begin = ProgressLog.on_step_begin

    def stop(self, args, state, control, **kwargs):
        if args.seed == 6 and state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLog, "on_step_begin", stop)
    capsys.readouterr()
    assert train(output, *flags) == 143
    assert "plus --resume continues after step 2" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(output, *flags, "--resume") == 0
    log = capsys.readouterr().err
    assert log.index("continuing after step 3") < log.index("seed 6") < log.index("continuing after step 2")
    assert read(output)["seeds"] == read(expected)["seeds"]
    assert (output / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def stop_at(monkeypatch, train, seed, output, *flags):
    """Stop a run in the second step of that seed."""
    begin = ProgressLog.on_step_begin

    def stop(self, args, state, control, **kwargs):
        if args.seed == seed and state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return begin(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressLog, "on_step_begin", stop)
        assert train(output, "--seed", 5, *flags) == 143


def test_a_run_is_not_continued_with_seeds_that_it_did_not_have(train, tmp_path, monkeypatch, capsys):
    for before, now, message in (
        ([], ["--seeds", 2], "the interrupted run had no --seeds; leave that out"),
        (["--seeds", 2], [], "the interrupted run had --seeds; pass the same"),
    ):
        output = tmp_path / f"m{len(before)}"
        stop_at(monkeypatch, train, 5, output, *before)
        capsys.readouterr()
        assert train(output, "--seed", 5, *now, "--resume") == 2
        assert message in capsys.readouterr().err
        assert train(output, "--seed", 5, *before, "--resume") == 0
        assert "continuing after step 2" in capsys.readouterr().err


def test_several_seeds_are_not_continued_from_another_first_one(train, tmp_path, monkeypatch, capsys):
    output, flags = tmp_path / "m", ["--seeds", 2]
    stop_at(monkeypatch, train, 6, output, *flags)
    capsys.readouterr()
    assert train(output, "--seed", 50, *flags, "--resume") == 2
    assert "the interrupted run has seed-5, seed-6, but no seed-50; pass its --seed" in capsys.readouterr().err
    assert train(output, "--seed", 5, *flags, "--resume") == 0


def test_what_an_earlier_job_left_of_later_seeds_is_not_continued(train, tmp_path, monkeypatch, capsys):
    output, two = tmp_path / "m", ["--seeds", 2]
    stop_at(monkeypatch, train, 6, output, *two)
    stop_at(monkeypatch, train, 5, output, *two, "--weight-decay", 0.02)
    assert train(output, "--seed", 5, *two, "--weight-decay", 0.02, "--resume") == 0


def scored(path, n, **fields):
    rows = [
        {"id": f"m{i}", "title": f"Between {i}", "content": f"Neither {i} nor {i * 7} " * 9, **fields} for i in range(n)
    ]
    write_jsonl(path, rows)
    return path


def test_articles_of_the_middle_are_trained_on(train, alone, tmp_path):
    middle = scored(tmp_path / "middle.jsonl", 10, commerce_score=5.5)
    output = tmp_path / "m"
    assert train(output, "--seed", 5, "--soft-labels", middle) == 0
    assert read(output)["train_articles"] == 34
    assert read(output, "run.json")["data"]["soft_labels"]["rows"] == 10
    assert train(tmp_path / "hard", "--seed", 5) == 0
    assert train(tmp_path / "soft", "--seed", 5, "--soft-labels") == 0
    hard, soft = weights(tmp_path / "hard"), weights(tmp_path / "soft")
    assert read(tmp_path / "soft")["train_articles"] == 24
    assert not torch.equal(hard["classifier.weight"], soft["classifier.weight"])


def test_soft_labels_need_a_score(train, tmp_path, capsys):
    middle = scored(tmp_path / "middle.jsonl", 3)
    assert train(tmp_path / "m", "--soft-labels", middle) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {middle}: 3 articles have no commerce_score, such as m0; add it, or delete them"
    )


def test_soft_labels_must_not_be_in_validation(train, data_dir, tmp_path, capsys):
    rows = [json.loads(line) for line in (data_dir / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    middle = tmp_path / "middle.jsonl"
    write_jsonl(middle, [{**rows[0], "id": "copied", "label": None, "commerce_score": 5}])
    assert train(tmp_path / "m", "--soft-labels", middle) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {middle}: with its articles in train, train and val overlap")
    assert message.endswith("delete them, or pass --allow-overlap") and not (tmp_path / "m").exists()
