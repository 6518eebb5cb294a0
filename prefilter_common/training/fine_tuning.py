"""The one fine-tuning routine that both training scripts call."""

import ctypes
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from prefilter_common.articles import Article, format_input
from prefilter_common.checkpoints import Checkpoint
from prefilter_common.cli import InputError, is_main_process
from prefilter_common.engines import has_bf16
from prefilter_common.files import write_json, write_text
from prefilter_common.metrics import classification_metrics
from prefilter_common.processes import wait_for_all
from prefilter_common.recipe import PATIENCE, Recipe
from prefilter_common.report import model_card
from prefilter_common.runinfo import peak_memory_mib

log = logging.getLogger(__name__)

EVAL_KEYS = ("eval_loss", "eval_accuracy", "eval_f1", "eval_precision", "eval_recall")
# Articles are sorted by length within pools of this many batches: enough to drop nearly all padding, few enough
# that batches still differ from epoch to epoch.
POOL_BATCHES = 16
# Share of unknown tokens above which a tokenizer is not the model's own, or not made for these languages. Multilingual
# vocabularies stay below 0.5 %.
MAX_UNKNOWN = 0.1


def resolve_precision(recipe: Recipe) -> str:
    """fp32, fp16 or bf16. ``auto`` is ``recipe.cuda_precision`` on CUDA, on a CPU bf16 only where it is native.

    A CPU without bf16 instructions emulates them: 390 times slower than fp32 where that was measured (AVX2). Raises
    InputError for a precision that the device does not have.
    """
    cuda = torch.cuda.is_available()
    if recipe.precision == "auto":
        if cuda:
            return recipe.cuda_precision
        return "bf16" if has_bf16("pytorch", "cpu") else "fp32"
    if recipe.precision == "fp16" and not cuda:
        raise InputError("--precision fp16 needs a CUDA device; pass auto, fp32 or bf16")
    if recipe.precision == "bf16" and cuda and not has_bf16("pytorch", "cuda"):
        raise InputError("--precision bf16: this GPU has no bf16 arithmetic; pass auto, fp32 or fp16")
    return recipe.precision


def fine_tune(checkpoint: Checkpoint, train: list[Article], val: list[Article], recipe: Recipe, scratch: Path) -> dict:
    """Fine-tune ``checkpoint.model`` in place and leave it with the weights of its best epoch by validation F1.

    Args:
        scratch: a folder for the epochs' weights; it is gone afterwards.

    Returns:
        The content of ``training_metrics.json``: the best epoch's ``eval_*`` figures, the curve, the speed.
    """
    recipe = replace(recipe, precision=resolve_precision(recipe))
    set_seed(recipe.seed)
    progress = _ProgressLog()
    trainer = _trainer(checkpoint, train, val, recipe, scratch, progress)
    n_parameters, n_trainable = _count_parameters(checkpoint)
    effective_batch = recipe.batch_size * recipe.gradient_accumulation_steps * trainer.args.world_size
    log.info(
        f"{len(train)} articles, {recipe.epochs} epochs | {n_parameters / 1e6:.1f} M parameters, "
        f"{n_trainable / 1e6:.2f} M trainable | {recipe.precision} | effective batch {effective_batch} = "
        f"{recipe.batch_size} articles x {recipe.gradient_accumulation_steps} accumulation steps x "
        f"{trainer.args.world_size} processes"
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        _keep_freed_memory()
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    wait_for_all()  # before the weights that another process may still be reading back are deleted
    if is_main_process():
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        **_best_and_curve(trainer.state.log_history),
        "train_articles": len(train),
        "val_articles": len(val),
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds, 1),
        "median_step_seconds": round(float(np.median(progress.step_seconds)), 4),
        "train_articles_per_second": round(
            effective_batch * len(progress.step_seconds) / sum(progress.step_seconds), 2
        ),
        "effective_batch_size": effective_batch,
        "parameters": n_parameters,
        "trainable_parameters": n_trainable,
        "precision": recipe.precision,
        "peak_memory_mib": round(peak_memory_mib()),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
    }


def _trainer(
    checkpoint: Checkpoint,
    train: list[Article],
    val: list[Article],
    recipe: Recipe,
    scratch: Path,
    progress: TrainerCallback,
) -> Trainer:
    val = sorted(val, key=lambda article: len(format_input(article)))  # evaluated in order, so in like-length batches
    trainer = _LengthGroupedTrainer(
        model=checkpoint.model,
        args=_training_arguments(recipe, scratch),
        train_dataset=_encode(checkpoint, train),
        eval_dataset=_encode(checkpoint, val),
        data_collator=DataCollatorWithPadding(checkpoint.tokenizer),
        compute_metrics=_eval_metrics,
        callbacks=[EarlyStoppingCallback(PATIENCE), progress],
    )
    trainer.remove_callback(PrinterCallback)
    # A decoder's forward takes the arguments of a token-wise loss, from which the trainer concludes that the loss is a
    # sum over the global batch and scales it by processes and accumulation steps. A classifier's is a mean.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def _best_and_curve(log_history: list[dict]) -> dict:
    """The best epoch's figures, as the trainer chose it: the first of the highest F1."""
    curve = [_curve_entry(entry) for entry in log_history if "loss" in entry or "eval_f1" in entry]
    evaluations = [entry for entry in curve if "eval_f1" in entry]
    best = max(evaluations, key=lambda entry: entry["eval_f1"])
    return {
        **{key: best[key] for key in EVAL_KEYS},
        "epoch": evaluations[-1]["epoch"],
        "best_epoch": best["epoch"],
        "curve": curve,
    }


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step.

    By default every large tensor goes back to the kernel when it is freed and its pages are faulted in again at the
    next step: a fifth of the time of a training step on a CPU.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def save_model_directory(
    directory: Path, output: Path, checkpoint: Checkpoint, recipe: Recipe, metrics: dict, run: dict
) -> None:
    """Fill ``directory``, which will become ``output``, with all that a finished model consists of."""
    checkpoint.save(directory)
    write_json(directory / "training_metrics.json", metrics)
    write_json(directory / "run.json", {**run, "recipe": asdict(recipe)})
    card = model_card(output.as_posix(), checkpoint.contract, metrics, run, isinstance(checkpoint.model, PeftModel))
    write_text(directory / "README.md", card)


