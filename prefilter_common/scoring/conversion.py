"""A model directory -> the files of an engine, in a folder of their own inside it."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.articles import Article
from prefilter_common.contract import CONTRACT_FILE, Contract
from prefilter_common.engines import Unavailable, check_available, converted_folder
from prefilter_common.files import new_directory, write_json
from prefilter_common.recipe import capped
from prefilter_common.tokenization import ArticleTokenizer

if TYPE_CHECKING:
    import openvino
    import torch

    from prefilter_common.checkpoints import Checkpoint

log = logging.getLogger(__name__)

RECORD_FILE = "engine.json"
# Texts that int8 ranges are read off: for tiny models 48 were no better than 16, a mix of languages needs some more.
CALIBRATION_ARTICLES = 100
ONNX_OPSET = 17
# What converting takes beyond the engine itself, which runs without it.
CONVERTERS = {"openvino-int8": "nncf", "onnxruntime-fp32": "onnx", "onnxruntime-int8": "onnx"}


def convert(directory: Path, name: str, train: Sequence[Article] | None, device: str = "cpu") -> Path | None:
    """Make what engine ``name`` needs of a model directory, unless it is there and was made from this checkpoint.

    The folder appears complete or not at all.

    Args:
        train: training articles, off which OpenVINO's int8 ranges are read; no other engine needs them.

    Returns:
        The folder; None for PyTorch, which needs nothing.

    Raises:
        Unavailable: the engine or its converter is not installed, the processor has no such arithmetic, or there are
            no ``train``.
    """
    check_available(name, device)
    folder = converted_folder(directory, name)
    if folder is None or is_current(directory, name):
        return folder
    converter = CONVERTERS.get(name)
    if converter and not find_spec(converter):
        raise Unavailable(
            f"{name}: {converter}, which converts models to it, is not installed; pip install {converter}"
        )
    if name == "openvino-int8" and not train:
        raise Unavailable(f"{name}: needs training articles to read the ranges of int8 off; pass --train-data")
    from prefilter_common.checkpoints import load_checkpoint

    log.info(f"{directory}: converting to {folder.name}")
    checkpoint = load_checkpoint(directory)
    tokenizer = ArticleTokenizer.of(checkpoint.tokenizer)
    with new_directory(folder, overwrite=True) as partial, _quiet():
        convert_to = _to_openvino if name.startswith("openvino") else _to_onnxruntime
        details = convert_to(checkpoint, partial, name.endswith("int8"), tokenizer, train)
        tokenizer.save(partial / "tokenizer.json")
        record = {
            "engine": folder.name,
            "max_length": checkpoint.contract.max_length,
            "pad_token_id": tokenizer.pad_token_id,
            **details,
            "source": fingerprints(directory),
        }
        write_json(partial / RECORD_FILE, record)
    return folder


def is_current(directory: Path, name: str) -> bool:
    """Whether the folder of a converted model is there and was made from the checkpoint beside it.

    Files of the checkpoint that a deployment left out, such as the weights, are not asked about.
    """
    try:
        record = json.loads((converted_folder(directory, name) / RECORD_FILE).read_text(encoding="utf-8"))
        made_from = dict(record["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(made_from.get(file) == digest for file, digest in fingerprints(directory).items())


def load_reading(directory: Path, folder: Path) -> tuple[ArticleTokenizer, Contract]:
    """The tokenizer that was saved with a converted model, and the contract. Neither needs PyTorch."""
    from tokenizers import Tokenizer

    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    tokenizer = ArticleTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), record["pad_token_id"])
    path = directory / CONTRACT_FILE
    return tokenizer, Contract.load(path) if path.is_file() else Contract(max_length=record["max_length"])


def fingerprints(directory: Path) -> dict[str, str]:
    """File name -> sha256, of what a checkpoint, or a converted model, is made of."""
    weights = {"pytorch_model.bin", "model.xml", "model.bin", "model.onnx"}
    names = {"config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", *weights}
    found = sorted(path for path in directory.iterdir() if path.name in names or path.suffix == ".safetensors")
    digests = {}
    for path in found:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _to_openvino(
    checkpoint: "Checkpoint", partial: Path, int8: bool, tokenizer: ArticleTokenizer, train: Sequence[Article] | None
) -> dict:
    import openvino
    import torch

    module, example = _traceable(checkpoint)
    inputs = [(name, [-1, -1]) for name in example]
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=example, input=inputs)
    details = {"openvino": openvino.__version__}
    if int8:
        articles = capped(list(train), CALIBRATION_ARTICLES)
        model = _quantize(model, articles, tokenizer, checkpoint.contract.max_length)
        details |= {"nncf": importlib.metadata.version("nncf"), "calibration_articles": len(articles)}
    openvino.save_model(model, partial / "model.xml", compress_to_fp16=False)
    return details


def _quantize(
    model: "openvino.Model", articles: Sequence[Article], tokenizer: ArticleTokenizer, max_length: int
) -> "openvino.Model":
    """Weights and activations in int8, the ranges of the latter read off ``articles``."""
    import nncf

    samples = []
    for ids in tokenizer.encode(articles):
        input_ids, attention_mask = tokenizer.pad([tokenizer.cut(ids, max_length)])
        samples.append({"input_ids": input_ids, "attention_mask": attention_mask})
    # A processor without VNNI adds pairs of int8 products up in 16 bits, which saturate. Weights of 7 bits cannot: the
    # mean error of tiny models drawn wide came out 1.7 to 3.9 times smaller there, the packaged encoder's the same.
    parameters = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
        advanced_parameters=parameters,
    )


def _to_onnxruntime(
    checkpoint: "Checkpoint", partial: Path, int8: bool, tokenizer: ArticleTokenizer, train: Sequence[Article] | None
) -> dict:
    import onnx
    import onnxruntime
    import torch

    module, example = _traceable(checkpoint)
    axes = {**{name: {0: "articles", 1: "tokens"} for name in example}, "log_odds": {0: "articles"}}
    path = partial / ("exported.onnx" if int8 else "model.onnx")
    with torch.no_grad():
        # The newer exporter (dynamo) needs a further package.
        torch.onnx.export(
            module, tuple(example.values()), path, input_names=list(example), output_names=["log_odds"],
            dynamic_axes=axes, opset_version=ONNX_OPSET, dynamo=False,
        )  # fmt: skip
    if int8:
        from onnxruntime.quantization import quantize_dynamic

        # 7 bits as above; then a scale for each channel pays, in a wide and in a trained model.
        quantize_dynamic(path, partial / "model.onnx", per_channel=True, reduce_range=True)
        path.unlink()
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}


def _traceable(checkpoint: "Checkpoint") -> tuple["torch.nn.Module", dict[str, "torch.Tensor"]]:
    """The module to convert, and an example of its inputs: a batch in which one article is padded."""
    import torch

    from prefilter_common.engines import log_odds_module

    checkpoint.model.config.use_cache = False
    input_ids = torch.full((2, 8), 5, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    input_ids[0, 5:], attention_mask[0, 5:] = checkpoint.tokenizer.pad_token_id, 0
    return log_odds_module(checkpoint.model).eval(), {"input_ids": input_ids, "attention_mask": attention_mask}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the converters' warnings about each other, their progress bars and their telemetry.

    OpenVINO and NNCF report every conversion to their maker over the network, except from what says that it is CI.
    """
    from unittest.mock import patch

    ci = patch.dict(os.environ, CI="true")
    with ci, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
