"""How fast is an engine, how much memory does it take, and how far is it from what the machine could do?"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.contract import TwoPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prefilter_common.scoring import Scorer

# Side of the matrices by which the machine is measured: large enough to be bound by arithmetic.
MATRIX = 2048


class Worker:
    """One engine in a process of its own, so that load time, peak memory and threads are its own.

    Methods block until the process has answered, so only one of several workers ever computes.
    """

    def __init__(self, directory: Path, engine: str, device: str, threads: int | None):
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.opened = self._ask(_open, directory, engine, device, threads)

    def single(self, articles: Sequence[Article], max_length: int, two_pass: TwoPass | None) -> dict:
        """Time each article on its own: see ``_single``."""
        return self._ask(_single, articles, max_length, two_pass)

    def bulk(self, articles: Sequence[Article], max_length: int, two_pass: TwoPass | None, batch_size: int) -> dict:
        """Time all articles together: see ``_bulk``."""
        return self._ask(_bulk, articles, max_length, two_pass, batch_size)

    def peak_memory_mib(self) -> float:
        """The largest resident memory that the process has had."""
        return self._ask(_peak)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def _ask(self, function: Callable, *args: object) -> dict | float:
        return self._pool.submit(function, *args).result()


class _Counting:
    """An engine that notes the shape of each batch it is given."""

    def __init__(self, engine: Callable):
        self.engine = engine
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        self.shapes.append(input_ids.shape)
        return self.engine(input_ids, attention_mask)


_scorer: "Scorer"  # of the worker process


def _open(directory: Path, engine: str, device: str, threads: int | None) -> dict:
    """Load, from the first import on. Returns seconds, and the precision that is really used."""
    global _scorer
    start = time.perf_counter()
    from prefilter_common.scoring import Scorer

    _scorer = Scorer.load(directory, device if engine.startswith("pytorch") else None, engine, threads)
    seconds = time.perf_counter() - start
    precision = _scorer.engine.precision
    _scorer.engine = _Counting(_scorer.engine)
    return {"load_s": round(seconds, 2), "precision": precision}


def _single(articles: Sequence[Article], max_length: int, two_pass: TwoPass | None) -> dict:
    """``tokenize`` and ``forward``, seconds an article, both (n,), and the ``shapes`` of the forward passes."""
    from prefilter_common.scoring import time_single_articles

    scorer = _scorer.reading(max_length, two_pass)
    # The longest article makes the libraries allocate all they will need.
    scorer.score([max(articles, key=lambda article: len(article.content))])
    scorer.engine.shapes.clear()
    tokenize, forward = time_single_articles(scorer, articles, warmup=0)
    return {"tokenize": tokenize, "forward": forward, "shapes": list(scorer.engine.shapes)}


def _bulk(articles: Sequence[Article], max_length: int, two_pass: TwoPass | None, batch_size: int) -> dict:
    """``seconds`` for all articles and their ``scores`` (n,)."""
    scorer = _scorer.reading(max_length, two_pass)
    start = time.perf_counter()
    scores = scorer.score(articles, batch_size)
    return {"seconds": time.perf_counter() - start, "scores": scores}


def _peak() -> float:
    from prefilter_common.runinfo import peak_memory_mib

    return peak_memory_mib()


def operations(model: "PreTrainedModel") -> Callable[[tuple[int, int]], float]:
    """Floating-point operations of the matrix products in a forward pass over a batch of shape (n, t).

    They are a quadratic in t: torch counts them at three lengths.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    lengths = (8, 16, 32)
    counts = []
    for length in lengths:
        ids = torch.full((1, length), 5, device=model.device)
        # Torch does not count the fused attention of CPUs, but does count its plain form.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        counts.append(counter.get_total_flops())
    polynomial = np.polynomial.Polynomial.fit(lengths, counts, 2).convert()
    return lambda shape: shape[0] * float(polynomial(shape[1]))


def matrix_rates(device: str) -> dict[str, float | None]:
    """Billions of operations a second in products of large square matrices, by precision; None where not measured.

    fp32 and bf16 with PyTorch, int8 with ONNX Runtime: the best of fifteen.
    """
    import torch

    from prefilter_common.engines import Unavailable, check_available

    rates: dict[str, float | None] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        try:
            check_available(f"pytorch-{name}", device)
        except Unavailable:
            rates[name] = None
            continue
        matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
        rates[name] = _rate(lambda matrix=matrix: (matrix @ matrix)[0, 0].item())
    rates["int8"] = _int8_rate() if device == "cpu" else None
    return rates


def _int8_rate() -> float | None:
    try:
        import onnx
        import onnxruntime
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
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    matrix = rng.integers(0, 255, (MATRIX, MATRIX), dtype=np.uint8)
    return _rate(lambda: session.run(None, {"a": matrix}))


def _rate(multiply: Callable[[], object]) -> float:
    seconds = []
    for _ in range(16):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return round(2 * MATRIX**3 / min(seconds[1:]) / 1e9, 1)
