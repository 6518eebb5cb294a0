"""What a training run logs: whole lines that survive ``tail -f``."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)


class ProgressLog(TrainerCallback):
    """One line every few steps; stops the run when the loss is not a number.

    ``step_seconds`` collects the duration of each step.

    Args:
        seconds: what training took before this run continued it.
        step_seconds: the same, per step.
    """

    def __init__(self, seconds: float = 0.0, step_seconds: Sequence[float] = ()):
        self.earlier_seconds, self.step_seconds = seconds, list(step_seconds)

    def seconds(self) -> float:
        """The duration of training so far."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        f1 = [entry["eval_f1"] for entry in state.log_history if "eval_f1" in entry]
        self.f1 = f"{f1[-1]:.3f}" if f1 else "–"
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.mark = (state.global_step, self.started)
        self.step_articles = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.step_seconds.append(time.perf_counter() - self.step_started)

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
