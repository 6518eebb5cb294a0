"""A training script's run from its arguments to a finished model directory.

Imports nothing heavy, so that bad input is answered before torch is loaded.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prefilter_common.base_models import locate_base
from prefilter_common.cli import is_main_process
from prefilter_common.processes import shared_directory
from prefilter_common.recipe import Recipe, load_training_data
from prefilter_common.report import summary_line

if TYPE_CHECKING:
    from prefilter_common.checkpoints import Checkpoint


def train_model_directory(
    args: argparse.Namespace,
    argv: Sequence[str] | None,
    recipe: Recipe,
    adapt: "Callable[[Checkpoint], Checkpoint] | None" = None,
) -> None:
    """Check the input, load the base model, fine-tune it, write ``args.output``, print the summary line.

    Args:
        args: the flags of ``add_training_arguments``, ``model``, ``output`` and ``overwrite``.
        argv: as the script's ``main`` got it, for the record.
        adapt: what is done to the base model before training, such as adding an adapter.

    Raises:
        InputError: before anything is written.
    """
    train, val = load_training_data(args)
    locate_base(args.model)
    with shared_directory(args.output, args.overwrite) as directory:
        # Imported only now: torch and transformers take seconds, for which bad input need not wait.
        from prefilter_common.checkpoints import load_base_model
        from prefilter_common.runinfo import run_info
        from prefilter_common.training import fine_tune, save_model_directory
        from prefilter_common.validation import calibrate

        run = run_info(argv, {"train": args.data_dir / "train.jsonl", "val": args.data_dir / "val.jsonl"})
        checkpoint = load_base_model(args.model, recipe.max_length, recipe.seed)
        if adapt is not None:
            checkpoint = adapt(checkpoint)
        metrics = fine_tune(checkpoint, train, val, recipe, scratch=directory / "epochs")
        if is_main_process():
            checkpoint = calibrate(checkpoint, val, directory)
            save_model_directory(directory, args.output, checkpoint, recipe, metrics, run)
    if is_main_process():
        print(summary_line(args.output, metrics))
