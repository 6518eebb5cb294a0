"""When a checkpoint is saved, and what makes it complete."""

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefilter_common.errors import Stopped
from prefilter_common.files import parse_json, sha256_of, write_json
from prefilter_common.processes import is_main_process, process_count, wait_for_all
from prefilter_common.training.acceleration import return_freed_memory
from prefilter_common.training.interruption.resume import (
    RECORD_FILE,
    CheckpointRecord,
    discard_checkpoints,
)
from prefilter_common.training.progress import ProgressLog

# A terminal and a launcher may each send the same signal; only a later one is the user's second.
SAME_SIGNAL_SECONDS = 2.0


class CheckpointSaver(TrainerCallback):
    """Saves a checkpoint every few minutes and when a signal asks the run to stop; the trainer itself, once an epoch.

    Keeps the newest checkpoint and that of the best epoch.

    Args:
        folder: where the trainer writes its checkpoints.
        settings: what a run must have in common with this one to continue it, by the name that a message gives it.
        minutes: time between checkpoints.
        start: the checkpoint that this run continues.
        stale: those of earlier runs, which are deleted when this one begins to train.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], minutes: float, start: Path | None, stale: Sequence[Path] = ()
    ):
        self.stale = stale
        self.folder, self.settings, self.seconds, self.start = folder, settings, 60 * minutes, start
        self.record: CheckpointRecord | None = parse_json((start / RECORD_FILE).read_text()) if start else None
        self.progress = (
            ProgressLog(self.record["seconds"], self.record["step_seconds"]) if self.record else ProgressLog()
        )
        self.signum = 0
        self.asked_at = 0.0

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return int(self.record["epoch"]) if self.record else 0

    @property
    def over(self) -> bool:
        """Whether the run stopped between its last epoch and its end."""
        return bool(self.record and self.record["over"])

    @contextmanager
    def signals_wait(self) -> Iterator[None]:
        """Let SIGINT, SIGTERM and SIGHUP end the run after its current step; a second one ends it at once."""
        earlier: dict[int, Any] = {}

        def restore() -> None:
            for signum, handler in earlier.items():
                signal.signal(signum, handler)

        def ask(signum: int, frame: FrameType | None) -> None:
            if not self.signum:
                self.signum, self.asked_at = signum, time.monotonic()
            elif time.monotonic() - self.asked_at > SAME_SIGNAL_SECONDS:
                restore()
                signal.raise_signal(signum)

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                earlier[signum] = signal.signal(signum, ask)
        try:
            yield
        finally:
            restore()
        if self.signum:  # it arrived after the last checkpoint
            self._stop(self.signum)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved_at = time.monotonic()
        for path in self.stale if is_main_process() else ():
            shutil.rmtree(path, ignore_errors=True)
        if state.best_global_step:
            # The folder may have been moved since its path was recorded.
            state.best_model_checkpoint = str(self.folder / f"checkpoint-{state.best_global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **_: Any
    ) -> None:
        signum, due = self._agreed(args, self.signum, time.monotonic() - self.saved_at >= self.seconds)
        # After an epoch's last step, the trainer evaluates and saves of its own accord. A checkpoint between the step
        # and the evaluation would continue with the next epoch.
        steps_per_epoch = state.max_steps // int(args.num_train_epochs)
        if (signum or due) and state.global_step % steps_per_epoch:
            require_finite(model, state)
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **_: Any
    ) -> None:
        require_finite(model, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        wait_for_all()  # each process writes its own random state
        if is_main_process():
            self._complete(state, control.should_training_stop)
        if sys.platform == "linux":
            # Otherwise the best epoch's weights, loaded after the last save, come on top of what steps took.
            return_freed_memory()
        self.saved_at = time.monotonic()
        (signum,) = self._agreed(args, self.signum)
        if signum:
            self._stop(signum)

    @staticmethod
    def _stop(signum: int) -> NoReturn:
        if not is_main_process():
            sys.exit(128 + signum)  # the main process reports it
        raise KeyboardInterrupt if signum == signal.SIGINT else Stopped(signum)

    def _complete(self, state: TrainerState, over: bool) -> None:
        newest = self.folder / f"checkpoint-{state.global_step}"
        # A pickle that nothing reads.
        (newest / "training_args.bin").unlink(missing_ok=True)
        (newest / RECORD_FILE).unlink(missing_ok=True)
        record: CheckpointRecord = {
            "step": state.global_step,
            "best_step": state.best_global_step,
            "epoch": state.epoch,
            "over": over,
            "settings": dict(self.settings),
            "seconds": round(self.progress.seconds(), 1),
            "step_seconds": [round(seconds, 4) for seconds in self.progress.step_seconds],
            "files": {path.name: sha256_of(path) for path in newest.iterdir()},
        }
        write_json(newest / RECORD_FILE, record)
        discard_checkpoints(self.folder, keep=(newest, self.folder / f"checkpoint-{state.best_global_step}"))

    @staticmethod
    def _agreed(args: TrainingArguments, *values: float) -> list[int]:
        """The largest of each value over all processes: they save, and stop, together."""
        if process_count() == 1:
            return [int(value) for value in values]
        shared = torch.tensor([int(value) for value in values], device=args.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return shared.tolist()


def require_finite(model: torch.nn.Module, state: TrainerState) -> None:
    """Raise FloatingPointError when a trained weight is not a number: such a checkpoint would replace a good one."""
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters() if weight.requires_grad):
        raise FloatingPointError(f"the weights are not finite after step {state.global_step}")
