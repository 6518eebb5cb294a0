#!/usr/bin/env python3
"""Fine-tune an encoder to tell commerce from journalism.

Any Hugging Face encoder works: DistilBERT, MiniLM or XLM-R by hub name, a directory, or the packaged encoder (the
default), which needs no model hub. Writes one model directory, complete or not at all: the checkpoint, prefilter.json
(how to feed it, and its temperature), validation_predictions.jsonl (on which evaluation chooses thresholds),
training_metrics.json (curve and speed), run.json (provenance), README.md (model card).

    python train_encoder.py --recipe classic --learning-rate 1e-4
    python train_encoder.py --model distilbert-base-multilingual-cased --output models/distilbert --data-dir splits
    python train_encoder.py --max-train-samples 32 --max-val-samples 16 --epochs 1 --output models/smoke

Progress goes to stderr; the last line on stdout is one JSON object with the validation figures.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from prefilter_common.cli import Parser, configure_logging, count, exit_code
from prefilter_common.files import read_record
from prefilter_common.models.base_models import FAMILIES
from prefilter_common.models.directory import require_model_output
from prefilter_common.models.packaged_encoder import PACKAGED_ENCODER
from prefilter_common.training.provenance import Job
from prefilter_common.training.recipe import CLASSIC, DISTILLATION, LP_FT, RECIPES, Recipe, add_training_arguments
from prefilter_common.training.run import train_model_directory


def main(argv: list[str] | None = None) -> int:
    """Fine-tune the encoder. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    job = Job.from_args(args, argv)
    require_model_output(args.output, args.overwrite, [*job.source.paths, Path(args.model)])
    train_model_directory(job, Recipe.from_args(args, defaults_of(args)))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``output`` defaults to a folder under models/ named after the model."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--model",
        help="hub name or directory of the encoder to fine-tune (default: the first --teacher where that is an "
        f"encoder, else {PACKAGED_ENCODER}, the packaged one)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="model directory to write (default: models/ followed by the model's name and, with --teacher, -student)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a finished model in --output")
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="lp-ft",
        help="lp-ft: fit the head to frozen features first, then fine-tune the upper layers on articles, three "
        "quarters of which are cut to the length of a feed's snippet; classic: fine-tune everything from a random "
        f"head, or that of a two-label classifier, by default at a learning rate of {CLASSIC.learning_rate:g}",
    )
    smaller = parser.add_argument_group("smaller models")
    smaller.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="learn the scores of this model, or the mean of several, besides the labels, with lp-ft by default at "
        f"a learning rate of {DISTILLATION.learning_rate:g}; log loss, not F1, then decides when to stop and which "
        "epoch to keep",
    )
    smaller.add_argument(
        "--unlabelled", type=Path, metavar="FILE", help="articles without labels, learned from the teacher alone"
    )
    smaller.add_argument(
        "--layers", type=count, metavar="N", help="keep only the first N layers of the encoder (default: all)"
    )
    smaller.add_argument(
        "--vocabulary-from",
        type=Path,
        metavar="FILE",
        help="keep only the tokens of these articles and of those trained and validated on, and the single "
        "characters of their scripts (default: all)",
    )
    add_training_arguments(parser, LP_FT)
    args = parser.parse_args(argv)
    if args.unlabelled and not args.teacher:
        parser.error("--unlabelled needs --teacher, which says what its articles are")
    parser.set_defaults(**{key: value for key, value in asdict(defaults_of(args)).items() if key in args})
    args = parser.parse_args(argv)  # again: a recipe has defaults of its own, and flags that are given override them
    args.model = base_of(args.teacher) if args.model is None else args.model
    name = Path(os.path.abspath(args.model)).name
    args.output = args.output or Path("models") / (f"{name}-student" if args.teacher else name)
    return args


def defaults_of(args: argparse.Namespace) -> Recipe:
    """The recipe that flags override."""
    return DISTILLATION if args.teacher and args.recipe == "lp-ft" else RECIPES[args.recipe]


def base_of(teachers: list[Path] | None) -> str:
    """What a student starts from when no ``--model`` is named: the first teacher, unless it is no encoder."""
    config = teachers[0] / "config.json" if teachers else None
    if config and config.is_file() and read_record(config).get("model_type") in FAMILIES:
        return str(config.parent)
    return PACKAGED_ENCODER


if __name__ == "__main__":
    sys.exit(exit_code(main))
