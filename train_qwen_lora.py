#!/usr/bin/env python3
"""Fine-tune Qwen2.5-0.5B with a LoRA adapter to tell commerce from journalism.

The base model stays frozen; low-rank updates of its attention projections and a two-label head are trained (LoRA: Hu et
al. 2021, https://arxiv.org/abs/2106.09685). Writes one model directory, complete or not at all: adapter and head,
tokenizer, prefilter.json (how to feed it, and its temperature), validation_predictions.jsonl (on which evaluation
chooses thresholds), training_metrics.json (curve and speed), run.json (provenance), README.md (model card). --merge
also writes <output>-merged, a plain checkpoint that needs neither base nor PEFT.

    python train_qwen_lora.py --output models/qwen-lora --data-dir splits
    python train_qwen_lora.py --batch-size 4 --gradient-accumulation-steps 2
    python train_qwen_lora.py --merge models/qwen-lora

Progress goes to stderr; the last line on stdout is one JSON object with the validation figures.
"""

import argparse
import logging
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.cli import Parser, configure_logging, exit_code, fraction, whole_number
from prefilter_common.errors import InputError
from prefilter_common.models.directory import require_model_output
from prefilter_common.models.records import copy_records
from prefilter_common.outputs import new_directory
from prefilter_common.processes import is_main_process
from prefilter_common.training.provenance import Job
from prefilter_common.training.recipe import Recipe, add_training_arguments
from prefilter_common.training.run import train_model_directory

if TYPE_CHECKING:
    from prefilter_common.models.checkpoints import Checkpoint

DEFAULTS = Recipe(batch_size=8, learning_rate=1e-4, cuda_precision="bf16")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """The hyperparameters of LoRA."""

    rank: int
    alpha: int
    dropout: float
    target_modules: list[str]


def main(argv: list[str] | None = None) -> int:
    """Fine-tune an adapter, and merge it where asked. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    if isinstance(args.merge, Path):
        merge(args.merge, args.overwrite)
        return 0
    job = Job.from_args(args, argv)
    for output in [args.output, merged_name(args.output)] if args.merge else [args.output]:
        require_model_output(output, args.overwrite, [*job.source.paths, Path(args.model)])
    adapter = Adapter(args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_target_modules)
    adapt = partial(with_lora, adapter=adapter)
    train_model_directory(job, Recipe.from_args(args, DEFAULTS), adapt)
    if args.merge and is_main_process():
        merge(args.output, args.overwrite)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B", help="hub name or directory of a Qwen2 base model")
    parser.add_argument("--output", type=Path, help="model directory to write (default: models/qwen-lora)")
    parser.add_argument("--overwrite", action="store_true", help="replace finished models")
    parser.add_argument(
        "--merge",
        nargs="?",
        type=Path,
        const=True,
        metavar="DIR",
        help="also write <output>-merged; with the DIR of a finished adapter, train nothing and write <DIR>-merged",
    )
    add_training_arguments(parser, DEFAULTS)
    lora = parser.add_argument_group("adapter")
    lora.add_argument(
        "--lora-rank", type=whole_number(1, 1024), default=16, metavar="N", help="rank of the weight updates"
    )
    lora.add_argument(
        "--lora-alpha",
        type=whole_number(1, 4096),
        default=32,
        metavar="N",
        help="updates are scaled by this over the rank",
    )
    lora.add_argument(
        "--lora-dropout", type=fraction, default=0.1, metavar="F", help="dropout on the input of the updates, below 1"
    )
    lora.add_argument(
        "--lora-target-modules",
        nargs="+",
        default=["q_proj", "v_proj"],
        metavar="NAME",
        help="names of the layers to update",
    )
    args = parser.parse_args(argv)
    if isinstance(args.merge, Path) and args.output:
        parser.error("--merge DIR writes DIR-merged; leave out --output")
    args.output = args.output or Path("models/qwen-lora")
    return args


def with_lora(checkpoint: "Checkpoint", adapter: Adapter) -> "Checkpoint":
    """Freeze the base model and add a trainable adapter and head. Raises InputError for unknown layers."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        revision=checkpoint.contract.base_revision,
    )
    there = [f".{name}" for name, _ in checkpoint.model.named_modules()]
    # peft objects only where none of them is there.
    if missing := [name for name in adapter.target_modules if not any(each.endswith(f".{name}") for each in there)]:
        raise InputError(f"--lora-target-modules: the model has no layer named {', '.join(missing)}; correct the name")
    try:
        model = get_peft_model(checkpoint.model, config)
    except ValueError as error:
        raise InputError(f"--lora-target-modules: {str(error).splitlines()[0]}") from None
    base = Path(str(config.base_model_name_or_path))
    if base.is_dir():  # from elsewhere, the same name might be another model's
        config.base_model_name_or_path = str(base.absolute())
    return replace(checkpoint, model=model)


def merge(adapter: Path, overwrite: bool) -> None:
    """Write ``<adapter>-merged``: base plus adapter in float32, a plain checkpoint with the same records."""
    from prefilter_common.models.checkpoints import load_checkpoint

    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: contains no adapter_config.json, so no adapter; name a directory that does")
    target = merged_name(adapter)
    require_model_output(target, overwrite, [adapter])
    checkpoint = load_checkpoint(adapter)
    require_model_output(target, overwrite, [Path(checkpoint.contract.base_model or adapter)])
    # Stages, if it has any, are in files beside the adapter and belong to its engines.
    checkpoint = replace(checkpoint, contract=replace(checkpoint.contract, stages=()))
    with new_directory(target, overwrite) as directory:
        checkpoint.save(directory)
        copy_records(adapter, directory, target.as_posix(), checkpoint.contract)
    log.info(f"merged: {target}")


def merged_name(adapter: Path) -> Path:
    """Where the merged checkpoint of an adapter goes."""
    named = adapter.resolve() if adapter.name in ("", "..") else adapter
    return named.with_name(f"{named.name}-merged")


if __name__ == "__main__":
    sys.exit(exit_code(main))
