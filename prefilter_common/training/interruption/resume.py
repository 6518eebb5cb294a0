"""The checkpoints of a run that has not finished: which one ``--resume`` continues, and when it may not."""

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, sha256_of
from prefilter_common.outputs import kept_directory, partial_name
from prefilter_common.processes import is_main_process, wait_for_all

if TYPE_CHECKING:
    from prefilter_common.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

RECORD_FILE = "checkpoint.json"
FROM_SCRATCH = "or start from scratch without --resume"


class CheckpointRecord(TypedDict):
    """``checkpoint.json``: where the run was, what it was, and the sha256 of each file."""

    step: int
    best_step: int | None
    epoch: float
    over: bool  # nothing is left to train: the last epoch is done, or training stopped early
    settings: dict[str, Any]
    seconds: float
    step_seconds: list[float]
    files: dict[str, str | int]  # an earlier version recorded the size instead


@contextmanager
def checkpoint_folder(output: Path) -> Iterator[Path]:
    """The hidden folder beside ``output`` that holds the checkpoints of its run; it survives a run that stops.

    Raises InputError when another process uses it.
    """
    target = output.with_name(f"{output.name}.checkpoints")
    if not is_main_process():
        yield partial_name(target)
        return
    with kept_directory(target) as folder:
        yield folder


def stale_seeds(folder: Path, first: Path, resume: bool) -> list[Path]:
    """What an earlier job left in ``folder`` beside the ``first`` seed's, unless it is to be continued.

    Raises InputError when that trained one model only, or began with another seed.
    """
    if resume and complete_checkpoints(folder):
        raise InputError(f"--resume: the interrupted run had no --seeds; leave that out, {FROM_SCRATCH}")
    begun = sorted(path.name for path in folder.glob("seed-*") if complete_checkpoints(path))
    if resume and begun and first.name not in begun:
        raise InputError(
            f"--resume: the interrupted run has {', '.join(begun)}, but no {first.name}; pass its --seed, "
            f"{FROM_SCRATCH}"
        )
    return [] if resume else [path for path in checkpoints_in(folder) if path != first]


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the checkpoints of one of several seeds go, within the job's folder."""
    place = folder / f"seed-{seed}"
    if is_main_process():
        place.mkdir(exist_ok=True)
    return place


def newest_step(folder: Path) -> int | None:
    """Where ``--resume`` would continue: the step of the newest checkpoint, in the newest of its seeds' folders."""
    places = [folder, *sorted(folder.glob("seed-*"), key=lambda place: place.stat().st_mtime)]
    steps = [record["step"] for place in places for record in complete_checkpoints(place).values()]
    return steps[-1] if steps else None


def complete_checkpoints(folder: Path) -> dict[Path, CheckpointRecord]:
    """The checkpoints that can be continued, with their records, oldest first.

    Left out are those of which a file is missing or damaged, and those whose best epoch's weights are not there.
    """
    found = {}
    for path in folder.glob("checkpoint-*"):
        try:
            record = parse_json((path / RECORD_FILE).read_text(encoding="utf-8"))
            if all(_is_intact(path / name, mark) for name, mark in record["files"].items()):
                found[record["step"]] = (path, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {path: record for _, (path, record) in sorted(found.items()) if record["best_step"] in (None, *found)}


def _is_intact(path: Path, mark: str | int) -> bool:
    # A power cut can leave a file of the right size full of zeros.
    return path.stat().st_size == mark if isinstance(mark, int) else sha256_of(path) == mark


def checkpoints_in(folder: Path) -> list[Path]:
    """Every checkpoint, complete or not, and the folders of seeds."""
    return [*folder.glob("checkpoint-*"), *folder.glob("seed-*")]


def discard_checkpoints(folder: Path, keep: Collection[Path] = ()) -> None:
    """Delete ``checkpoints_in`` a folder, except those to keep."""
    for path in checkpoints_in(folder):
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def starting_point(folder: Path, settings: Mapping[str, Any], resume: bool) -> tuple[Path | None, list[Path]]:
    """The checkpoint that this run continues, or None where it starts from scratch; and the others, to delete once
    training begins: a command that is refused before must lose nothing.

    Raises InputError when the interrupted run had other settings or data.
    """
    wait_for_all()  # for the folder
    found = complete_checkpoints(folder)
    if resume and any(map(complete_checkpoints, folder.glob("seed-*"))):
        raise InputError(f"--resume: the interrupted run had --seeds; pass the same, {FROM_SCRATCH}")
    start = None
    if found and resume:
        start, record = list(found.items())[-1]
        if changed := _differences(record["settings"], settings):
            raise InputError(
                f"--resume cannot continue a run with other settings or data: {'; '.join(changed)}; "
                f"restore them, {FROM_SCRATCH}"
            )
        log.info(f"continuing after step {record['step']}")
    elif resume:
        log.info("there is no checkpoint to continue: starting from scratch")
    elif found:
        step = list(found.values())[-1]["step"]
        log.info(f"discarding the checkpoint of an interrupted run at step {step}; --resume would have continued it")
    return start, [path for path in checkpoints_in(folder) if not start or path not in found]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    hashes = {name for name in names if len(str(now.get(name))) == hashlib.sha256().digest_size * 2}
    return [
        f"{name} has changed" if name in hashes else f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in names
    ]


def base_model_digest(checkpoint: "Checkpoint") -> str:
    """sha256 of the weights before training and of the vocabulary."""
    digest = hashlib.sha256()
    for name, weight in checkpoint.model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(sorted(checkpoint.tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()
