"""A checkpoint in memory in, an engine's files out, by the converters of OpenVINO and ONNX Runtime."""

import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from prefilter_common.articles import Article, capped, cut_at_random
from prefilter_common.models.base_models import FAMILIES
from prefilter_common.scoring.engines.converted import LAST_PART, part_names
from prefilter_common.scoring.tokenization import ArticleTokenizer

if TYPE_CHECKING:
    import openvino
    import torch

    from prefilter_common.models.checkpoints import Checkpoint

    Inputs = tuple[torch.Tensor, torch.Tensor]  # token ids, or states of the part before, and their mask

# Articles used to calibrate int8: for tiny models 48 were no better than 16, but a mix of languages needs more.
CALIBRATION_ARTICLES = 100
# Every fourth shows which inputs of a matrix are too wide: of sixteen the median is within a tenth of that of all.
OBSERVE_EVERY = 4
ONNX_OPSET = 17
AXES = {0: "articles", 1: "tokens"}  # whose lengths vary
NOTHING = "(?!)"  # matches no name
# Where the inputs of a matrix range over more standard deviations than this, a step of 8 bits is nearly one of them.
WIDE_RANGE = 200


class ConversionDetails(TypedDict, total=False):
    """What converted a model: versions of the packages, and how many articles calibrated int8 or, for ONNX Runtime,
    showed which inputs are too wide for it.
    """

    openvino: str
    nncf: str
    calibration_articles: int
    onnxruntime: str
    onnx: str


def to_openvino(
    checkpoint: "Checkpoint", partial: Path, int8: bool, tokenizer: ArticleTokenizer, train: Sequence[Article]
) -> ConversionDetails:
    """Write each part as ``.xml`` and ``.bin`` into ``partial``; int8 is calibrated on some of ``train``."""
    import openvino
    import torch

    details: ConversionDetails = {"openvino": openvino.__version__}
    samples = _samples(checkpoint, tokenizer, train) if int8 else []
    if int8:
        details |= {"nncf": importlib.metadata.version("nncf"), "calibration_articles": len(samples)}
    for name, module, exact, (inputs, attention_mask), own in _parts(checkpoint, samples):
        example = {"inputs": inputs, "attention_mask": attention_mask}
        shapes = [("inputs", [-1, -1, *inputs.shape[2:]]), ("attention_mask", [-1, -1])]
        with torch.inference_mode():
            model = openvino.convert_model(module, example_input=example, input=shapes)
            if int8:
                model = _quantize(model, own, exact)
        openvino.save_model(model, partial / f"{name}.xml", compress_to_fp16=False)
    return details


def _samples(checkpoint: "Checkpoint", tokenizer: ArticleTokenizer, train: Sequence[Article]) -> "list[Inputs]":
    """(1, t) token ids and mask of each article that int8 is calibrated on."""
    import torch

    encodings = tokenizer.encode(calibration_articles(train), checkpoint.contract.max_length)
    return [(torch.from_numpy(ids), torch.from_numpy(mask)) for ids, mask in map(tokenizer.pad, zip(encodings))]


def calibration_articles(train: Sequence[Article]) -> list[Article]:
    """Training articles on which int8 is calibrated: half of them in full, half cut to a feed's length."""
    articles, rng = list(capped(train, CALIBRATION_ARTICLES)), np.random.default_rng(0)
    rng.shuffle(articles)
    return [*articles[::2], *cut_at_random(articles[1::2], rng)]


def _observed(module: "torch.nn.Module", samples: "Sequence[Inputs]") -> "tuple[list[Inputs], str]":
    """The inputs of the part after ``module``, and a pattern for the matrices in it whose own are too wide for 8 bits.

    In some layers the first or the last token has values of hundreds of standard deviations (massive activations, Sun
    et al. 2024, https://arxiv.org/abs/2402.17762). With one scale for all, most others are rounded to nothing.
    """
    import torch

    widths: dict[str, list[float]] = {}

    def observe(name: str, inputs: torch.Tensor) -> None:
        widths.setdefault(name, []).append(float((inputs.max() - inputs.min()) / inputs.std()))

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: observe(name, inputs[0]))
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    with torch.inference_mode():
        following = [(module(*sample), sample[1]) for sample in samples]
    for hook in hooks:
        hook.remove()
    wide = [name.replace(".", "[./]") for name, found in widths.items() if np.median(found) > WIDE_RANGE]
    return following, rf"[./]({'|'.join(wide)})[./]" if wide else NOTHING


