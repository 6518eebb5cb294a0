"""The layers of an encoder whose head reads its first token alone, whatever its class calls their parts."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from prefilter_common.errors import InputError
from prefilter_common.models.base_models import FAMILIES


@dataclass(frozen=True)
class Layer:
    """The parts of one encoder layer."""

    query: torch.nn.Linear
    key: torch.nn.Linear
    value: torch.nn.Linear
    attention_output: torch.nn.Linear
    attention_norm: torch.nn.LayerNorm
    up: torch.nn.Linear
    down: torch.nn.Linear
    output_norm: torch.nn.LayerNorm

    @classmethod
    def of(cls, layer: torch.nn.Module) -> "Layer":
        """The parts of a layer of one of the ``FAMILIES``."""
        if hasattr(layer, "ffn"):  # DistilBERT
            attention, ffn = layer.attention, layer.ffn
            return cls(
                attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, layer.sa_layer_norm,
                ffn.lin1, ffn.lin2, layer.output_layer_norm,
            )  # fmt: skip
        own, output = layer.attention.self, layer.attention.output
        return cls(
            own.query, own.key, own.value, output.dense, output.LayerNorm,
            layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm,
        )  # fmt: skip


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The encoder layers of a model of one of the ``FAMILIES``, first to last."""
    body = model.base_model
    return body.transformer.layer if model.config.model_type == "distilbert" else body.encoder.layer


def keep_lowest(model: PreTrainedModel, n: int) -> None:
    """Drop all layers but the first ``n``, in place.

    Raises InputError for a model that has fewer, or is of none of the ``FAMILIES``.
    """
    if model.config.model_type not in FAMILIES:
        raise InputError(f"--layers needs a base model of one of the types {', '.join(FAMILIES)}; name another --model")
    layers = layers_of(model)
    if getattr(model.config, "mean_layer", None) == len(layers):  # which belongs to the head (``training.probe``)
        del layers[-1]
    if n > len(layers):
        raise InputError(f"--layers {n}: the base model has only {len(layers)}; pass that or less")
    del layers[n:]
    model.config.num_hidden_layers = n


def freeze_lowest(model: PreTrainedModel, share: float) -> None:
    """Exclude the embeddings, and ``share`` of the layers from the first on, from training, in place.

    Of a model of another family only the token embeddings.
    """
    if model.config.model_type not in FAMILIES:
        model.get_input_embeddings().requires_grad_(False)
        return
    layers = layers_of(model)
    for part in (model.base_model.embeddings, *layers[: int(share * len(layers))]):
        part.requires_grad_(False)


def compute_first_token_only(model: PreTrainedModel) -> None:
    """Make the last layer compute the first token alone, which is all that the head reads, in place.

    Exact but for rounding: keys and values still come from every token, and the rest of the layer's arithmetic, five
    sixths of it, is done for one. Weights and their names stay as they are. A model of another family, or with an
    attention that takes no mask per query, is left alone.
    """
    if model.config.model_type in FAMILIES and model.config._attn_implementation in ("sdpa", "eager"):
        last = layers_of(model)[-1]
        last.forward = partial(_first_token, last)


def places_to_part(model: PreTrainedModel) -> tuple[int, ...]:
    """After how many layers the model may be divided: a sixth, a third and two thirds; none for another family.

    The last layer reads the first token alone, so that nothing is left to save in it.
    """
    if model.config.model_type not in FAMILIES:
        return ()
    n = len(layers_of(model))
    return tuple(sorted({n // 6, n // 3, 2 * n // 3} - {0, n}))


def in_parts(model: PreTrainedModel, places: Sequence[int]) -> list[torch.nn.Module]:
    """``model`` divided after so many layers, in parts that share its weights.

    The first takes ``input_ids``, each of the others the states of the one before as ``inputs_embeds``, and all of them
    ``attention_mask``. All but the last give states as their first output; the last gives ``logits``.
    """
    body, layers = model.base_model, layers_of(model)
    parts = []
    for first, last in pairwise([0, *places, len(layers)]):
        own = layers[first:last]
        if model.config.model_type == "distilbert":
            part = _with(body, transformer=_with(body.transformer, layer=own))
        else:
            part = _with(body, encoder=_with(body.encoder, layer=own))
        if first:
            part = _with(part, embeddings=_States())
        if last < len(layers):
            parts.append(_with(part, pooler=None))
        else:
            parts.append(_with(model, **{model.base_model_prefix: part}))
    return parts


class _States(torch.nn.Module):
    """In the place of the embeddings of a part that goes on from states."""

    def forward(
        self, input_ids: None = None, inputs_embeds: torch.Tensor | None = None, *_: Any, **_ids: Any
    ) -> torch.Tensor | None:
        return inputs_embeds


def _with(module: Any, **parts: torch.nn.Module | None) -> Any:
    """A copy of a module that shares everything but these parts with it."""
    found = copy.copy(module)
    found._modules = {**module._modules, **parts}
    return found


def exact_parts(model: PreTrainedModel) -> str:
    """A regular expression for the names of the parts that int8 leaves alone: the head and an encoder's last layer.

    They cost little, since all but that layer's keys and values are of one token, and a probe's decision rests on few
    of their weights.
    """
    last = rf"|layer\.{len(layers_of(model)) - 1}" if model.config.model_type in FAMILIES else ""
    return rf"[./](pooler|pre_classifier|classifier|score{last})[./]"


def _first_token(
    layer: torch.nn.Module,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *_of_decoders: Any,
    **_settings: Any,
) -> torch.Tensor:
    """(n, 1, width): what ``layer`` gives for the first of the (n, t, width) states."""
    parts = Layer.of(layer)
    attention = layer.attention if hasattr(layer, "ffn") else layer.attention.self
    first = hidden_states[:, :1]

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

    mixed = scaled_dot_product_attention(
        heads(parts.query(first)),
        heads(parts.key(hidden_states)),
        heads(parts.value(hidden_states)),
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
        dropout_p=attention.dropout.p if layer.training else 0.0,
    )
    mixed = mixed.transpose(1, 2).reshape(first.shape)
    if hasattr(layer, "ffn"):
        attended = layer.sa_layer_norm(layer.attention.out_lin(mixed) + first)
        return layer.output_layer_norm(layer.ffn(attended) + attended)
    return layer.feed_forward_chunk(layer.attention.output(mixed, first))
