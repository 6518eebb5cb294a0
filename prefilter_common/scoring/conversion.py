"""A model directory in, the files of an engine out, in a folder of their own inside it."""

import contextlib
import importlib.metadata
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from tokenizers import Tokenizer

from prefilter_common.articles import Article, capped, cut_at_random
from prefilter_common.errors import InputError
from prefilter_common.files import write_json
from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import fingerprints, read_contract, read_record, sha256_of
from prefilter_common.outputs import new_directory
from prefilter_common.scoring.engines import EngineName, Unavailable, check_available, log_odds_module
from prefilter_common.scoring.tokenization import ArticleTokenizer

if TYPE_CHECKING:
    import openvino
    import torch

    from prefilter_common.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

ENGINE_FILE = "engine.json"
# Articles used to calibrate int8: for tiny models 48 were no better than 16, but a mix of languages needs more.
CALIBRATION_ARTICLES = 100
ENGINE_SUFFIXES = {".bin", ".json", ".onnx", ".xml"}
ONNX_OPSET = 17
# Recorded with each conversion: increment it when one is made differently.
VERSION = 2


class ConversionDetails(TypedDict, total=False):
    """What converted a model: versions of the packages, and the articles that calibrated int8."""

    openvino: str
    nncf: str
    calibration_articles: int
    onnxruntime: str
    onnx: str


class ConversionRecord(ConversionDetails):
    """``engine.json`` of a converted model; ``source`` and ``files`` map file names to sha256."""

    engine: str
    max_length: int
    max_positions: int
    pad_token_id: int
    version: int
    source: dict[str, str]
    files: dict[str, str]


def convert(directory: Path, name: EngineName, train: Sequence[Article] | None, device: str = "cpu") -> Path | None:
    """Convert a model directory for engine ``name``, unless that was done already, from this checkpoint and alike.

    The folder appears complete or not at all.

    Args:
        train: training articles, used to calibrate OpenVINO's int8; no other engine needs them.

    Returns:
        The folder; None for PyTorch, which needs nothing.

    Raises:
        Unavailable: the engine or its converter is not installed, the processor lacks the arithmetic, or ``train`` is
            needed and missing.
    """
    check_available(name, device)
    folder = name.folder(directory)
    if folder is None or (is_current(folder) and read_record(folder / ENGINE_FILE).get("version") == VERSION):
        return folder
    int8 = name.precision == "int8"
    # Converting takes a package that running the engine does not.
    converter = "onnx" if name.library == "onnxruntime" else "nncf" if int8 else None
    if converter and not find_spec(converter):
        raise Unavailable(name, f"{converter}, which converts models to it, is not installed; pip install {converter}")
    if converter == "nncf" and not train:
        raise Unavailable(name, "needs training articles to calibrate int8; pass --train-data")
    from prefilter_common.models.checkpoints import load_checkpoint, max_positions

    log.info(f"{directory}: converting to {folder.name}")
    checkpoint = load_checkpoint(directory)
    tokenizer = ArticleTokenizer.of(checkpoint.tokenizer)
    with new_directory(folder, overwrite=True) as partial, _quiet():
        convert_to = _to_openvino if name.library == "openvino" else _to_onnxruntime
        details = convert_to(checkpoint, partial, int8, tokenizer, train or ())
        tokenizer.save(partial / "tokenizer.json")
        written = [path for path in sorted(partial.iterdir()) if path.suffix in ENGINE_SUFFIXES]
        record: ConversionRecord = {
            "engine": folder.name,
            "max_length": checkpoint.contract.max_length,
            "max_positions": max_positions(checkpoint.model.config),
            "pad_token_id": tokenizer.pad_token_id,
            "version": VERSION,
            **details,
            "source": fingerprints(directory),
            "files": {path.name: sha256_of(path) for path in written},
        }
        write_json(partial / ENGINE_FILE, record)
    return folder


def is_current(folder: Path) -> bool:
    """Whether a converted model exists in ``folder``, unchanged since it was made from the checkpoint around it.

    Files of the checkpoint that a deployment left out, such as the weights, are not checked.
    """
    try:
        record = read_record(folder / ENGINE_FILE)
        made_from, made = dict(record["source"]), dict(record["files"])
        unchanged = "tokenizer.json" in made and all(sha256_of(folder / file) == made[file] for file in made)
        whole = type(record["pad_token_id"]) is type(record["max_length"]) is type(record["max_positions"]) is int
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return False
    return unchanged and whole and fingerprints(folder.parent).items() <= made_from.items()


