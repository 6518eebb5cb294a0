"""A transformers model in memory, on any device, and the modules that the other engines are converted from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from prefilter_common.errors import RunError
from prefilter_common.models.checks import commerce_index
from prefilter_common.models.encoder_layers import compute_first_token_only, in_parts, places_to_part
from prefilter_common.runinfo import peak_gpu_memory
from prefilter_common.scoring.engines.interface import REFERENCE, EngineName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TorchEngine:
    """A transformers model, on any device. Raises RunError where a GPU's memory does not suffice."""

    width_step = 1

    def __init__(self, model: "PreTrainedModel", device: str | torch.device, name: EngineName = REFERENCE):
        self.name = name
        self.precision = name.precision
        self.device = torch.device(device)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        self.model = model
        with _named_exhaustion("the model", "stop what else uses the GPU"):
            model.to(self.device, self._dtype).eval()
        self.places, self.parts = parts_of(model)
        self._whole = LogOdds(model, "input_ids")

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        return self._run(self._whole, input_ids, attention_mask).double().cpu().numpy()

    def part(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        found = self._run(self.parts[number], inputs, attention_mask).cpu()
        return found.float().numpy() if number < len(self.places) else found.double().numpy()

    def _run(self, module: torch.nn.Module, inputs: np.ndarray, attention_mask: np.ndarray) -> torch.Tensor:
        n, t = attention_mask.shape
        if n > 1:
            what, fix = f"a batch of {n} articles of up to {t} tokens", "pass a smaller --batch-size"
        else:
            what, fix = f"an article of {t} tokens", "stop what else uses the GPU"
        with _named_exhaustion(what, fix), torch.inference_mode():
            found = torch.from_numpy(inputs).to(self.device)
            if found.is_floating_point():
                found = found.to(self._dtype)
            return module(found, torch.from_numpy(attention_mask).to(self.device))


@contextmanager
def _named_exhaustion(what: str, fix: str) -> Iterator[None]:
    """Raise RunError where the GPU's memory does not hold ``what``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"the GPU's memory does not hold {what}{peak_gpu_memory()}: {fix}") from error


def parts_of(model: "PreTrainedModel") -> tuple[tuple[int, ...], list[torch.nn.Module]]:
    """After how many layers ``model`` is divided, and its parts, each with one output: states, the last one log-odds.

    The last layer of an encoder then computes what the head reads, and no more.
    """
    compute_first_token_only(model)
    places = places_to_part(model)
    if not places:
        return (), [LogOdds(model, "input_ids")]
    takes = ["input_ids", *("inputs_embeds" for _ in places)]
    *first, last = in_parts(model, places)
    return places, [*map(States, first, takes), LogOdds(last, takes[-1])]


class States(torch.nn.Module):
    """An encoder's layers: the (n, t, width) states after them, of what ``takes`` names."""

    def __init__(self, layers: torch.nn.Module, takes: str):
        super().__init__()
        self.layers, self.takes = layers, takes

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See Engine.part."""
        return self.layers(**{self.takes: inputs}, attention_mask=attention_mask)[0]


class LogOdds(torch.nn.Module):
    """A model or its last part: the (n,) log-odds of commerce, whether its head has one label or two."""

    def __init__(self, model: torch.nn.Module, takes: str):
        super().__init__()
        self.model, self.takes = model, takes
        self.commerce = commerce_index(model.config)

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See Engine.part."""
        logits = self.model(**{self.takes: inputs}, attention_mask=attention_mask).logits
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits[:, self.commerce] - logits[:, 1 - self.commerce]
