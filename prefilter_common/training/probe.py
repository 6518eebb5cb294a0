"""A linear probe of the frozen encoder, written into a standard head, from which fine-tuning starts.

Fine-tuning from a random head distorts the pretrained features before the head points anywhere (Kumar et al. 2022,
https://arxiv.org/abs/2202.10054). Here a logistic regression on the mean of the last hidden states is fitted first. The
mean comes from an encoder layer that is added at the end: its queries are zero, so its attention is uniform over the
tokens that are no padding; its values are the identity; its feed-forward part adds nothing. At the first token, which
every head of these classes reads, its output is therefore the normalised mean, and the checkpoint stays one of a
standard class that ``transformers.pipeline`` and every engine load.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from transformers import PreTrainedModel

from prefilter_common.articles import COMMERCE, JOURNALISM, Article, capped, cut_at_random, labels_of
from prefilter_common.models.checkpoints import Checkpoint
from prefilter_common.models.encoder_layers import Layer, layers_of
from prefilter_common.scoring.tokenization import ArticleTokenizer
from prefilter_common.training.recipe import Recipe

log = logging.getLogger(__name__)

# The first token's own state is a tenth of what the added layer gives for it; the rest is the mean of all tokens.
MEAN_WEIGHT = 10.0
# Inverse strengths of the L2 penalty, from which validation chooses.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# The largest log-odds of a training article, at the input of the head's tanh. Below 1 tanh is nearly linear, but the
# smaller it is, the further one step of AdamW turns the probe's direction.
LARGEST_INPUT = 1.0
# Of each set at most so many articles are read: more cost time, and the fine-tuning that follows learns from all.
MOST_ARTICLES = 750
# Articles per forward pass; no gradients are kept.
BATCH = 32


def add_mean_layer(model: PreTrainedModel) -> None:
    """Add an encoder layer whose output at the first token is the normalised mean of its input, in place.

    It replaces that of an earlier training, which the configuration remembers: a model does not grow each time it is
    trained. What the mean leaves free is drawn from a seed of its own, so that the weights of several runs can be
    averaged.
    """
    layers = layers_of(model)
    if getattr(model.config, "mean_layer", None) == len(layers):
        del layers[-1]
    added = copy.deepcopy(layers[-1])
    parts = Layer.of(added)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for linear in (parts.query, parts.key, parts.value, parts.attention_output, parts.up, parts.down):
            linear.bias.zero_()
            linear.weight.zero_()
        for linear in (parts.key, parts.up):  # with queries or an output of zero they have no effect, but can learn
            linear.weight.normal_(std=model.config.initializer_range, generator=generator)
        parts.value.weight.fill_diagonal_(1.0)
        parts.attention_output.weight.fill_diagonal_(MEAN_WEIGHT)
        for norm in (parts.attention_norm, parts.output_norm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    layers.append(added)
    model.config.num_hidden_layers = model.config.mean_layer = len(layers)


def start_from_probe(checkpoint: Checkpoint, train: Sequence[Article], val: Sequence[Article], recipe: Recipe) -> None:
    """Fit a probe on the articles and on copies of them cut as in training, and write it into the head.

    ``add_mean_layer`` has been called. The same seed gives the same probe; the penalty is chosen on the validation
    articles and their cut copies.
    """
    rng = np.random.default_rng((recipe.seed, 0, 2))
    train, val = (capped(articles, MOST_ARTICLES) for articles in (train, val))
    known, checked = (
        _features(checkpoint, [*articles, *cut_at_random(articles, rng)], recipe.precision) for articles in (train, val)
    )
    labels, checked_labels = (np.tile(labels_of(articles), 2) for articles in (train, val))
    weights, intercept, figures = fit_probe(known, labels, checked, checked_labels, recipe.cost_of_blocking)
    write_probe(checkpoint.model, weights, intercept, float(np.abs(known @ weights + intercept).max()))
    log.info(f"probe on frozen features | validation f1 {figures['f1']:.3f} | loss {figures['log_loss']:.4f}")


def _features(checkpoint: Checkpoint, articles: Sequence[Article], precision: str) -> np.ndarray:
    """(n, width) float32: what the head reads of each article, computed in the precision of the training."""
    model, tokenizer = checkpoint.model.eval(), ArticleTokenizer.of(checkpoint.tokenizer)
    encodings = tokenizer.encode(articles, checkpoint.contract.max_length)
    found = np.empty((len(articles), model.config.hidden_size), dtype=np.float32)
    low = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    with torch.inference_mode(), torch.autocast(model.device.type, low, enabled=low is not None):
        for batch, padded in tokenizer.batches(encodings, BATCH):
            input_ids, attention_mask = (torch.from_numpy(array).to(model.device) for array in padded)
            states = model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
            found[batch] = states[:, 0].float().cpu().numpy()
    return found


def fit_probe(
    train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray, cost_of_blocking: float = 1.0
) -> tuple[np.ndarray, float, dict[str, Any]]:
    """The logistic regression on (n, width) features whose penalty gives the lowest log loss on validation.

    Returns:
        Its (width,) weights, its intercept, and its figures.
    """
    centre = train.mean(axis=0)
    costs = {JOURNALISM: cost_of_blocking, COMMERCE: 1.0}
    probes = [
        LogisticRegression(C=strength, class_weight=costs, max_iter=2000).fit(train - centre, labels)
        for strength in STRENGTHS
    ]
    losses = [log_loss(val_labels, probe.predict_proba(val - centre)) for probe in probes]
    best = int(np.argmin(losses))
    weights, intercept = probes[best].coef_[0], float(probes[best].intercept_[0])
    f1 = f1_score(val_labels, probes[best].predict(val - centre), zero_division=0)
    figures = {"inverse_penalty": STRENGTHS[best], "log_loss": losses[best], "f1": f1}
    return weights, intercept - float(weights @ centre), figures


def write_probe(model: PreTrainedModel, weights: np.ndarray, intercept: float, largest: float) -> None:
    """Write a probe into the head of ``model``, which then gives the probe's log-odds, but for the bend of a tanh.

    Args:
        largest: the largest absolute log-odds that the probe gives for a training article.
    """
    scale = LARGEST_INPUT / largest
    row = torch.from_numpy(weights * scale).float()
    if model.config.model_type == "distilbert":
        first, out = model.pre_classifier, model.classifier
        rows, biases, columns = [row, -row], [intercept * scale, -intercept * scale], [1.0, -1.0]  # ReLU(x) - ReLU(-x)
    else:
        head = model.classifier
        first, out = (head.dense, head.out_proj) if hasattr(head, "out_proj") else (model.bert.pooler.dense, head)
        rows, biases, columns = [row], [intercept * scale], [1.0]
    with torch.no_grad():
        first.weight.zero_().fill_diagonal_(0.5)
        first.bias.zero_()
        out.weight.zero_()
        out.bias.zero_()
        for i, (weight, bias, column) in enumerate(zip(rows, biases, columns, strict=True)):
            first.weight[i] = weight
            first.bias[i] = bias
            out.weight[COMMERCE, i] = column / (2 * scale)
            out.weight[JOURNALISM, i] = -column / (2 * scale)
