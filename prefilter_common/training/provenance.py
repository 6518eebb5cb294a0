"""What made a model: for ``run.json``, for the command that repeats it, and for what ``--resume`` must find alike."""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import fingerprints, read_contract
from prefilter_common.processes import process_count
from prefilter_common.runinfo import RunInfo, run_info
from prefilter_common.splits.guard import manifest_record
from prefilter_common.training.data import Source
from prefilter_common.training.recipe import Recipe

if TYPE_CHECKING:
    from prefilter_common.models.checkpoints import Checkpoint

# Flags that a continued run may change: these do not alter its result,
FREE = {"output", "overwrite", "merge", "data_dir", "resume", "checkpoint_minutes", "allow_overlap"}
# and of these only what they amount to matters.
RESOLVED = {
    "batch_size",
    "gradient_accumulation_steps",
    "precision",
    "soft_labels",
    "teacher",
    "unlabelled",
    "vocabulary_from",
}


@dataclass(frozen=True)
class Job:
    """What to train on what: a base model, the articles, and the directory to write.

    ``flags`` are all of the script's, by name, with their defaults filled in; ``argv`` are the arguments of its
    ``main``, None for those of this process.
    """

    model: str
    output: Path
    overwrite: bool
    source: Source
    resume: bool
    checkpoint_minutes: float
    flags: Mapping[str, Any]
    argv: Sequence[str] | None

    @classmethod
    def from_args(cls, args: argparse.Namespace, argv: Sequence[str] | None) -> "Job":
        """From the flags of ``add_training_arguments``, ``model``, ``output`` and ``overwrite``."""
        flags = dict(vars(args))
        source = Source(**{field.name: flags[field.name] for field in fields(Source) if field.name in flags})
        own = {field.name: flags[field.name] for field in fields(cls) if field.name in flags}
        return cls(**own, source=source, flags=flags, argv=argv)


class BaseModelRecord(TypedDict):
    """Which base model; ``sha256`` is of its weights before training, the new head's included."""

    name: str
    revision: str | None
    sha256: str


class TrainingRun(RunInfo):
    """The content of ``run.json``; ``repeat`` is a command that repeats the run, whatever the defaults become."""

    manifest: Any
    base_model: BaseModelRecord
    teachers: list[dict[str, str]]  # of each the sha256 by file name
    recipe: dict[str, Any]  # the fields of Recipe
    processes: int
    repeat: str


def provenance(job: Job, recipe: Recipe, checkpoint: "Checkpoint") -> TrainingRun:
    """What is made from ``checkpoint``, as it is before training."""
    from prefilter_common.training.interruption.resume import base_model_digest

    splits = [job.source.files[role] for role in ("train", "val")]
    return {
        **run_info(job.argv, job.source.files),
        "manifest": manifest_record(splits),
        "base_model": {
            "name": job.model,
            "revision": checkpoint.contract.base_revision,
            "sha256": base_model_digest(checkpoint),
        },
        "teachers": [fingerprints(directory) for directory in job.source.teacher or ()],
        "recipe": asdict(recipe),
        "processes": process_count(),
        "repeat": command_to_repeat(job, recipe),
    }


def command_to_repeat(job: Job, recipe: Recipe) -> str:
    """The script's command line with every flag that matters, quoted for a POSIX shell.

    It writes ``<output>-repeat``, so that it runs as it stands beside the model that it repeats. Over several machines
    each needs its own ``--node_rank`` and the ``--master_addr`` added.
    """
    words = [*launcher(), Path(sys.argv[0]).name]
    repeat = job.output.with_name(f"{job.output.name}-repeat")
    for name, value in {**job.flags, "output": repeat, "precision": recipe.precision}.items():
        if value is None or value is False or name in ("overwrite", "resume", "checkpoint_minutes"):
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def launcher() -> list[str]:
    """What starts a script in as many processes as this job has, divided among machines as they are now."""
    processes = process_count()
    if processes == 1:
        return ["python"]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    nodes = [f"--nnodes={processes // local}"] if local < processes else []
    return ["torchrun", *nodes, f"--nproc_per_node={local}"]


def settings_to_continue(job: Job, recipe: Recipe, run: TrainingRun) -> dict[str, Any]:
    """What must be the same for ``--resume``, by the name that a message gives it."""
    flags = {name: value for name, value in job.flags.items() if name not in FREE | RESOLVED}
    return {
        **{"--" + name.replace("_", "-"): value for name, value in flags.items()},
        "--precision": recipe.precision,
        "--soft-labels": job.source.soft_labels is not None,
        "the number of articles per optimiser step": recipe.articles_per_step(process_count()),
        "the number of processes": process_count(),
        **{
            f"{role}.jsonl" if role in ("train", "val") else f"the file of --{role.replace('_', '-')}": data["sha256"]
            for role, data in run["data"].items()
        },
        **({"what the teachers say": _digest(job.source.teacher, run)} if job.source.teacher else {}),
        "the base model": run["base_model"]["sha256"],
    }


def _digest(teachers: Sequence[Path], run: TrainingRun) -> str:
    """sha256 of what the teachers' scores depend on: their files, temperatures and lengths."""
    contracts = [read_contract(directory) or Contract() for directory in teachers]
    read = [[contract.temperature, contract.max_length] for contract in contracts]
    return hashlib.sha256(json.dumps([run["teachers"], read]).encode()).hexdigest()
