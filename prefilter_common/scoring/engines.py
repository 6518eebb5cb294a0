"""What runs a model's forward pass: PyTorch, OpenVINO or ONNX Runtime, behind one call.

An engine is called with ``input_ids`` and ``attention_mask``, both (n, t) int64, from any thread, and returns the (n,)
float64 log-odds of commerce. Each library is imported only when its engine is opened, so that a deployment needs only
one of them. OpenVINO's int8 is calibrated by NNCF on training articles; ONNX Runtime's is quantised dynamically. Both
leave out the head and an encoder's last layer.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from prefilter_common.errors import InputError, RunError
from prefilter_common.runinfo import peak_gpu_memory

if TYPE_CHECKING:
    import openvino
    import torch
    from transformers import PreTrainedModel


class Unavailable(InputError):
    """An engine that cannot run here; ``reason`` says why."""

    def __init__(self, subject: object, reason: str):
        super().__init__(f"{subject}: {reason}")
        self.reason = reason


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
    """``precision`` is what the arithmetic is really done in; batches are padded to multiples of ``width_step``."""

    name: EngineName
    precision: str
    width_step: int

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Log-odds of commerce, (n,) float64, on the host when the call returns."""


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


def open_converted(folder: Path, name: EngineName, threads: int | None) -> Engine:
    """The engine ``name`` with the converted model in ``folder``, on ``threads`` threads (None: one per core)."""
    check_available(name)
    kind = OpenVinoEngine if name.library == "openvino" else OnnxRuntimeEngine
    return kind(folder, name, threads)


class TorchEngine:
    """A transformers model, on any device. Raises RunError where a GPU's memory does not suffice."""

    width_step = 1

    def __init__(self, model: "PreTrainedModel", device: "str | torch.device", name: EngineName = REFERENCE):
        import torch

        self.name = name
        self.precision = name.precision
        self.device = torch.device(device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        self.model = model
        with _named_exhaustion("the model", "stop what else uses the GPU"):
            self._log_odds = log_odds_module(model).to(self.device, dtype).eval()

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        import torch

        n, t = input_ids.shape
        if n > 1:
            what, fix = f"a batch of {n} articles of up to {t} tokens", "pass a smaller --batch-size"
        else:
            what, fix = f"an article of {t} tokens", "stop what else uses the GPU"
        with _named_exhaustion(what, fix), torch.inference_mode():
            inputs = (torch.from_numpy(array).to(self.device) for array in (input_ids, attention_mask))
            return self._log_odds(*inputs).double().cpu().numpy()


@contextmanager
def _named_exhaustion(what: str, fix: str) -> Iterator[None]:
    """Raise RunError where the GPU's memory does not hold ``what``."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"the GPU's memory does not hold {what}{peak_gpu_memory()}: {fix}") from error


class OpenVinoEngine:
    """A model that ``conversion`` wrote as ``model.xml``, on the CPU."""

    # OpenVINO compiles kernels for each shape and keeps them: in int8 some hundred lengths took a gigabyte.
    width_step = 16

    def __init__(self, folder: Path, name: EngineName, threads: int | None):
        import openvino

        self.name = name
        core = openvino.Core()
        # By default OpenVINO uses bf16 wherever the processor has it, for fp32 models as well.
        fp32 = name.precision == "fp32" or not has_bf16("openvino", "cpu")
        settings: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if fp32 else "bf16",
        }
        if threads:
            # Pinned, the threads of several models would all be on the first cores.
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._model = core.compile_model(folder / "model.xml", "CPU", settings)
        self._requests = threading.local()  # a request keeps the inputs and outputs of one call
        self.precision = _executed_precision(self._model)

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        result = self._requests.own.infer({"input_ids": input_ids, "attention_mask": attention_mask})
        return result[0].astype(np.float64)


class OnnxRuntimeEngine:
    """A model that ``conversion`` wrote as ``model.onnx``, on the CPU."""

    width_step = 1

    def __init__(self, folder: Path, name: EngineName, threads: int | None):
        import onnxruntime

        self.name = name
        self.precision = "int8+fp32" if name.precision == "int8" else "fp32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(
            os.fspath(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self._session.run(None, inputs)[0].astype(np.float64)


def log_odds_module(model: "PreTrainedModel") -> "torch.nn.Module":
    """``model`` with one output, the (n,) log-odds of commerce, whether its head has one label or two.

    The last layer of an encoder then computes what the head reads, and no more.
    """
    import torch

    from prefilter_common.models.checks import commerce_index
    from prefilter_common.models.encoder_layers import compute_first_token_only

    compute_first_token_only(model)

    class LogOdds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.commerce = commerce_index(model.config)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            if logits.shape[1] == 1:
                return logits[:, 0]
            return logits[:, self.commerce] - logits[:, 1 - self.commerce]

    return LogOdds()


def _executed_precision(model: "openvino.CompiledModel") -> str:
    """What the matrix products run in: the most common precision and, where int8 is among them, both: ``int8+fp32``."""
    names = {"f32": "fp32", "bf16": "bf16", "i8": "int8", "u8": "int8", "f16": "fp16"}
    found: Counter[str] = Counter()
    for node in model.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("FullyConnected", "MatMul", "ScaledDotProductAttention"):
            precision = info["runtimePrecision"].astype(str)
            found[names.get(precision, precision)] += 1
    rest = [precision for precision, _ in found.most_common() if precision != "int8"]
    return "+".join((["int8"] if found["int8"] else []) + rest[:1])
