"""Several processes on one job, as torchrun and accelerate launch start them: who writes, who waits."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.outputs import new_directory, partial_name

if TYPE_CHECKING:
    from accelerate import PartialState


def process_count() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of a job, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_on_machine() -> bool:
    """Whether this process is the first of a job on its machine."""
    return _local_rank() == 0


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def own_device() -> str:
    """Where this process computes: its own GPU where there is one, such as ``cuda:0``, else ``cpu``."""
    import torch

    # A launcher may show each process its own GPU alone.
    return f"cuda:{_local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@cache
def connection() -> "PartialState":
    """To the other processes of the job. It is closed when this one exits: a process that leaves it open may abort, and
    then the launcher stops the others.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    atexit.register(state.destroy_process_group)
    return state


def wait_for_all() -> None:
    """Return once every process of the job has called this."""
    if process_count() > 1:
        connection().wait_for_everyone()


@contextmanager
def shared_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """``new_directory`` for a job of several processes: the main one creates it, all see it, none leaves early."""
    if not is_main_process():
        wait_for_all()
        yield partial_name(target)
        wait_for_all()
        return
    with new_directory(target, overwrite) as directory:
        wait_for_all()
        yield directory
        wait_for_all()
