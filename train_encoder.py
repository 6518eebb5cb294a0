#!/usr/bin/env python3
"""Fine-tune an encoder to tell commerce from journalism.

Any Hugging Face encoder serves: DistilBERT, MiniLM, XLM-R by hub name, a directory, or the packaged encoder (the
default), which needs no model hub. Writes one model directory, complete or not at all: the checkpoint, prefilter.json
(how to feed it, and its temperature), validation_predictions.jsonl (from which evaluation chooses thresholds),
training_metrics.json (curve and speed), run.json (provenance), README.md (model card).

    python train_encoder.py --learning-rate 1e-4
    python train_encoder.py --model distilbert-base-multilingual-cased --output models/distilbert --data-dir splits
    python train_encoder.py --max-train-samples 32 --max-val-samples 16 --epochs 1 --output models/smoke

Progress goes to stderr; the last line on stdout is one JSON object with the validation figures.
"""

import argparse
import sys
from pathlib import Path

from prefilter_common.base_models import locate_base
from prefilter_common.cli import HelpFormatter, configure_logging, exit_code
from prefilter_common.files import new_directory
from prefilter_common.packaged_encoder import PACKAGED_ENCODER
from prefilter_common.recipe import Recipe, add_training_arguments, load_training_data
from prefilter_common.report import summary_line

DEFAULTS = Recipe()


def main(argv: list[str] | None = None) -> int:
    """Check the input, load, train, save. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    recipe = Recipe.from_args(args, DEFAULTS)
    train, val = load_training_data(args)
    locate_base(args.model)
    with new_directory(args.output, args.overwrite) as directory:
        # Imported only now: torch and transformers take seconds, for which bad input need not wait.
        from prefilter_common.checkpoints import load_base_encoder
        from prefilter_common.runinfo import run_info
        from prefilter_common.training import fine_tune, save_model_directory
        from prefilter_common.validation import calibrate

        run = run_info(argv, {"train": args.data_dir / "train.jsonl", "val": args.data_dir / "val.jsonl"})
        checkpoint = load_base_encoder(args.model, recipe.max_length, recipe.seed)
        metrics = fine_tune(checkpoint, train, val, recipe, scratch=directory / "epochs")
        checkpoint = calibrate(checkpoint, val, directory)
        save_model_directory(directory, args.output, checkpoint, recipe, metrics, run)
    print(summary_line(args.output, metrics))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``output`` defaults to a folder under models/ named after the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default=PACKAGED_ENCODER, help="hub name or directory of an encoder")
    parser.add_argument("--output", type=Path, help="model directory to write, if not models/ plus the model's name")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished model in --output")
    add_training_arguments(parser, DEFAULTS)
    args = parser.parse_args(argv)
    args.output = args.output or Path("models") / Path(args.model).name
    return args


if __name__ == "__main__":
    sys.exit(exit_code(main))
