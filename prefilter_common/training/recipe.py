"""The fine-tuning recipe: hyperparameters, and the flags and data that both training scripts have.

Imports nothing heavy, so that --help and a bad file are answered before torch is loaded.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from prefilter_common.articles import Article, load_split
from prefilter_common.cli import fraction, positive_float, positive_int

# Epochs without a better validation F1 after which training stops.
PATIENCE = 2


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a fine-tuning run; the defaults are the encoders'."""

    epochs: int = 3
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    max_length: int = 512
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    precision: str = "auto"
    cuda_precision: str = "fp16"  # what "auto" means on CUDA
    seed: int = 42

    @classmethod
    def from_args(cls, args: argparse.Namespace, defaults: "Recipe") -> "Recipe":
        """``defaults`` with what the flags say."""
        return replace(defaults, **{f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)})


def add_training_arguments(parser: argparse.ArgumentParser, defaults: Recipe) -> None:
    """Add the flags that both training scripts have."""
    data = parser.add_argument_group("data")
    data.add_argument("--data-dir", type=Path, default=Path("splits"), help="folder with train.jsonl and val.jsonl")
    data.add_argument("--max-train-samples", type=positive_int, metavar="N", help="train on N articles, for smoke runs")
    data.add_argument("--max-val-samples", type=positive_int, metavar="N", help="validate on N, for smoke runs")
    recipe = parser.add_argument_group("recipe", f"Training stops after {PATIENCE} epochs without a better F1.")

    def add(flag: str, kind: Callable, text: str) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        recipe.add_argument(flag, type=kind, default=getattr(defaults, name), metavar="N", help=text)

    add("--epochs", positive_int, "passes over the training set, at most")
    add("--batch-size", positive_int, "articles a step on each device")
    add("--gradient-accumulation-steps", positive_int, "batches added up to one step")
    add("--learning-rate", positive_float, "peak of AdamW's learning rate")
    add("--max-length", positive_int, "tokens of an article that are read")
    add("--warmup-ratio", fraction, "share of the steps in which the rate rises")
    add("--weight-decay", fraction, "AdamW's, a step, times the learning rate")
    add("--seed", int, "of the head, the order and dropout")
    recipe.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default=defaults.precision,
        help=f"of the arithmetic, weights stay fp32; auto: {defaults.cuda_precision} on CUDA, "
        "bf16 on a CPU that has instructions for it, else fp32",
    )


def load_training_data(args: argparse.Namespace) -> tuple[list[Article], list[Article]]:
    """The training and validation articles, capped as asked. Raises InputError."""
    train = load_split(args.data_dir, "train")
    val = load_split(args.data_dir, "val")
    return capped(train, args.max_train_samples), capped(val, args.max_val_samples)


def capped(articles: list[Article], limit: int | None) -> list[Article]:
    """At most ``limit`` articles, evenly spaced, so that a file sorted by label still gives both."""
    if limit is None or limit >= len(articles):
        return articles
    return [articles[i * len(articles) // limit] for i in range(limit)]
