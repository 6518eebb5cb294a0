"""A converted model on the CPU, with the library that it was converted for.

``conversion`` writes an encoder in parts: ``layers_4`` gives the states after four layers, and ``model`` the log-odds,
of the states after the part before. Any other model, and one of an earlier version, is ``model`` alone.
"""

import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.scoring.engines.interface import Engine, EngineName, has_bf16

if TYPE_CHECKING:
    import openvino

LAST_PART, EARLIER_PART = "model", "layers_"


def open_converted(folder: Path, name: EngineName, threads: int | None) -> Engine:
    """The engine ``name`` with the converted model in ``folder``, on ``threads`` threads (None: one per core)."""
    kind = OpenVinoEngine if name.library == "openvino" else OnnxRuntimeEngine
    return kind(folder, name, threads)


class _InParts:
    """What both libraries' engines have in common."""

    suffix: str

    def __init__(self, folder: Path):
        found = (path.stem.removeprefix(EARLIER_PART) for path in folder.glob(f"{EARLIER_PART}*{self.suffix}"))
        self.places = tuple(sorted(map(int, found)))
        self._paths = [folder / (name + self.suffix) for name in part_names(self.places)]

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        found = input_ids
        for number in range(len(self.places) + 1):
            found = self.part(number, found, attention_mask)
        return found

    def part(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See Engine."""
        found = self._run(number, inputs, attention_mask)
        return found if number < len(self.places) else found.astype(np.float64)

    def _run(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def part_names(places: Sequence[int]) -> list[str]:
    """The names of the files of a model that is divided after so many layers, without their suffix."""
    return [*(f"{EARLIER_PART}{place}" for place in places), LAST_PART]


class OpenVinoEngine(_InParts):
    """A model that ``conversion`` wrote as ``.xml`` and ``.bin``, on the CPU."""

    suffix = ".xml"
    # OpenVINO compiles kernels for each shape and keeps them: in int8 some hundred lengths took a gigabyte.
    width_step = 16

    def __init__(self, folder: Path, name: EngineName, threads: int | None):
        import openvino

        super().__init__(folder)
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
        self._parts = [core.compile_model(path, "CPU", settings) for path in self._paths]
        self._requests = threading.local()  # a request keeps the inputs and outputs of one call
        self.precision = _executed_precision(self._parts)

    def _run(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        if not hasattr(self._requests, "own"):
            self._requests.own = [part.create_infer_request() for part in self._parts]
        found: np.ndarray = self._requests.own[number].infer([inputs, attention_mask])[0]
        return found


class OnnxRuntimeEngine(_InParts):
    """A model that ``conversion`` wrote as ``.onnx``, on the CPU."""

    suffix = ".onnx"
    width_step = 1

    def __init__(self, folder: Path, name: EngineName, threads: int | None):
        import onnxruntime

        super().__init__(folder)
        self.name = name
        self.precision = "int8+fp32" if name.precision == "int8" else "fp32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Each part has threads of its own, which go on spinning after a run on the cores that the next part needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # One arena for the process, which outlives the engine, in place of one for each part.
        arena, kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
        info = onnxruntime.OrtMemoryInfo("Cpu", arena, 0, kind)
        onnxruntime.create_and_register_allocator(info, onnxruntime.OrtArenaCfg({}))
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Fused with the sum before it, a normalisation takes longer than the two, on one thread six times.
        slow, providers = ["SkipLayerNormFusion"], ["CPUExecutionProvider"]
        self._parts = [
            onnxruntime.InferenceSession(os.fspath(path), options, providers, disabled_optimizers=slow)
            for path in self._paths
        ]

    def _run(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        session = self._parts[number]
        names = (each.name for each in session.get_inputs())
        found: np.ndarray = session.run(None, dict(zip(names, (inputs, attention_mask), strict=True)))[0]
        return found


def _executed_precision(parts: "Sequence[openvino.CompiledModel]") -> str:
    """What the matrix products run in: the most common precision and, where int8 is among them, both: ``int8+fp32``."""
    names = {"f32": "fp32", "bf16": "bf16", "i8": "int8", "u8": "int8", "f16": "fp16"}
    found: Counter[str] = Counter()
    for node in (node for part in parts for node in part.get_runtime_model().get_ops()):
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("FullyConnected", "MatMul", "ScaledDotProductAttention"):
            precision = info["runtimePrecision"].astype(str)
            found[names.get(precision, precision)] += 1
    rest = [precision for precision, _ in found.most_common() if precision != "int8"]
    return "+".join((["int8"] if found["int8"] else []) + rest[:1])
