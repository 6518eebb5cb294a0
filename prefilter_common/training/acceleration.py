"""What makes a training step faster, on a CPU or a GPU, and changes nothing but rounding."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from prefilter_common.errors import InputError
from prefilter_common.models.base_models import FAMILIES
from prefilter_common.scoring.engines.interface import has_bf16
from prefilter_common.training.recipe import Recipe

ATTENTION = "sdpa_fp32"
# Model types whose training step is known not to wait for the device, so that it can be a CUDA graph.
GRAPHED = (*FAMILIES, "qwen2")

Inputs = dict[str, torch.Tensor]


def resolve_precision(recipe: Recipe) -> str:
    """fp32, fp16 or bf16. ``auto`` is ``recipe.cuda_precision`` on CUDA, or fp16 on a GPU that lacks it, and on a CPU
    bf16 only where it is native.

    A CPU without bf16 instructions emulates them, 390 times slower than fp32 where that was measured (AVX2). Raises
    InputError for a precision that the device lacks.
    """
    cuda = torch.cuda.is_available()
    if recipe.precision == "auto":
        wanted, lacking = (recipe.cuda_precision, "fp16") if cuda else ("bf16", "fp32")
        return lacking if wanted == "bf16" and not has_bf16("pytorch", "cuda" if cuda else "cpu") else wanted
    if recipe.precision == "fp16" and not cuda:
        raise InputError("--precision fp16 needs a CUDA device; pass auto, fp32 or bf16")
    if recipe.precision == "bf16" and cuda and not has_bf16("pytorch", "cuda"):
        raise InputError("--precision bf16: this GPU has no bf16 arithmetic; pass auto, fp32 or fp16")
    return recipe.precision


@contextmanager
def faster_attention(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Within the block the fused attention of ``model`` computes in fp32 where bf16 is slower.

    Forwards and backwards it took 46 against 16 ms for 16 articles of 96 tokens, 272 against 222 ms for 512 (12 heads
    of 32, one core of an Intel Xeon with AMX, torch 2.13.0).
    """
    implementation = model.config._attn_implementation
    if precision != "bf16" or model.device.type != "cpu" or implementation != "sdpa":
        yield
        return
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        mixed, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **settings
        )  # fmt: skip
    return mixed.to(query.dtype), None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step.

    By default every large tensor is returned to the kernel when it is freed, and its pages are faulted in again at the
    next step: a fifth of a training step's time on a CPU.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the kernel back what ``keep_freed_memory`` made glibc keep."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@dataclass
class StepGraphs:
    """A training step, forward and backward, as one CUDA graph for each shape of a batch.

    Of a small model's step the GPU computes for a sixth of the time; the rest is Python, which launches a thousand
    kernels. A graph is launched as a whole. The first batch of a shape is computed without one, since CUDA's libraries
    set themselves up then; the second is recorded.

    Args:
        step: computes the loss of a batch and adds to the gradients of ``model``, without waiting for the device.
    """

    step: Callable[[Inputs], torch.Tensor]
    model: torch.nn.Module
    # One pool of memory, and the same gradients, for all graphs, of which only one is ever under way.
    _pool: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle())
    _gradients: dict[torch.nn.Parameter, torch.Tensor] = field(default_factory=dict)
    _graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Inputs, torch.Tensor] | None] = field(default_factory=dict)

    def __call__(self, batch: Inputs) -> torch.Tensor:
        """The loss of a batch, whose gradients replace those that were there."""
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        shape = batch["input_ids"].shape
        if shape not in self._graphs:
            self._graphs[shape] = None
            loss = self._from_zero(batch)
            self._gradients = {p: p.grad for p in self.model.parameters() if p.grad is not None}
            return loss
        graph, inputs, loss = self._graphs[shape] or self._record(batch)
        for name, values in batch.items():
            inputs[name].copy_(values)
        graph.replay()
        return loss.clone()

    def _record(self, batch: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, torch.Tensor]:
        graph, inputs = torch.cuda.CUDAGraph(), {name: values.clone() for name, values in batch.items()}
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = self._from_zero(inputs)
        found = self._graphs[batch["input_ids"].shape] = graph, inputs, loss
        return found

    def _from_zero(self, batch: Inputs) -> torch.Tensor:
        for gradient in self._gradients.values():
            gradient.zero_()
        return self.step(batch)