def _training_arguments(recipe: Recipe, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=2 * recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=recipe.weight_decay,
        optim="adamw_torch_fused",
        fp16=recipe.precision == "fp16",
        bf16=recipe.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=recipe.seed,
        ddp_find_unused_parameters=False,
        label_names=["labels"],  # not to be seen in a PEFT model's signature
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        logging_steps=0.05,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def _count_parameters(checkpoint: Checkpoint) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in checkpoint.model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def _encode(checkpoint: Checkpoint, articles: list[Article]) -> Dataset:
    """Token ids cut at ``max_length``, unpadded: the collator pads each batch to its own longest article."""
    encoded = checkpoint.tokenizer(
        [format_input(article) for article in articles], truncation=True, max_length=checkpoint.contract.max_length
    )
    n_tokens = sum(len(ids) for ids in encoded["input_ids"])
    n_unknown = sum(ids.count(checkpoint.tokenizer.unk_token_id) for ids in encoded["input_ids"])
    if n_unknown > MAX_UNKNOWN * n_tokens:
        raise InputError(
            f"{checkpoint.contract.base_model}: {n_unknown / n_tokens:.0%} of the articles' tokens are unknown to its "
            "tokenizer; name a multilingual model with the tokenizer it was trained with"
        )
    return Dataset.from_dict({**encoded, "labels": [article.label for article in articles]})


def _eval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions.astype(np.float64)
    # The trainer's own loss counts the articles twice with which it evens out the batches of several processes.
    log_loss = np.logaddexp(logits[:, 0], logits[:, 1]) - logits[np.arange(len(logits)), prediction.label_ids]
    # commerce where its logit is the larger: a probability of 0.5 or more
    metrics = classification_metrics(prediction.label_ids, logits[:, 1] - logits[:, 0], threshold=0.0)
    kept = {key: metrics[key] for key in ("accuracy", "f1", "precision", "recall")}
    return {"log_loss": float(log_loss.mean()), **kept}


def _curve_entry(entry: dict) -> dict:
    if "eval_log_loss" in entry:
        entry = {**entry, "eval_loss": entry["eval_log_loss"]}
        del entry["eval_log_loss"]
    return {key: value if math.isfinite(value) else None for key, value in entry.items()}


class _LengthGroupedTrainer(Trainer):
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in train_dataset["input_ids"]]
        return LengthGroupedSampler(lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)


class LengthGroupedSampler(Sampler[int]):
    """Shuffled batches of articles of like length.

    transformers' own grouping draws from the global random generator, which processes of one run do not share after
    their first dropout, and goes through each pool from its longest batch to its shortest. Here the order depends
    on seed and epoch alone, and the batches of a pool are shuffled.

    Args:
        lengths: (n,) tokens of each article.
        batch_size: articles that are processed at the same time, on all devices together.
        seed: of the shuffling.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(len(self.lengths))
        pool = self.batch_size * POOL_BATCHES
        order = np.concatenate([
            part[np.argsort(self.lengths[part], kind="stable")]
            for part in np.split(order, range(pool, len(order), pool))
        ])  # fmt: skip
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        # A last batch that is not full stays last, or it would shift the borders of those behind it.
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        for i in rng.permutation(len(batches)):
            yield from batches[i].tolist()
        for batch in last:
            yield from batch.tolist()


class _ProgressLog(TrainerCallback):
    """One whole line every few steps, which survives ``tail -f``; stops on a loss that is not a number."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        self.f1, self.started, self.mark = "–", time.perf_counter(), (0, time.perf_counter())
        self.step_seconds: list[float] = []
        self.step_articles = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        self.step_started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.step_seconds.append(time.perf_counter() - self.step_started)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **_) -> None:
        if "loss" not in logs or not state.is_world_process_zero:
            return
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} at step {state.global_step}: "
                "lower --learning-rate or pass --precision fp32"
            )
        now, (last_step, last_time) = time.perf_counter(), self.mark
        rate = (state.global_step - last_step) * self.step_articles / (now - last_time)
        left = (now - self.started) / state.global_step * (state.max_steps - state.global_step) / 60
        share = state.global_step / state.max_steps
        log.info(
            f"step {state.global_step}/{state.max_steps} ({share:.0%}) | loss {logs['loss']:.4f} | f1 {self.f1} | "
            f"{rate:.0f} articles/s | eta {left:.1f} min"
        )
        self.mark = (state.global_step, now)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict, **_
    ) -> None:
        self.f1 = f"{metrics['eval_f1']:.3f}"
        if state.is_world_process_zero:
            log.info(
                f"epoch {state.epoch:.0f} | validation f1 {self.f1} | precision {metrics['eval_precision']:.3f} | "
                f"recall {metrics['eval_recall']:.3f} | loss {metrics['eval_log_loss']:.4f}"
            )
        self.mark = (state.global_step, time.perf_counter())
