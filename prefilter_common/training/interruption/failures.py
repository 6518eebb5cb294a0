"""What ends a training run for a foreseeable reason, as one line with the fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prefilter_common.errors import InputError, RunError, Stopped
from prefilter_common.processes import is_main_process, process_count
from prefilter_common.runinfo import peak_gpu_memory
from prefilter_common.training.interruption.resume import newest_step
from prefilter_common.training.recipe import Recipe


@contextmanager
def named_failures(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Raise RunError for exhausted GPU memory, divergence and a lost process; say what ``--resume`` would continue.

    Args:
        folder: the run's checkpoints.
    """
    try:
        yield
    except InputError:
        raise
    except FloatingPointError as error:
        if not is_main_process():
            raise SystemExit(1) from error  # the weights are the same in every process, and the main one reports it
        raise RunError(_diverged(error, folder)) from error
    except BaseException as error:
        failure = _named(error, recipe)
        try:
            step = newest_step(folder)
        except Stopped:  # from a launcher that has lost a process; this one is ending as it is
            step = newest_step(folder)
        if step:
            failure.add_note(f"the same command plus --resume continues after step {step}")
        if failure is error:
            raise
        raise failure from error


def _named(error: BaseException, recipe: Recipe) -> BaseException:
    if isinstance(error, torch.OutOfMemoryError):
        return RunError(_out_of_memory(recipe))
    if process_count() > 1 and isinstance(error, RuntimeError) and _lost_connection(error):
        return RunError("another process of this job ended, so this one cannot go on")
    return error


def _lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed: NCCL has a type for that, gloo only words."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "closed by peer" in str(error)


def _diverged(error: FloatingPointError, folder: Path) -> str:
    step = newest_step(folder)
    kept = f", and so would --resume after step {step}, whose checkpoint is kept" if step else ""
    return (
        f"{error}: start from scratch with a lower --learning-rate or --precision fp32; the same settings would "
        f"diverge again{kept}"
    )


def _out_of_memory(recipe: Recipe) -> str:
    batch = recipe.batch_size
    parts = next((n for n in range(2, batch + 1) if batch % n == 0), 1)
    steps = recipe.gradient_accumulation_steps * parts
    split = f"--batch-size {batch // parts} --gradient-accumulation-steps {steps} for the same effective batch, or "
    return (
        f"the GPU's memory does not hold a batch of {batch} articles of up to {recipe.max_length} tokens"
        f"{peak_gpu_memory()}: pass {split if parts > 1 else ''}a smaller --max-length"
    )
