"""A model directory in, the files of an engine out, in a folder of their own inside it."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.files import read_record, write_json
from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import ENGINE_FILE, fingerprints, is_current, read_contract
from prefilter_common.outputs import new_directory
from prefilter_common.scoring.engines.converters import ConversionDetails, to_onnxruntime, to_openvino
from prefilter_common.scoring.engines.interface import EngineName, Unavailable, check_available
from prefilter_common.scoring.tokenization import ArticleTokenizer

log = logging.getLogger(__name__)

# Recorded with each conversion: increment it when one is made differently.
VERSION = 7


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
        train: training articles. OpenVINO's int8 is calibrated on some; ONNX Runtime's is more faithful with some.

    Returns:
        The folder; None for PyTorch, which needs nothing.

    Raises:
        Unavailable: the engine or its converter is not installed, the processor lacks the arithmetic, or ``train`` is
            needed and missing.
    """
    check_available(name, device)
    folder, int8 = name.folder(directory), name.precision == "int8"
    if folder is None or (is_current(folder) and _up_to_date(folder, int8 and bool(train))):
        return folder
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
        convert_to = to_openvino if name.library == "openvino" else to_onnxruntime
        details = convert_to(checkpoint, partial, int8, tokenizer, train or ())
        tokenizer.save(partial / "tokenizer.json")
        record: ConversionRecord = {
            "engine": folder.name,
            "max_length": checkpoint.contract.max_length,
            "max_positions": max_positions(checkpoint.model.config),
            "pad_token_id": tokenizer.pad_token_id,
            "version": VERSION,
            **details,
            "source": fingerprints(directory),
            "files": fingerprints(partial),
        }
        write_json(partial / ENGINE_FILE, record)
    return folder


def _up_to_date(folder: Path, calibrated: bool) -> bool:
    """Whether a conversion was made as one is now and, where ``calibrated``, on training articles."""
    record = read_record(folder / ENGINE_FILE)
    return record.get("version") == VERSION and (not calibrated or bool(record.get("calibration_articles")))


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
