"""A training script's run, from its options to a finished model directory.

Imports nothing heavy at the top, so that bad input fails before torch is loaded.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefilter_common.articles import Article, capped, labels_of, load_split
from prefilter_common.models.base_models import locate_base
from prefilter_common.models.directory import VALIDATION_FILE, write_predictions, write_records
from prefilter_common.processes import is_main_process, process_count, shared_directory
from prefilter_common.training.recipe import Recipe

if TYPE_CHECKING:
    from prefilter_common.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)


# Flags that a continued run may change: these do not alter its result,
FREE = {"output", "overwrite", "merge", "data_dir", "resume", "checkpoint_minutes", "allow_overlap"}
# and of these only what they amount to matters.
RESOLVED = {"batch_size", "gradient_accumulation_steps", "precision"}


@dataclass(frozen=True)
class Job:
    """What to train on what: a base model, the folder of the splits, smoke caps, and the directory to write.

    ``flags`` are all of the script's, by name, with their defaults filled in.
    """

    model: str
    output: Path
    overwrite: bool
    data_dir: Path
    max_train_samples: int | None
    max_val_samples: int | None
    allow_overlap: bool
    resume: bool
    checkpoint_minutes: float
    flags: Mapping[str, Any]

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Job":
        """From the flags of ``add_training_arguments``, ``model``, ``output`` and ``overwrite``."""
        flags = dict(vars(args))
        return cls(**{field.name: flags[field.name] for field in fields(cls) if field.name != "flags"}, flags=flags)


def train_model_directory(
    job: Job,
    recipe: Recipe,
    argv: Sequence[str] | None,
    adapt: "Callable[[Checkpoint], Checkpoint] | None" = None,
) -> None:
    """Check the input, load the base model, fine-tune it, write ``job.output``, print the summary line.

    Args:
        argv: the arguments of the script's ``main``, for the record.
        adapt: changes the base model before training, for instance by adding an adapter.

    Raises:
        InputError: before anything is written.
    """
    train = capped(load_split(job.data_dir, "train"), job.max_train_samples)
    val = capped(load_split(job.data_dir, "val"), job.max_val_samples)
    from prefilter_common.splits.guard import require_disjoint

    require_disjoint(job.data_dir, job.allow_overlap)
    locate_base(job.model)
    from prefilter_common.training.fine_tuning import fine_tune, resolve_precision
    from prefilter_common.training.interruption.failures import named_failures
    from prefilter_common.training.interruption.resume import checkpoint_folder, discard_checkpoints, starting_point
    from prefilter_common.training.interruption.saver import CheckpointSaver

    recipe = replace(recipe, precision=resolve_precision(recipe))
    with checkpoint_folder(job.output) as checkpoints:
        with named_failures(recipe, checkpoints), shared_directory(job.output, job.overwrite) as directory:
            checkpoint = load_checkpoint_to_train(job, recipe, adapt)
            run = provenance(job, recipe, checkpoint, argv)
            settings = settings_to_continue(job, recipe, run)
            start = starting_point(checkpoints, settings, job.resume)
            saver = CheckpointSaver(checkpoints, settings, job.checkpoint_minutes, start)
            prepare(checkpoint, train, val, recipe, start is None)
            metrics = fine_tune(checkpoint, train, val, recipe, saver)
            if is_main_process():
                checkpoint = calibrate(checkpoint, val, directory, 2 * recipe.batch_size)
                save_model_directory(directory, job.output, checkpoint, metrics, run)
        if is_main_process():
            discard_checkpoints(checkpoints)
    if is_main_process():
        print(summary_line(job.output, metrics))


def load_checkpoint_to_train(
    job: Job, recipe: Recipe, adapt: "Callable[[Checkpoint], Checkpoint] | None"
) -> "Checkpoint":
    """The base model with its new head, adapted."""
    from prefilter_common.models.checkpoints import load_base_model

    checkpoint = load_base_model(job.model, recipe.max_length, recipe.seed)
    return checkpoint if adapt is None else adapt(checkpoint)


def prepare(
    checkpoint: "Checkpoint", train: Sequence[Article], val: Sequence[Article], recipe: Recipe, fit: bool
) -> None:
    """Give the model the form that the recipe trains; fit its head, unless a checkpoint is to replace the weights."""
    if recipe.probe_first:
        from prefilter_common.models.encoder_layers import compute_first_token_only
        from prefilter_common.training.probe import add_mean_layer, require_supported, start_from_probe

        require_supported(checkpoint.model, str(checkpoint.contract.base_model))
        add_mean_layer(checkpoint.model)
        compute_first_token_only(checkpoint.model)
        if fit:
            start_from_probe(checkpoint, train, val, recipe)
    if not recipe.train_vocabulary:
        checkpoint.model.get_input_embeddings().weight.requires_grad_(False)


def provenance(job: Job, recipe: Recipe, checkpoint: "Checkpoint", argv: Sequence[str] | None) -> dict[str, Any]:
    """The content of ``run.json``; ``repeat`` is a command that repeats the run, whatever the defaults become.

    Args:
        checkpoint: as it is before training; the sha256 of ``base_model`` is of its weights, the new head's included.
    """
    from prefilter_common.runinfo import run_info
    from prefilter_common.splits.guard import manifest_record
    from prefilter_common.training.interruption.resume import base_model_digest

    files = {name: job.data_dir / f"{name}.jsonl" for name in ("train", "val")}
    return {
        **run_info(argv, files),
        "manifest": manifest_record(list(files.values())),
        "base_model": {
            "name": job.model,
            "revision": checkpoint.contract.base_revision,
            "sha256": base_model_digest(checkpoint),
        },
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


def settings_to_continue(job: Job, recipe: Recipe, run: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for ``--resume``, by the name that a message gives it."""
    flags = {name: value for name, value in job.flags.items() if name not in FREE | RESOLVED}
    return {
        **{"--" + name.replace("_", "-"): value for name, value in flags.items()},
        "--precision": recipe.precision,
        "the number of articles per optimiser step": recipe.articles_per_step(process_count()),
        "the number of processes": process_count(),
        "train.jsonl": run["data"]["train"]["sha256"],
        "val.jsonl": run["data"]["val"]["sha256"],
        "the base model": run["base_model"]["sha256"],
    }


