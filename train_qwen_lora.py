#!/usr/bin/env python3
"""Fine-tune Qwen2.5-0.5B with a LoRA adapter to tell commerce from journalism.

The base model stays as it is; low-rank updates of its attention projections and a two-label head are trained
(LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685). Writes one model directory, complete or not at all: adapter
and head, tokenizer, prefilter.json (how to feed it, and its temperature), validation_predictions.jsonl (from which
evaluation chooses thresholds), training_metrics.json (curve and speed), run.json (provenance), README.md (model card).
--merge also writes <output>-merged, a plain checkpoint that needs neither base nor PEFT.

    python train_qwen_lora.py --output models/qwen-lora --data-dir splits
    python train_qwen_lora.py --batch-size 4 --gradient-accumulation-steps 2
    python train_qwen_lora.py --merge models/qwen-lora

Progress goes to stderr; the last line on stdout is one JSON object with the validation figures.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.cli import (
    HelpFormatter,
    InputError,
    configure_logging,
    exit_code,
    fraction,
    is_main_process,
    positive_int,
)
from prefilter_common.files import check_free, new_directory, write_text
from prefilter_common.recipe import Recipe, add_training_arguments
from prefilter_common.report import model_card
from prefilter_common.training_run import train_model_directory

if TYPE_CHECKING:
    from prefilter_common.checkpoints import Checkpoint

DEFAULTS = Recipe(batch_size=8, learning_rate=1e-4, cuda_precision="bf16")


def main(argv: list[str] | None = None) -> int:
    """Fine-tune an adapter, merge it where asked. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    if isinstance(args.merge, Path):
        merge(args.merge, args.overwrite)
        return 0
    if args.merge:
        check_free(merged_name(args.output), args.overwrite)
    train_model_directory(args, argv, Recipe.from_args(args, DEFAULTS), adapt=partial(with_lora, args=args))
    if args.merge and is_main_process():
        merge(args.output, args.overwrite)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B", help="hub name or directory of a Qwen2 base model")
    parser.add_argument("--output", type=Path, default=Path("models/qwen-lora"), help="model directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace finished models")
    parser.add_argument(
        "--merge",
        nargs="?",
        type=Path,
        const=True,
        metavar="DIR",
        help="also write <output>-merged; with DIR, a finished adapter: train nothing, write <DIR>-merged",
    )
    add_training_arguments(parser, DEFAULTS)
    lora = parser.add_argument_group("adapter")
    lora.add_argument("--lora-rank", type=positive_int, default=16, metavar="N", help="rank of the weight updates")
    lora.add_argument("--lora-alpha", type=positive_int, default=32, metavar="N", help="their scale times the rank")
    lora.add_argument("--lora-dropout", type=fraction, default=0.1, metavar="N", help="dropout on their input")
    lora.add_argument(
        "--lora-target-modules", nargs="+", default=["q_proj", "v_proj"], metavar="NAME", help="layers that get one"
    )
    return parser.parse_args(argv)


def with_lora(checkpoint: "Checkpoint", args: argparse.Namespace) -> "Checkpoint":
    """Freeze the base model; add the adapter and a head that are trained."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        revision=checkpoint.contract.base_revision,
    )
    try:
        return replace(checkpoint, model=get_peft_model(checkpoint.model, config))
    except ValueError as error:
        raise InputError(f"--lora-target-modules: {str(error).splitlines()[0]}") from None


def merge(adapter: Path, overwrite: bool) -> None:
    """Write ``<adapter>-merged``: base and adapter added up in float32, a plain checkpoint with the same records."""
    from prefilter_common.checkpoints import load_checkpoint
    from prefilter_common.operating_points import VALIDATION_FILE

    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: holds no adapter_config.json, so no adapter; name a directory that does")
    target = merged_name(adapter)
    with new_directory(target, overwrite) as directory:
        checkpoint = load_checkpoint(adapter)
        checkpoint.save(directory)
        records = [adapter / name for name in ("training_metrics.json", "run.json", VALIDATION_FILE)]
        if all(record.is_file() for record in records):  # an earlier script's adapter has none
            for record in records:
                shutil.copy(record, directory)
            metrics, run = (json.loads(record.read_text(encoding="utf-8")) for record in records[:2])
            write_text(directory / "README.md", model_card(target.as_posix(), checkpoint.contract, metrics, run))


def merged_name(adapter: Path) -> Path:
    """Where the merged checkpoint of an adapter goes."""
    return adapter.with_name(f"{adapter.name}-merged")


if __name__ == "__main__":
    sys.exit(exit_code(main))
