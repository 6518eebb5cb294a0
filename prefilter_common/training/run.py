"""A training script's run, from its options to a finished model directory.

Imports nothing heavy at the top, so that bad input fails before torch is loaded.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.articles import Article, labels_of
from prefilter_common.models.base_models import FAMILIES, locate_base
from prefilter_common.models.directory import VALIDATION_FILE, write_predictions
from prefilter_common.models.records import write_records
from prefilter_common.processes import is_main_process, own_device, shared_directory
from prefilter_common.runinfo import now
from prefilter_common.training.data import Data, load, require_both_labels
from prefilter_common.training.provenance import Job, TrainingRun, provenance, settings_to_continue
from prefilter_common.training.recipe import Recipe

if TYPE_CHECKING:
    from prefilter_common.models.checkpoints import Checkpoint
    from prefilter_common.training.progress import SeedRow, TrainingMetrics, ValidationFigures

log = logging.getLogger(__name__)

Adapt = Callable[["Checkpoint"], "Checkpoint"]


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model, what ``training_metrics.json`` says of it, and what made it."""

    checkpoint: "Checkpoint"
    metrics: "TrainingMetrics"
    run: TrainingRun


def train_model_directory(job: Job, recipe: Recipe, adapt: "Adapt | None" = None) -> None:
    """Check the input, load the base model, fine-tune it, write ``job.output``, print the summary line.

    Args:
        adapt: changes the base model before training, for instance by adding an adapter.

    Raises:
        InputError: before anything is written.
    """
    data = load(job.source)
    if recipe.probe_first:
        require_both_labels(data)
    locate_base(job.model)
    from prefilter_common.training.acceleration import resolve_precision
    from prefilter_common.training.interruption.failures import named_failures
    from prefilter_common.training.interruption.resume import checkpoint_folder, discard_checkpoints

    recipe = replace(recipe, precision=resolve_precision(recipe))
    with checkpoint_folder(job.output) as folder:
        with named_failures(recipe, folder), shared_directory(job.output, job.overwrite) as directory:
            train_all = train if recipe.seeds == 1 else train_seeds
            trained = train_all(job, recipe, data, folder, adapt)
            if is_main_process():
                checkpoint = calibrate(trained.checkpoint, data.val, directory, 2 * recipe.batch_size)
                save_model_directory(directory, job.output, checkpoint, trained.metrics, trained.run)
        if is_main_process():
            discard_checkpoints(folder)
    if is_main_process():
        print(summary_line(job.output, trained.metrics))


def train(
    job: Job, recipe: Recipe, data: Data, folder: Path, adapt: "Adapt | None",
    stale: Sequence[Path] = (),
) -> Trained:  # fmt: skip
    """Fine-tune one model, whose checkpoints go into ``folder``, or continue the newest of them."""
    from prefilter_common.models.checkpoints import load_base_model
    from prefilter_common.training.fine_tuning import fine_tune
    from prefilter_common.training.interruption.resume import starting_point
    from prefilter_common.training.interruption.saver import CheckpointSaver

    checkpoint = load_base_model(job.model, recipe.max_length, recipe.seed)
    if data.vocabulary is not None:
        checkpoint = keep_tokens_of(checkpoint, [*data.articles, *data.val, *data.vocabulary])
    if adapt is not None:
        checkpoint = adapt(checkpoint)
    run = provenance(job, recipe, checkpoint)
    settings = settings_to_continue(job, recipe, run)
    start, others = starting_point(folder, settings, job.resume)
    saver = CheckpointSaver(folder, settings, job.checkpoint_minutes, start, [*stale, *others])
    prepare(checkpoint, data, recipe, fit=start is None)
    return Trained(checkpoint, fine_tune(checkpoint, data, recipe, saver), run)


def keep_tokens_of(checkpoint: "Checkpoint", articles: Sequence[Article]) -> "Checkpoint":
    """The same model with only the tokens that the articles need."""
    from prefilter_common.scoring.tokenization import ArticleTokenizer
    from prefilter_common.training.compression.vocabulary import keep_tokens

    encodings = ArticleTokenizer.of(checkpoint.tokenizer).encode(articles)
    small = keep_tokens(checkpoint, {token for ids in encodings for token in ids})
    log.info(f"keeping {len(small.tokenizer):,} of {len(checkpoint.tokenizer):,} tokens")
    return small


