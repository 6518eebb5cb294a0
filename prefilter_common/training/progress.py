"""What a training run reports: log lines that survive ``tail -f``, and ``training_metrics.json``."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefilter_common.statistics.metrics import threshold_metrics

log = logging.getLogger(__name__)


class ValidationFigures(TypedDict):
    """A model on the validation articles, at a threshold of 0.5 and a temperature of 1; the loss is the log loss."""

    eval_loss: float
    eval_accuracy: float
    eval_f1: float
    eval_precision: float
    eval_recall: float


class SeedRow(TypedDict):
    """One of several runs that differ in their seed alone."""

    seed: int
    eval_f1: float
    eval_loss: float
    best_epoch: float


class TrainingMetrics(ValidationFigures):
    """The content of ``training_metrics.json``: the best epoch's figures, the curve, the speed.

    Where the mean of several seeds' weights is kept, the figures are its own, epochs and curve those of the best seed.
    """

    epoch: float
    best_epoch: float
    curve: list[dict[str, float | None]]  # the trainer's log
    train_articles: int
    val_articles: int
    steps: int
    train_seconds: float  # of all seeds together; steps and their speed are one run's
    median_step_seconds: float
    train_articles_per_second: float  # a student's passages of an article are not counted
    effective_batch_size: int
    parameters: int
    trainable_parameters: int
    precision: str
    peak_memory_mib: int
    peak_gpu_memory_mib: int | None
    seeds: NotRequired[list[SeedRow]]
    kept: NotRequired[str]  # a seed, or "mean"


class ProgressLog(TrainerCallback):
    """One line every few steps; stops the run when the loss is not a number.

    Args:
        seconds: what training took before this run continued it.
        step_seconds: the same, per step.
    """

    def __init__(self, seconds: float = 0.0, step_seconds: Sequence[float] = ()):
        self.earlier_seconds, self._step_seconds = seconds, list(step_seconds)
        self._on_gpu: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # start and end of steps not yet read

    def seconds(self) -> float:
        """The duration of training so far."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @property
    def step_seconds(self) -> list[float]:
        """The duration of each step; on a GPU this waits for the last one."""
        for start, end in self._on_gpu:
            end.synchronize()
            self._step_seconds.append(start.elapsed_time(end) / 1000)
        self._on_gpu = []
        return self._step_seconds

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        f1 = [entry["eval_f1"] for entry in state.log_history if "eval_f1" in entry]
        self.f1 = f"{f1[-1]:.3f}" if f1 else "–"
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.mark = (state.global_step, self.started)
        self.step_articles = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_started = _now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        end = _now()
        if isinstance(end, float):
            self._step_seconds.append(end - self.step_started)
        else:  # read later: waiting for the GPU after each step would leave it idle until the next one is queued
            self._on_gpu.append((self.step_started, end))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **_: Any
    ) -> None:
        if "loss" not in logs or not state.is_world_process_zero:
            return
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"the loss is {logs['loss']} at step {state.global_step}")
        now, (last_step, last_time) = time.perf_counter(), self.mark
        rate = (state.global_step - last_step) * self.step_articles / (now - last_time)
        done = state.global_step - self.first_step
        left = (now - self.started) / done * (state.max_steps - state.global_step) / 60
        share = state.global_step / state.max_steps
        log.info(
            f"step {state.global_step}/{state.max_steps} ({share:.0%}) | loss {logs['loss']:.4f} | f1 {self.f1} | "
            f"{rate:.0f} articles/s | eta {left:.1f} min"
        )
        self.mark = (state.global_step, now)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict, **_: Any
    ) -> None:
        self.f1 = f"{metrics['eval_f1']:.3f}"
        if state.is_world_process_zero:
            log.info(
                f"epoch {state.epoch:.0f} | validation f1 {self.f1} | precision {metrics['eval_precision']:.3f} | "
                f"recall {metrics['eval_recall']:.3f} | loss {metrics['eval_log_loss']:.4f}"
            )
        self.mark = (state.global_step, time.perf_counter())


def _now() -> Any:
    """Seconds on a CPU; on a GPU an event, which is reached when what was queued before it is done."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def epoch_figures(prediction: EvalPrediction) -> dict[str, float]:
    """What the trainer logs of the validation articles after an epoch, from their logits and labels."""
    logits = prediction.predictions.astype(np.float64)
    # The trainer's own loss counts twice the articles that pad the last batch of several processes.
    log_loss = np.logaddexp(logits[:, 0], logits[:, 1]) - logits[np.arange(len(logits)), prediction.label_ids]
    # Commerce where its logit is the larger: a probability of 0.5 or more.
    (metrics,) = threshold_metrics(prediction.label_ids, logits[:, 1] - logits[:, 0], [0.0])
    return {
        "log_loss": float(log_loss.mean()),
        "accuracy": metrics["accuracy"],
        "f1": metrics["f1"],
        "precision": metrics["precision"],
        "recall": metrics["recall"],
    }


def curve_entry(entry: dict) -> dict:
    """An entry of the trainer's log as the curve keeps it, without numbers that JSON has no form for."""
    if "eval_log_loss" in entry:
        entry = {**entry, "eval_loss": entry["eval_log_loss"]}
        del entry["eval_log_loss"]
    return {key: value if math.isfinite(value) else None for key, value in entry.items()}
