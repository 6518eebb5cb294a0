"""What every engine offers, which engines there are, and whether one of them can run here."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from prefilter_common.errors import InputError


class Unavailable(InputError):
    """An engine that cannot run here; ``reason`` says why."""

    def __init__(self, subject: object, reason: str):
        super().__init__(f"{subject}: {reason}")
        self.subject, self.reason = subject, reason

    def __reduce__(self) -> tuple[type["Unavailable"], tuple[object, str]]:
        """From its own arguments, or else a process of the benchmark could not send it back."""
        return type(self), (self.subject, self.reason)


@dataclass(frozen=True)
class EngineName:
    """A library and the precision that is requested, such as ``onnxruntime-int8``."""

    library: str
    precision: str

    @classmethod
    def parse(cls, text: "str | EngineName") -> "EngineName":
        """The engine of that name. Raises Unavailable where there is none."""
        for name in ENGINES:
            if str(name) == str(text):
                return name
        raise Unavailable(text, f"is not an engine; there are {', '.join(map(str, ENGINES))}")

    def __str__(self) -> str:
        return f"{self.library}-{self.precision}"

    def folder(self, directory: Path) -> Path | None:
        """Where a model directory keeps the converted model; None for PyTorch, which runs the checkpoint itself."""
        if self.library == "pytorch":
            return None
        # OpenVINO lowers the precision when it loads a model.
        return directory / str(self).replace("bf16", "fp32")


REFERENCE = EngineName("pytorch", "fp32")
ENGINES = (
    REFERENCE,
    EngineName("pytorch", "bf16"),
    EngineName("openvino", "fp32"),
    EngineName("openvino", "bf16"),
    EngineName("openvino", "int8"),
    EngineName("onnxruntime", "fp32"),
    EngineName("onnxruntime", "int8"),
)


class Engine(Protocol):
    """What runs a model's forward pass, from any thread.

    ``precision`` is what the arithmetic is really done in; batches are padded to multiples of ``width_step``. The model
    is divided into parts after each number of layers in ``places``; one that cannot be divided has none.
    """

    name: EngineName
    precision: str
    width_step: int
    places: tuple[int, ...]

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Log-odds of commerce, (n,) float64, of (n, t) int64 each, on the host when the call returns."""

    def part(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """One part. The first takes ``input_ids``, the others the states after the part before; the last gives the
        log-odds, the others their (n, t, width) float32 states.
        """


def check_available(name: EngineName, device: str = "cpu") -> None:
    """Raise Unavailable where the library is not installed or the processor lacks the arithmetic."""
    if name.library != "pytorch" and not find_spec(name.library):
        raise Unavailable(name, f"{name.library} is not installed; pip install {name.library}")
    if name.library != "pytorch" and device != "cpu":
        raise Unavailable(name, "runs on the CPU only")
    if name.precision == "bf16" and not has_bf16(name.library, device):
        raise Unavailable(name, "this processor has no bf16 arithmetic")


def has_bf16(library: str, device: str) -> bool:
    """Whether the device computes bf16 natively, not emulated. ``library`` is ``pytorch`` or ``openvino``."""
    if library == "openvino":
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    import torch

    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported(including_emulation=False)