def load_converted(folder: Path) -> tuple[ArticleTokenizer, Contract]:
    """The tokenizer saved with a converted model that ``is_current``, and the contract of its model directory.

    Neither needs PyTorch. Raises InputError for a contract that is not valid, or is another model's.
    """
    found: Any = read_record(folder / ENGINE_FILE)
    record: ConversionRecord = found  # is_current has checked it
    tokenizer = ArticleTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), record["pad_token_id"])
    contract = read_contract(folder.parent) or Contract(max_length=record["max_length"])
    if contract.max_length > record["max_positions"]:
        raise InputError(
            f"{folder.parent}: its prefilter.json says max_length {contract.max_length}, but it reads at most "
            f"{record['max_positions']} tokens; correct it"
        )
    return tokenizer, contract


def _to_openvino(
    checkpoint: "Checkpoint", partial: Path, int8: bool, tokenizer: ArticleTokenizer, train: Sequence[Article]
) -> ConversionDetails:
    import openvino
    import torch

    module, example = _traceable(checkpoint)
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=example, input=[(name, [-1, -1]) for name in example])
    details: ConversionDetails = {"openvino": openvino.__version__}
    if int8:
        articles = calibration_articles(train)
        model = _quantize(model, articles, tokenizer, checkpoint)
        details |= {"nncf": importlib.metadata.version("nncf"), "calibration_articles": len(articles)}
    openvino.save_model(model, partial / "model.xml", compress_to_fp16=False)
    return details


def calibration_articles(train: Sequence[Article]) -> list[Article]:
    """Training articles on which int8 is calibrated: half of them in full, half cut to a feed's length."""
    articles, rng = list(capped(train, CALIBRATION_ARTICLES)), np.random.default_rng(0)
    rng.shuffle(articles)
    return [*articles[::2], *cut_at_random(articles[1::2], rng)]


def _quantize(
    model: "openvino.Model", articles: Sequence[Article], tokenizer: ArticleTokenizer, checkpoint: "Checkpoint"
) -> "openvino.Model":
    """Weights and activations in int8, calibrated on ``articles``, but for what must be exact."""
    import nncf

    from prefilter_common.models.encoder_layers import exact_parts

    padded = (tokenizer.pad([ids]) for ids in tokenizer.encode(articles, checkpoint.contract.max_length))
    samples = [{"input_ids": input_ids, "attention_mask": attention_mask} for input_ids, attention_mask in padded]
    # A processor without VNNI adds pairs of int8 products in 16 bits, which saturate. With 7-bit weights they cannot:
    # there the mean error of tiny models with wide weights is 1.7 to 3.9 times smaller, the packaged encoder's equal.
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(patterns=[f".*{exact_parts(checkpoint.model)}.*"], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )


def _to_onnxruntime(
    checkpoint: "Checkpoint", partial: Path, int8: bool, tokenizer: ArticleTokenizer, train: Sequence[Article]
) -> ConversionDetails:
    import onnx
    import onnxruntime
    import torch

    from prefilter_common.models.encoder_layers import exact_parts

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

        parts = re.compile(exact_parts(checkpoint.model))
        exact = [node.name for node in onnx.load(path).graph.node if parts.search(node.name)]
        exact += [f"{name}_MatMul" for name in exact]  # what becomes of a Gemm
        # 7 bits as above; with those, one scale per channel is more accurate.
        quantize_dynamic(path, partial / "model.onnx", per_channel=True, reduce_range=True, nodes_to_exclude=exact)
        path.unlink()
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}


def _traceable(checkpoint: "Checkpoint") -> tuple["torch.nn.Module", dict[str, "torch.Tensor"]]:
    """The module to convert, and an example of its inputs: a batch with one padded article."""
    import torch

    checkpoint.model.config.use_cache = False
    input_ids = torch.full((2, 8), 5, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    input_ids[0, 5:], attention_mask[0, 5:] = checkpoint.tokenizer.pad_token_id, 0
    return log_odds_module(checkpoint.model).eval(), {"input_ids": input_ids, "attention_mask": attention_mask}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters' warnings about each other, their progress bars and their telemetry.

    OpenVINO and NNCF report every conversion to their maker over the network, unless the environment says CI.
    """
    from unittest.mock import patch

    with patch.dict(os.environ, CI="true"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
