"""The fine-tuning routine that both training scripts use."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from prefilter_common.articles import format_input, labels_of
from prefilter_common.errors import InputError
from prefilter_common.models.base_models import FAMILIES
from prefilter_common.models.checkpoints import Checkpoint
from prefilter_common.runinfo import peak_memory_mib
from prefilter_common.scoring.tokenization import ArticleTokenizer
from prefilter_common.training.acceleration import GRAPHED, Inputs, StepGraphs, faster_attention, keep_freed_memory
from prefilter_common.training.compression.deep_supervision import HEAD_WEIGHT, exit_heads
from prefilter_common.training.compression.distillation import DistillationTexts, load_teacher
from prefilter_common.training.data import Data
from prefilter_common.training.interruption.saver import CheckpointSaver
from prefilter_common.training.progress import TrainingMetrics, curve_entry, epoch_figures
from prefilter_common.training.recipe import PATIENCE, Recipe
from prefilter_common.training.sampling import LengthGroupedSampler, TrainingTexts, padded

log = logging.getLogger(__name__)

# Batches whose step is a CUDA graph are padded to multiples of so many tokens: each shape has a graph of its own.
WIDTH_STEP = 64
# A share of unknown tokens above this means that the tokenizer is not the model's own, or does not cover these
# languages. Multilingual vocabularies stay below 0.5 %.
MAX_UNKNOWN = 0.1


def fine_tune(checkpoint: Checkpoint, data: Data, recipe: Recipe, saver: CheckpointSaver) -> TrainingMetrics:
    """Fine-tune ``checkpoint.model`` in place; it ends with the weights of its best epoch on validation articles.

    That is the one with the highest F1 or, of a student, the lowest log loss: F1 moves in whole articles, and a student
    learns soft targets, so that it seldom errs with certainty.

    Args:
        recipe: its precision resolved.
        saver: where checkpoints go, and the one to continue.
    """
    set_seed(recipe.seed)
    trainer = _trainer(checkpoint, data, recipe, saver)
    n_parameters, n_trainable = _count_parameters(checkpoint)
    effective_batch = recipe.articles_per_step(trainer.args.world_size)
    log.info(
        f"articles {len(data.articles)} | epochs {recipe.epochs} | {n_parameters / 1e6:.1f} M parameters, "
        f"{n_trainable / 1e6:.2f} M trainable | {recipe.precision} | effective batch {effective_batch}: "
        f"{recipe.batch_size} per process, accumulation steps {recipe.gradient_accumulation_steps}, processes "
        f"{trainer.args.world_size}"
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        keep_freed_memory()
    # The classic recipe keeps its results, bit for bit.
    precision = recipe.precision if recipe.probe_first else "fp32"
    heads = exit_heads(checkpoint.model) if data.teacher else nullcontext()
    with saver.signals_wait(), faster_attention(checkpoint.model, precision), heads:
        trainer.train(resume_from_checkpoint=str(saver.start) if saver.start else None)
        seconds = saver.progress.seconds()
    trainer.graphs = None  # they refer to the trainer, so that neither, nor what both have on the GPU, would be freed
    # Mixed precision leaves the forward pass wrapped, and scores must be those of the float32 weights that are saved.
    trainer.accelerator.unwrap_model(checkpoint.model, keep_fp32_wrapper=False)
    curve = [curve_entry(entry) for entry in trainer.state.log_history if "loss" in entry or "eval_f1" in entry]
    evaluations = [entry for entry in curve if "eval_f1" in entry]
    best = next(entry for entry in evaluations if entry["step"] == trainer.state.best_global_step)
    return {
        "eval_loss": best["eval_loss"],
        "eval_accuracy": best["eval_accuracy"],
        "eval_f1": best["eval_f1"],
        "eval_precision": best["eval_precision"],
        "eval_recall": best["eval_recall"],
        "best_epoch": best["epoch"],
        "epoch": evaluations[-1]["epoch"],
        "curve": curve,
        "train_articles": len(data.articles),
        "val_articles": len(data.val),
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds, 1),
        "median_step_seconds": round(float(np.median(saver.progress.step_seconds)), 4),
        "train_articles_per_second": round(
            len(data.articles) * evaluations[-1]["epoch"] / sum(saver.progress.step_seconds), 2
        ),
        "effective_batch_size": effective_batch,
        "parameters": n_parameters,
        "trainable_parameters": n_trainable,
        "precision": recipe.precision,
        "peak_memory_mib": round(peak_memory_mib()),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
    }


def _trainer(checkpoint: Checkpoint, data: Data, recipe: Recipe, saver: CheckpointSaver) -> Trainer:
    val = sorted(data.val, key=lambda article: len(format_input(article)))  # evaluated in batches of similar length
    tokenizer, max_length = ArticleTokenizer.of(checkpoint.tokenizer), checkpoint.contract.max_length
    settings = (tokenizer, data.articles, data.targets, max_length, recipe.cut_share, recipe.seed)
    if data.teacher:
        train_texts = DistillationTexts(load_teacher(data.teacher, 2 * recipe.batch_size, recipe.precision), *settings)
    else:
        train_texts = TrainingTexts(*settings)
    val_texts = TrainingTexts(tokenizer, val, labels_of(val), max_length)
    for texts in (train_texts, val_texts):
        _require_known_tokens(checkpoint, texts)
    args = _training_arguments(recipe, saver, "log_loss" if data.teacher else "f1")
    graphed = (
        torch.cuda.is_available()
        and args.world_size == args.gradient_accumulation_steps == 1
        and checkpoint.model.config.model_type in GRAPHED
        # The classic recipe's batches keep their widths, on which its dropout depends.
        and (recipe.probe_first or checkpoint.model.config.model_type not in FAMILIES)
    )
    plain = recipe.cost_of_blocking == 1 and data.targets.dtype == int and not data.teacher
    trainer = _LengthGroupedTrainer(
        model=checkpoint.model,
        args=args,
        train_dataset=train_texts,
        eval_dataset=val_texts,
        data_collator=partial(padded, tokenizer, WIDTH_STEP if graphed else 1, max_length),
        compute_metrics=epoch_figures,
        callbacks=[EarlyStoppingCallback(PATIENCE), saver.progress, saver],
    )
    # The model's own is the same where every target is a label.
    trainer.loss = None if plain else weighted_loss(recipe.cost_of_blocking, data.targets)
    trainer.first_epoch = saver.epoch
    trainer.remove_callback(PrinterCallback)
    # A decoder's forward pass accepts the arguments of a token-wise loss, so the trainer assumes a sum over the global
    # batch and scales it by processes and accumulation steps. A classifier's loss is a mean.
    trainer.model_accepts_loss_kwargs = False
    if graphed:
        trainer.graphs = StepGraphs(trainer.eager_step, checkpoint.model)
    return trainer


def weighted_loss(cost_of_blocking: float, targets: np.ndarray) -> Callable[..., torch.Tensor]:
    """The mean log loss of (n, 2) logits, with journalism weighted ``cost_of_blocking`` times as much as commerce.

    Labels may be 0 and 1, or probabilities of commerce, (n,). It is divided by the mean weight of all (k,) ``targets``:
    by the batch's own, a batch of journalism alone would weigh as much at any cost.
    """
    mean_weight = float(np.mean(cost_of_blocking * (1 - targets) + targets))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        weighted = torch.stack([cost_of_blocking * (1 - labels), labels], dim=1).to(logits.dtype)
        return -(weighted * logits.log_softmax(dim=1)).sum() / (len(labels) * mean_weight)

    return loss


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights that are trained, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def _training_arguments(recipe: Recipe, saver: CheckpointSaver, metric: str) -> TrainingArguments:
    # Otherwise the launcher's configuration would decide what fp32 is.
    os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no"}.get(recipe.precision, recipe.precision)
    args = TrainingArguments(
        output_dir=str(saver.folder),
        # The trainer forgets that a run stopped early, and would train on.
        num_train_epochs=saver.epoch if saver.over else recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=2 * recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_ratio,  # below 1 a share of the steps
        weight_decay=recipe.weight_decay,
        optim="adamw_torch_fused",
        fp16=recipe.precision == "fp16",
        bf16=recipe.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=recipe.seed,
        ddp_find_unused_parameters=False,
        label_names=["labels"],  # the signature of a PEFT model hides them
        eval_strategy="epoch",
        save_strategy="epoch",
        restore_callback_states_from_checkpoint=True,  # early stopping's memory
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=metric == "f1",
        logging_steps=0.05,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )
    # One process, one GPU: with more the trainer would multiply the recipe's batch and divide it among them.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _count_parameters(checkpoint: Checkpoint) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in checkpoint.model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def _require_known_tokens(checkpoint: Checkpoint, texts: TrainingTexts) -> None:
    ids = [token for article in texts.whole for token in article]
    if (share := ids.count(checkpoint.tokenizer.unk_token_id) / len(ids)) > MAX_UNKNOWN:
        raise InputError(
            f"{checkpoint.contract.base_model}: {share:.0%} of the articles' tokens are unknown to its tokenizer; name "
            "a multilingual model with the tokenizer it was trained with"
        )


class _LengthGroupedTrainer(Trainer):
    first_epoch = 0
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    graphs: StepGraphs | None = None

    def eager_step(self, batch: Inputs) -> torch.Tensor:
        return super().training_step(self.model_wrapped, batch)

    def training_step(self, model: torch.nn.Module, inputs: Inputs, *counts: Any) -> torch.Tensor:
        return self.graphs(inputs) if self.graphs else super().training_step(model, inputs, *counts)

    def compute_loss(
        self, model: torch.nn.Module, inputs: Inputs, return_outputs: bool = False, **counts: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        # The trainer's own option for a loss takes it for a sum over the steps that are accumulated.
        if self.loss is None:
            return super().compute_loss(model, inputs, return_outputs, **counts)
        texts = {name: values for name, values in inputs.items() if name != "labels"}
        heads = getattr(self.model, "exit_heads", None) if model.training else None
        outputs = model(**texts, output_hidden_states=heads is not None)
        loss = self.loss(outputs.logits, inputs["labels"])
        if heads is not None:
            for logits in heads(outputs.hidden_states, inputs["attention_mask"]):
                loss = loss + HEAD_WEIGHT * self.loss(logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        n = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(train_dataset or self.train_dataset, n, self.args.seed, self.first_epoch)