def _quantize(model: "openvino.Model", samples: "Sequence[Inputs]", exact: str) -> "openvino.Model":
    """Weights and activations in int8, calibrated on ``samples`` of the inputs, but for what must be exact."""
    import nncf

    inputs = [{"inputs": first.numpy(), "attention_mask": mask.numpy()} for first, mask in samples]
    # A processor without VNNI adds pairs of int8 products in 16 bits, which saturate. With 7-bit weights they cannot:
    # there the mean error of tiny models with wide weights is 1.7 to 3.9 times smaller, the packaged encoder's equal.
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(patterns=[f".*{exact}.*"], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )


def to_onnxruntime(
    checkpoint: "Checkpoint", partial: Path, int8: bool, tokenizer: ArticleTokenizer, train: Sequence[Article]
) -> ConversionDetails:
    """Write each part as ``.onnx`` into ``partial``; int8 is better where there are articles in ``train``."""
    import onnx
    import onnxruntime
    import torch

    # The export of torch's fused attention provides for tokens that attend to nothing, which no article has.
    checkpoint.model.set_attn_implementation("eager")
    samples = _samples(checkpoint, tokenizer, train)[::OBSERVE_EVERY] if int8 else []
    for name, module, exact, example, _ in _parts(checkpoint, samples):
        path = partial / f"{'exported' if int8 else name}.onnx"
        with torch.no_grad():
            # The newer exporter (dynamo) needs a further package.
            torch.onnx.export(
                module, example, path, input_names=["inputs", "attention_mask"], output_names=["found"],
                dynamic_axes={"inputs": AXES, "attention_mask": AXES, "found": AXES if name != LAST_PART else [0]},
                opset_version=ONNX_OPSET, dynamo=False,
            )  # fmt: skip
        if (config := checkpoint.model.config).model_type in FAMILIES:
            _fuse_attention(path, config.num_attention_heads, config.hidden_size)
        if int8:
            _quantize_dynamically(path, partial / f"{name}.onnx", exact)
    details: ConversionDetails = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    return details | {"calibration_articles": len(samples)} if int8 else details


def _fuse_attention(path: Path, n_heads: int, width: int) -> None:
    """Make each layer's attention one operation of ONNX Runtime, in place; the last layer's, of one token, stays.

    That operation counts the tokens of a mask, so that padding must follow them, as the tokenizer makes it.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    # The other fusions gain nothing, or are slower than what they replace.
    options.enable_embed_layer_norm = options.enable_bias_gelu = False
    options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False
    optimize_model(os.fspath(path), "bert", n_heads, width, options).save_model_to_file(os.fspath(path))


def _quantize_dynamically(path: Path, target: Path, exact: str) -> None:
    """Weights in int8, but for what must be exact; ``path`` is deleted."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    names = [node.name for node in onnx.load(path).graph.node if re.search(exact, node.name)]
    names += [f"{name}_MatMul" for name in names]  # what becomes of a Gemm
    # 7 bits as above; with those, one scale per channel is more accurate.
    quantize_dynamic(
        path, target, per_channel=True, reduce_range=True, nodes_to_exclude=names,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what follows ONNX Runtime's own operations
    )  # fmt: skip
    path.unlink()


def _parts(
    checkpoint: "Checkpoint", samples: "Sequence[Inputs]"
) -> "Iterator[tuple[str, torch.nn.Module, str, Inputs, Sequence[Inputs]]]":
    """What to convert: each part's file name, the part, a pattern for what int8 must leave exact in it, an example of
    its inputs, a batch with one padded article, and its inputs where the model's are ``samples``.
    """
    import torch

    from prefilter_common.models.encoder_layers import exact_parts
    from prefilter_common.scoring.engines.pytorch import parts_of

    checkpoint.model.config.use_cache = False
    inputs = torch.full((2, 8), 5, dtype=torch.int64)
    attention_mask = torch.ones_like(inputs)
    inputs[0, 5:], attention_mask[0, 5:] = checkpoint.tokenizer.pad_token_id, 0
    places, parts = parts_of(checkpoint.model.eval())
    for name, part in zip(part_names(places), parts, strict=True):
        following, wide = _observed(part.eval(), samples)
        exact = exact_parts(part.model) if name == LAST_PART else NOTHING
        yield name, part, f"({exact}|{wide})", (inputs, attention_mask), samples
        samples = following
        with torch.no_grad():
            inputs = part(inputs, attention_mask)
