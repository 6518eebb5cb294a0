"""How close to what the machine can do is an engine? Operations of a forward pass, and the rate of large products."""

import time
from collections.abc import Callable

import numpy as np

from prefilter_common.benchmark.timing import Shape
from prefilter_common.scoring.engines.interface import EngineName, Unavailable, check_available
from prefilter_common.scoring.engines.pytorch import TorchEngine

# Side of the matrices that measure the machine: large enough for arithmetic to be the limit.
MATRIX = 2048


def operations(engine: TorchEngine) -> Callable[[Shape], float]:
    """Floating-point operations of the matrix products in a forward pass of one part over a batch.

    They are quadratic in the tokens, so torch counts them at three lengths.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    lengths = (8, 16, 32)
    counts: list[list[float]] = [[] for _ in engine.parts]
    for length in lengths:
        found = np.full((1, length), 5, dtype=np.int64)
        for number in range(len(engine.parts)):
            # Torch cannot count the fused attention of CPUs, but it can count the plain form.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                found = engine.part(number, found, np.ones((1, length), dtype=np.int64))
            counts[number].append(counter.get_total_flops())
    polynomials = [np.polynomial.Polynomial.fit(lengths, own, 2).convert() for own in counts]
    return lambda shape: shape[1] * float(polynomials[shape[0]](shape[2]))


def matrix_rates(device: str) -> dict[str, float | None]:
    """Billions of operations per second in products of large square matrices, by precision; None where not measured.

    fp32 and bf16 with PyTorch, int8 with ONNX Runtime; the best of fifteen.
    """
    import torch

    rates: dict[str, float | None] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        try:
            check_available(EngineName("pytorch", name), device)
        except Unavailable:
            rates[name] = None
            continue
        matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
        rates[name] = _rate(lambda: (matrix @ matrix)[0, 0].item())  # noqa: B023 - called at once
    rates["int8"] = _int8_rate() if device == "cpu" else None
    return rates


def _int8_rate() -> float | None:
    try:
        import onnx
        import onnxruntime
        import torch
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    weights = onnx.numpy_helper.from_array(rng.integers(-99, 99, (MATRIX, MATRIX), dtype=np.int8), "b")
    a = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [MATRIX, MATRIX])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [MATRIX, MATRIX])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "g", [a], [y], [weights]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as for fp32 and bf16
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    matrix = rng.integers(0, 255, (MATRIX, MATRIX), dtype=np.uint8)
    return _rate(lambda: session.run(None, {"a": matrix}))


def _rate(multiply: Callable[[], object]) -> float:
    seconds = []
    for _ in range(16):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return round(2 * MATRIX**3 / min(seconds[1:]) / 1e9, 1)
