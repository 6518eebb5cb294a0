"""The fine-tuning recipe: hyperparameters, and the flags that both training scripts share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from prefilter_common.cli import batch_size, count, fraction, max_length, positive_float, seed, whole_number

# Epochs without a better validation F1 (of a student, log loss) after which training stops.
PATIENCE = 2


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a fine-tuning run; the defaults are those of the classic recipe for encoders.

    ``probe_first`` fits the head on frozen features before fine-tuning starts (``probe``); ``cut_share`` is the share
    of the articles that each epoch cuts to the length of a feed's snippet; ``frozen`` is the share of the layers, from
    the first on, that stay as they were pretrained, with the embeddings; None trains everything. ``layers`` is how many
    layers of the base model are kept, from the first on; None keeps all.
    """

    probe_first: bool = False
    cut_share: float = 0.0
    frozen: float | None = None
    layers: int | None = None
    cost_of_blocking: float = 1.0
    seeds: int = 1
    epochs: int = 3
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    max_length: int = 512
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    precision: str = "auto"
    cuda_precision: str = "fp16"  # what "auto" stands for on CUDA
    seed: int = 42

    @classmethod
    def from_args(cls, args: argparse.Namespace, defaults: "Recipe") -> "Recipe":
        """``defaults``, overridden by the flags."""
        return replace(defaults, **{f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)})

    def articles_per_step(self, processes: int) -> int:
        """The effective batch: articles per optimiser step."""
        return self.batch_size * self.gradient_accumulation_steps * processes


CLASSIC = Recipe()
# Linear probing, then fine-tuning (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
# Layers without gradients take a third of the arithmetic and little memory.
LP_FT = replace(CLASSIC, probe_first=True, cut_share=0.75, frozen=1 / 3, learning_rate=5e-5)
# Of a model that learns from a teacher: each epoch has four times the texts, and even its lowest layers feed an exit.
DISTILLATION = replace(LP_FT, cut_share=0.0, frozen=0.0, learning_rate=7e-5)
INTERRUPTION = (
    "SIGINT, SIGTERM and SIGHUP save a checkpoint first, in a hidden folder beside --output until the run is done.\nA "
    "resumed run ends with the same weights, bit for bit, on a CPU with the same number of threads."
)
RECIPES = {"classic": CLASSIC, "lp-ft": LP_FT}


def add_training_arguments(parser: argparse.ArgumentParser, defaults: Recipe) -> None:
    """Add the flags that both training scripts share."""
    data = parser.add_argument_group("data")
    data.add_argument("--data-dir", type=Path, default=Path("splits"), help="folder with train.jsonl and val.jsonl")
    data.add_argument("--max-train-samples", type=count, metavar="N", help="train on at most N articles of each file")
    data.add_argument("--max-val-samples", type=count, metavar="N", help="validate on at most N articles")
    data.add_argument(
        "--allow-overlap", action="store_true", help="train even where articles of train are also in val or test"
    )
    ends = f"Training ends after {PATIENCE} epochs that are no better on validation articles."
    recipe = parser.add_argument_group("recipe", ends)

    def add(flag: str, kind: Callable, text: str) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        recipe.add_argument(flag, type=kind, default=getattr(defaults, name), metavar="N", help=text)

    add("--epochs", whole_number(1, 1000), "maximum number of passes over the training set")
    add("--batch-size", batch_size, "articles per step on each device")
    add("--gradient-accumulation-steps", batch_size, "batches per optimiser step")
    add("--learning-rate", positive_float, "peak learning rate of AdamW")
    add("--max-length", max_length, "tokens read of each article")
    add("--warmup-ratio", fraction, "share of the steps during which the learning rate rises")
    add("--weight-decay", fraction, "weight decay of AdamW, per step and relative to the learning rate")
    add("--seed", seed, "random seed of the new head, the order of the articles and dropout")
    add("--seeds", whole_number(1, 100), "runs, from --seed on; keeps the mean of their weights, or the best run")
    recipe.add_argument(
        "--cost-of-blocking",
        type=positive_float,
        default=defaults.cost_of_blocking,
        metavar="N",
        help="weight of a journalism article in the loss, relative to a commerce article",
    )
    recipe.add_argument(
        "--soft-labels",
        nargs="?",
        type=Path,
        const=True,
        metavar="FILE",
        help="learn commerce_score, where an article has one, as a probability; with FILE, articles of any score, such "
        "as those from 3 to 7 that the splits leave out, are trained on as well",
    )
    fallback = " (fp16 where a GPU lacks it)" if defaults.cuda_precision == "bf16" else ""
    recipe.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default=defaults.precision,
        help=f"arithmetic, with weights kept in fp32; auto is {defaults.cuda_precision} on CUDA{fallback}, "
        "bf16 on a CPU that has instructions for it, and fp32 elsewhere",
    )
    interruption = parser.add_argument_group("interruption", INTERRUPTION)
    interruption.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of the same command from its last checkpoint"
    )
    interruption.add_argument(
        "--checkpoint-minutes",
        type=positive_float,
        default=10,
        metavar="N",
        help="minutes between checkpoints; one is also saved after each epoch",
    )