def train_seeds(job: Job, recipe: Recipe, data: Data, folder: Path, adapt: "Adapt | None") -> Trained:
    """Fine-tune ``recipe.seeds`` models; keep the mean of their weights or, where that does harm, the best of them.

    The mean is a model soup (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482). The best of several on validation
    owes some of its lead to luck and the mean does not, so it is kept unless its log loss there is above their average.
    The runs' figures become ``seeds`` in the metrics, and ``kept`` says which it is: a seed, or ``mean``.
    """
    from prefilter_common.training.fine_tuning import trained_weights
    from prefilter_common.training.interruption.resume import seed_folder, stale_seeds

    stale = stale_seeds(folder, seed_folder(folder, recipe.seed), job.resume)
    metrics, runs, weights = [], [], []
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    for seed in seeds:
        log.info(f"seed {seed}")
        one = train(job, replace(recipe, seed=seed), data, seed_folder(folder, seed), adapt, stale)
        stale = []
        metrics.append(one.metrics)
        runs.append(one.run)
        weights.append(trained_weights(one.checkpoint.model))
        device = one.checkpoint.model.device
        one.checkpoint.model.to("cpu")  # what it took of a GPU is for the next
    rows: list[SeedRow] = [
        {"seed": seed, "eval_f1": row["eval_f1"], "eval_loss": row["eval_loss"], "best_epoch": row["best_epoch"]}
        for seed, row in zip(seeds, metrics, strict=True)
    ]
    # As its epochs are: a student by its log loss.
    best = max(range(len(seeds)), key=lambda i: (0 if data.teacher else rows[i]["eval_f1"], -rows[i]["eval_loss"]))
    # What is frozen is the same in each, so that the last model can take the weights of any.
    model = one.checkpoint.model
    model.to(device)
    model.load_state_dict({name: sum(w[name] for w in weights) / len(seeds) for name in weights[0]}, strict=False)
    figures = validate(one.checkpoint, data.val, 2 * recipe.batch_size)
    f1 = [row["eval_f1"] for row in rows]
    log.info(
        f"{len(seeds)} seeds | validation f1 {np.mean(f1):.3f} ± {np.std(f1, ddof=1):.3f}, {min(f1):.3f} to "
        f"{max(f1):.3f} | mean of their weights {figures['eval_f1']:.3f}"
    )
    use_mean = figures["eval_loss"] <= np.mean([row["eval_loss"] for row in rows])
    if not use_mean:
        model.load_state_dict(weights[best], strict=False)
    log.info(f"keeping {'the mean' if use_mean else f'seed {seeds[best]}'}")
    chosen: TrainingMetrics = {
        **metrics[best],
        "train_seconds": round(sum(row["train_seconds"] for row in metrics), 1),
        "seeds": rows,
        "kept": "mean" if use_mean else str(seeds[best]),
    }
    if use_mean:
        chosen.update(figures)
    return Trained(one.checkpoint, chosen, runs[0])


def prepare(checkpoint: "Checkpoint", data: Data, recipe: Recipe, fit: bool) -> None:
    """Give the model the form that the recipe trains; fit its head, unless a checkpoint is to replace the weights."""
    from prefilter_common.models.encoder_layers import compute_first_token_only, freeze_lowest, keep_lowest

    if recipe.layers:
        keep_lowest(checkpoint.model, recipe.layers)
    if recipe.probe_first:
        from prefilter_common.training.probe import add_mean_layer, start_from_probe

        if checkpoint.model.config.model_type in FAMILIES:
            add_mean_layer(checkpoint.model)
            compute_first_token_only(checkpoint.model)
            if fit:
                checkpoint.model.to(own_device())
                start_from_probe(checkpoint, data.train, data.val, recipe)
        else:
            log.warning(
                f"{checkpoint.contract.base_model}: no probe for models of type {checkpoint.model.config.model_type}, "
                f"only for {', '.join(FAMILIES)}; its head starts at random"
            )
    if recipe.frozen is not None:
        freeze_lowest(checkpoint.model, recipe.frozen)


def validate(checkpoint: "Checkpoint", val: Sequence[Article], batch_size: int) -> "ValidationFigures":
    """The ``eval_*`` figures of a model in memory, at a threshold of 0.5."""
    from sklearn.metrics import log_loss

    from prefilter_common.statistics.metrics import threshold_metrics

    labels, scores = labels_of(val), uncalibrated_scores(checkpoint, val, batch_size)
    (metrics,) = threshold_metrics(labels, scores, [0.5])
    return {
        "eval_loss": float(log_loss(labels, scores, labels=[0, 1])),
        "eval_accuracy": metrics["accuracy"],
        "eval_f1": metrics["f1"],
        "eval_precision": metrics["precision"],
        "eval_recall": metrics["recall"],
    }


def calibrate(checkpoint: "Checkpoint", val: Sequence[Article], directory: Path, batch_size: int) -> "Checkpoint":
    """Fit the temperature on the validation articles; write their calibrated scores into ``directory``.

    Args:
        batch_size: articles scored at once, as many as training evaluates at once, so that memory suffices.

    Returns:
        The same model with the temperature in its contract; 1.0 where one label alone leaves nothing to fit.
    """
    from prefilter_common.statistics.calibration import at_temperature, fit_temperature

    labels, scores = labels_of(val), uncalibrated_scores(checkpoint, val, batch_size)
    temperature = round(fit_temperature(labels, scores), 4) if len(np.unique(labels)) == 2 else 1.0
    log.info(f"temperature {temperature:.2f}, fitted on {len(val)} validation articles")
    write_predictions(directory / VALIDATION_FILE, val, at_temperature(scores, temperature))
    return replace(checkpoint, contract=replace(checkpoint.contract, temperature=temperature))


def uncalibrated_scores(checkpoint: "Checkpoint", articles: Sequence[Article], batch_size: int) -> np.ndarray:
    """(n,) P(commerce) at a temperature of 1, also of articles that the model would leave to another.

    The 0 that those score otherwise would be an error of unlimited confidence to a temperature.
    """
    from prefilter_common.scoring import Scorer

    plain = replace(checkpoint, contract=replace(checkpoint.contract, temperature=1.0, max_unknown=None))
    return Scorer.of(plain, checkpoint.model.device).score(articles, batch_size)


def save_model_directory(
    directory: Path, output: Path, checkpoint: "Checkpoint", metrics: "TrainingMetrics", run: TrainingRun
) -> None:
    """Fill ``directory``, which will become ``output``, with the checkpoint and its records."""
    from peft import PeftModel

    checkpoint.save(directory)
    run, adapter = run | {"finished": now()}, isinstance(checkpoint.model, PeftModel)
    write_records(directory, output.as_posix(), checkpoint.contract, metrics, run, adapter)


def summary_line(output: Path, metrics: Mapping) -> str:
    """A training run's last line on stdout: one compact JSON object."""
    keys = ("eval_f1", "eval_precision", "eval_recall", "best_epoch", "train_seconds", "train_articles_per_second")
    return json.dumps({"model": str(output), **{key: metrics[key] for key in keys}}, separators=(",", ":"))