def calibrate(checkpoint: "Checkpoint", val: Sequence[Article], directory: Path, batch_size: int) -> "Checkpoint":
    """Fit the temperature on the validation articles; write their calibrated scores into ``directory``.

    Args:
        batch_size: articles scored at once, as many as training evaluates at once, so that memory suffices.

    Returns:
        The same model with the temperature in its contract; 1.0 where only one label occurs, which leaves nothing to
        fit.
    """
    from prefilter_common.scoring import Scorer
    from prefilter_common.statistics.calibration import at_temperature, fit_temperature

    contract = replace(checkpoint.contract, temperature=1.0)
    scores = Scorer.of(replace(checkpoint, contract=contract), checkpoint.model.device).score(val, batch_size)
    labels = labels_of(val)
    temperature = round(fit_temperature(labels, scores), 4) if len(np.unique(labels)) == 2 else 1.0
    log.info(f"temperature {temperature:.2f}, fitted on {len(val)} validation articles")
    write_predictions(directory / VALIDATION_FILE, val, at_temperature(scores, temperature))
    return replace(checkpoint, contract=replace(contract, temperature=temperature))


def save_model_directory(
    directory: Path, output: Path, checkpoint: "Checkpoint", metrics: Mapping[str, Any], run: Mapping[str, Any]
) -> None:
    """Fill ``directory``, which will become ``output``, with the checkpoint and its records."""
    from peft import PeftModel

    checkpoint.save(directory)
    adapter = isinstance(checkpoint.model, PeftModel)
    write_records(directory, output.as_posix(), checkpoint.contract, metrics, run, adapter)


def summary_line(output: Path, metrics: Mapping[str, Any]) -> str:
    """A training run's last line on stdout: one compact JSON object."""
    keys = ("eval_f1", "eval_precision", "eval_recall", "best_epoch", "train_seconds", "train_articles_per_second")
    return json.dumps({"model": str(output), **{key: metrics[key] for key in keys}}, separators=(",", ":"))
