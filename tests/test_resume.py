"""A run that was stopped and continued ends as one that was not."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call
from safetensors.torch import load_file, save_file

import train_encoder
import train_qwen_lora
from prefilter_common.training.interruption.saver import CheckpointSaver
from prefilter_common.training.progress import ProgressLog
from prefilter_common.training.provenance import launcher

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SCRIPTS = {
    "classic": (train_encoder, "minilm", "model"),
    "lp-ft": (train_encoder, "minilm", "model"),
    "lora": (train_qwen_lora, "qwen", "adapter_model"),
}
# 42 articles: the last batch of an epoch is incomplete. Six steps an epoch, three epochs.
FLAGS = ["--max-train-samples", 42, "--epochs", 3, "--max-length", 64, "--learning-rate", "1e-3", "--precision", "fp32"]
PLAIN, ACCUMULATED = ["--batch-size", 8], ["--batch-size", 4, "--gradient-accumulation-steps", 2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def train(tiny_models, data_dir):
    """Call a training script on the tiny data; returns its exit code."""

    def run(kind, output, *flags):
        script, family, _ = SCRIPTS[kind]
        recipe = ["--recipe", kind] if script is train_encoder else []
        base = ["--model", tiny_models[family], "--data-dir", data_dir, "--output", output]
        return call(script, [*base, *FLAGS, *recipe, *flags])

    return run


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    """(kind, flags) -> what an uninterrupted run ends with; each is made once."""
    folder, made = tmp_path_factory.mktemp("uninterrupted"), {}

    def result(kind, flags):
        key = (kind, *map(str, flags))
        if key not in made:
            output = folder / str(len(made))
            assert train(kind, output, *flags) == 0
            made[key] = outcome(output, kind)
        return made[key]

    return result


def outcome(output, kind):
    """What must be the same: the bytes of weights and predictions, and the metrics without their times."""
    metrics = json.loads((output / "training_metrics.json").read_text(encoding="utf-8"))
    for name in [name for name in metrics if "second" in name or "memory" in name]:
        del metrics[name]
    metrics["curve"] = [
        {name: value for name, value in entry.items() if "second" not in name and "runtime" not in name}
        for entry in metrics["curve"]
        if "eval_f1" in entry
    ]
    weights = (output / f"{SCRIPTS[kind][2]}.safetensors").read_bytes()
    return weights, (output / "validation_predictions.jsonl").read_bytes(), metrics


@pytest.fixture
def stop_at(monkeypatch):
    """Let a signal arrive during the given step, or during the evaluation after it."""
    original_step, original_evaluation = ProgressLog.on_step_begin, ProgressLog.on_evaluate

    def arrange(step, signum=signal.SIGTERM, event="on_step_begin"):
        original = original_step if event == "on_step_begin" else original_evaluation

        def hook(self, args, state, control, **kwargs):
            if state.global_step == step - (event == "on_step_begin"):
                signal.raise_signal(signum)
            return original(self, args, state, control, **kwargs)

        monkeypatch.setattr(ProgressLog, event, hook)

    yield arrange


def hidden(output):
    return sorted(path.name for path in output.parent.iterdir() if path.name.startswith("."))


def checkpoints(output):
    return sorted(path.name for path in output.parent.glob(f".{output.name}.checkpoints*/checkpoint-*"))


STOPS = [
    (1, signal.SIGTERM, "on_step_begin"),
    (9, signal.SIGINT, "on_step_begin"),
    (12, signal.SIGHUP, "on_step_begin"),  # the last step of an epoch
    (18, signal.SIGTERM, "on_evaluate"),  # after the last epoch
]
STOPPED = [("plain", kind, *stop) for kind in SCRIPTS for stop in STOPS]
STOPPED += [("accumulated", kind, *stop) for kind in SCRIPTS for stop in STOPS if kind == "classic" or stop[0] == 9]


@pytest.mark.parametrize(("batches", "kind", "step", "signum", "event"), STOPPED)
def test_a_stopped_run_continues_to_the_same_result(
    train, uninterrupted, stop_at, monkeypatch, tmp_path, capsys, batches, kind, step, signum, event
):
    output, flags = tmp_path / "m", PLAIN if batches == "plain" else ACCUMULATED
    stop_at(step, signum, event)
    assert train(kind, output, *flags) == CODES[signum]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted: the same command plus --resume continues after step {step}"
    )
    assert not output.exists() and f"checkpoint-{step}" in checkpoints(output) and len(checkpoints(output)) <= 2
    monkeypatch.undo()
    assert train(kind, output, *flags, "--resume") == 0
    assert f"continuing after step {step}" in capsys.readouterr().err
    assert outcome(output, kind) == uninterrupted(kind, flags)
    assert hidden(output) == []


def test_early_stopping_remembers(train, stop_at, monkeypatch, tmp_path):
    """At this rate nothing is learnt, so training stops after three epochs of nine."""
    flags = ["--epochs", 9, "--learning-rate", "1e-9", "--batch-size", 8]
    assert train("classic", tmp_path / "whole", *flags) == 0
    expected = outcome(tmp_path / "whole", "classic")
    assert (expected[2]["epoch"], expected[2]["best_epoch"], expected[2]["steps"]) == (3.0, 1.0, 18)
    for name, step, event in (("within", 15, "on_step_begin"), ("after", 18, "on_evaluate")):
        before, after = (tmp_path / name / place / "m" for place in ("before", "after"))
        stop_at(step, event=event)
        assert train("classic", before, *flags) == 143
        assert checkpoints(before) == sorted([f"checkpoint-{step}", "checkpoint-6"])  # the newest and the best
        monkeypatch.undo()
        before.parent.rename(after.parent)
        assert train("classic", after, *flags, "--resume") == 0
        assert outcome(after, "classic") == expected


def test_other_settings_and_data_are_refused_by_name(
    train, stop_at, monkeypatch, tmp_path, capsys, data_dir, tiny_models
):
    output = tmp_path / "m"
    stop_at(3)
    assert train("lora", output, *PLAIN) == 143
    monkeypatch.undo()
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    lines = (data / "val.jsonl").read_text(encoding="utf-8").splitlines()
    (data / "val.jsonl").write_text("\n".join(reversed(lines)), encoding="utf-8")
    for flags, words in [
        (["--learning-rate", "2e-3"], "--learning-rate was 0.001 and is 0.002"),
        (["--epochs", 4, "--lora-rank", 8], "--epochs was 3 and is 4; --lora-rank was 16 and is 8"),
        (["--max-train-samples", 40], "--max-train-samples was 42 and is 40"),
        (["--batch-size", 16], "the number of articles per optimiser step was 8 and is 16"),
        (["--data-dir", data], "val.jsonl has changed"),
        (["--seed", 7], "--seed was 42 and is 7; the base model has changed"),  # the new head is the seed's
    ]:
        assert train("lora", output, *PLAIN, *flags, "--resume") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: --resume cannot continue") and words in line, line
        assert checkpoints(output) == ["checkpoint-3"]


def other_weights(base):
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})


def other_vocabulary(base):
    record = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = record["model"]["vocab"]
    pieces[-1][0], pieces[-2][0] = pieces[-2][0], pieces[-1][0]
    (base / "tokenizer.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize("change", [other_weights, other_vocabulary])
def test_another_base_model_under_the_same_name_is_refused(
    stop_at, monkeypatch, tmp_path, capsys, data_dir, tiny_models, change
):
    base = tmp_path / "base"
    shutil.copytree(tiny_models["minilm"], base)
    flags = ["--model", base, "--data-dir", data_dir, "--output", tmp_path / "m", *FLAGS, *PLAIN]
    stop_at(3)
    assert call(train_encoder, flags) == 143
    monkeypatch.undo()
    change(base)
    assert call(train_encoder, [*flags, "--resume"]) == 2
    assert "data: the base model has changed; restore" in capsys.readouterr().err


def test_incomplete_checkpoints_are_skipped(train, uninterrupted, stop_at, monkeypatch, tmp_path, capsys):
    def cut(folder):
        (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:-100])

    def zero(folder):
        (folder / "optimizer.pt").write_bytes(bytes((folder / "optimizer.pt").stat().st_size))

    def shorten(folder):
        (folder / "checkpoint.json").write_text("{", encoding="utf-8")

    def nest(folder):
        (folder / "checkpoint.json").write_text('{"a":' * 100_000, encoding="utf-8")

    for i, spoil in enumerate([cut, zero, shorten, nest, lambda folder: (folder / "trainer_state.json").unlink()]):
        output = tmp_path / str(i)
        stop_at(9)
        assert train("classic", output, *PLAIN) == 143
        monkeypatch.undo()
        assert checkpoints(output) == ["checkpoint-6", "checkpoint-9"]
        folder = tmp_path / f".{i}.checkpoints.partial"
        spoil(folder / "checkpoint-9")
        (folder / "checkpoint-100").mkdir()  # the library would take the highest number
        assert train("classic", output, *PLAIN, "--resume") == 0
        assert "continuing after step 6" in capsys.readouterr().err
        assert outcome(output, "classic") == uninterrupted("classic", PLAIN) and hidden(output) == []


def test_a_checkpoint_of_an_earlier_version_is_continued(train, uninterrupted, stop_at, monkeypatch, tmp_path, capsys):
    """It recorded the size of each file."""
    stop_at(9)
    assert train("classic", tmp_path / "m", *PLAIN) == 143
    monkeypatch.undo()
    for folder in (tmp_path / ".m.checkpoints.partial").glob("checkpoint-*"):
        record = json.loads((folder / "checkpoint.json").read_bytes())
        record["files"] = {name: (folder / name).stat().st_size for name in record["files"]}
        (folder / "checkpoint.json").write_text(json.dumps(record), encoding="utf-8")
    assert train("classic", tmp_path / "m", *PLAIN, "--resume") == 0
    assert "continuing after step 9" in capsys.readouterr().err
    assert outcome(tmp_path / "m", "classic") == uninterrupted("classic", PLAIN)


def test_without_a_checkpoint_resume_starts_from_scratch_and_without_resume_it_is_discarded(
    train, uninterrupted, stop_at, monkeypatch, tmp_path, capsys
):
    output = tmp_path / "m"
    assert train("classic", output, *PLAIN, "--resume") == 0
    assert "there is no checkpoint to continue: starting from scratch" in capsys.readouterr().err.splitlines()
    assert outcome(output, "classic") == uninterrupted("classic", PLAIN)
    stop_at(9)
    before = (output / "run.json").read_bytes()
    assert train("classic", output, *PLAIN, "--overwrite") == 143
    assert (output / "run.json").read_bytes() == before
    monkeypatch.undo()
    left = checkpoints(output)
    assert train("classic", output, *PLAIN, "--overwrite", "--layers", "99") == 2
    assert "--layers 99: the base model has only" in capsys.readouterr().err
    assert checkpoints(output) == left != []  # a command that is refused loses nothing
    assert train("classic", output, *PLAIN, "--overwrite") == 0
    line = "discarding the checkpoint of an interrupted run at step 9; --resume would have continued it"
    assert line in capsys.readouterr().err.splitlines()
    assert outcome(output, "classic") == uninterrupted("classic", PLAIN) and hidden(output) == []


def test_checkpoints_every_few_minutes_take_bounded_space(train, uninterrupted, monkeypatch, tmp_path):
    """A failure, which saves nothing itself, loses only the steps since the last checkpoint."""
    output, seen = tmp_path / "m", []
    original = ProgressLog.on_step_begin

    def fail(self, args, state, control, **kwargs):
        seen.append(checkpoints(output))
        if state.global_step == 10:
            raise OSError("the machine goes down")
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLog, "on_step_begin", fail)
    assert train("classic", output, *PLAIN, "--checkpoint-minutes", "1e-6") == 1
    assert seen[1] == ["checkpoint-1"] and max(map(len, seen)) == 2 and "checkpoint-10" in seen[-1]
    monkeypatch.undo()
    assert train("classic", output, *PLAIN, "--resume") == 0
    assert outcome(output, "classic") == uninterrupted("classic", PLAIN)


def test_a_second_signal_ends_at_once(monkeypatch, tmp_path):
    saver = CheckpointSaver(tmp_path, {}, minutes=10, start=None)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), saver.signals_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a launcher's copy
        monkeypatch.setattr("prefilter_common.training.interruption.saver.SAME_SIGNAL_SECONDS", -1)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still running")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_signal_that_nohup_has_ignored_stays_ignored(tmp_path):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with CheckpointSaver(tmp_path, {}, minutes=10, start=None).signals_wait():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_divergence_is_one_line_and_keeps_the_last_good_checkpoint(train, monkeypatch, tmp_path, capsys):
    original = ProgressLog.on_step_end

    def diverge(self, args, state, control, model, **kwargs):
        if state.global_step == 8:
            next(model.parameters()).data.fill_(math.nan)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLog, "on_step_end", diverge)
    output = tmp_path / "m"
    assert train("classic", output, *PLAIN, "--checkpoint-minutes", "1e-6") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the weights are not finite after step 8: start from scratch with a lower --learning-rate or "
        "--precision fp32; the same settings would diverge again, and so would --resume after step 7, whose checkpoint "
        "is kept"
    )
    assert checkpoints(output) == ["checkpoint-6", "checkpoint-7"]


def test_a_rate_that_diverges_from_the_start_is_one_line(train, tmp_path, capsys):
    assert train("classic", tmp_path / "m", *PLAIN, "--learning-rate", "1e38") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: the ") and line.endswith("the same settings would diverge again")
    assert list(tmp_path.iterdir()) == []


def test_exhausted_gpu_memory_names_numbers_and_flags_and_the_split_batch_continues(
    train, monkeypatch, tmp_path, capsys
):
    original = ProgressLog.on_step_begin

    def exhaust(self, args, state, control, **kwargs):
        if state.global_step == 7:
            monkeypatch.setattr("torch.cuda.is_available", lambda: True)
            monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 15.5 * 2**30)
            monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (0, 16 * 2**30))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLog, "on_step_begin", exhaust)
    output = tmp_path / "m"
    assert train("classic", output, *PLAIN) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the GPU's memory does not hold a batch of 8 articles of up to 64 tokens (15.5 of 16.0 GiB allocated at "
        "the peak): pass --batch-size 4 --gradient-accumulation-steps 2 for the same effective batch, or a smaller "
        "--max-length; the same command plus --resume continues after step 6"
    )
    monkeypatch.undo()
    assert train("classic", output, *ACCUMULATED, "--resume") == 0


@pytest.mark.parametrize("kind", ["labels", "weighted", "student"])
def test_a_split_batch_is_the_same_effective_batch(tmp_path, data_dir, without_dropout, trained, kind):
    """Also of a loss that is not the model's own."""
    curves = []
    for batch, steps in ((8, 1), (4, 2), (2, 4)):
        output = tmp_path / str(batch)
        flags = ["--model", without_dropout, "--data-dir", data_dir, "--output", output, "--epochs", 2]
        flags += ["--max-length", 64, "--precision", "fp32", "--learning-rate", "1e-3", "--batch-size", batch]
        flags += {"weighted": ["--cost-of-blocking", 5], "student": ["--teacher", trained / "tiny"]}.get(kind, [])
        assert call(train_encoder, [*flags, "--gradient-accumulation-steps", steps]) == 0
        curve = json.loads((output / "training_metrics.json").read_text(encoding="utf-8"))["curve"]
        curves.append([entry["loss"] for entry in curve if "loss" in entry])
    assert len(curves[0]) == (16 if kind == "student" else 12)
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_recorded_command_repeats_the_run(train, monkeypatch, tmp_path, kind):
    output = tmp_path / "it's a model"
    script = SCRIPTS[kind][0]
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
    assert train(kind, output, *PLAIN) == 0
    run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    words = shlex.split(run["repeat"])
    assert words[:2] == ["python", f"{script.__name__}.py"] and "'" in run["command"]
    assert words[words.index("--warmup-ratio") + 1] == "0.1"  # a default
    assert words[words.index("--precision") + 1] == "fp32" and "--resume" not in words
    assert run["base_model"]["name"] == words[words.index("--model") + 1] and len(run["base_model"]["sha256"]) == 64
    if kind == "lora":  # verbatim, in a shell, beside the model that it repeats
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(run["repeat"], shell=True, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert call(script, words[2:]) == 0
    assert outcome(tmp_path / "it's a model-repeat", kind) == outcome(output, kind)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "python"),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "python"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun --nproc_per_node=2"),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, "torchrun --nnodes=2 --nproc_per_node=4"),
    ],
)
def test_the_command_to_repeat_starts_the_same_processes(monkeypatch, env, words):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert " ".join(launcher()) == words
