"""The files that the scripts keep beside a checkpoint: every name in one place.

    prefilter.json                 the input contract
    validation_predictions.jsonl   calibrated scores of the validation articles, to choose thresholds on
    training_metrics.json          the best epoch's figures, the curve, the speed
    run.json                       what made the model: command, commit, versions, hardware, data, base model; and
                                   a command that repeats the run, into <output>-repeat
    README.md                      model card
    cpu_benchmark.json             the configuration that the benchmark recommends
    first_stage.npz, early_exits.npz   weights of stages, where the benchmark found them worth having

A directory of an earlier script has only some of these, or none.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, read_record, sha256_of, write_json, write_json_lines
from prefilter_common.models.contract import ENCODER, Contract, Stage
from prefilter_common.outputs import require_free

log = logging.getLogger(__name__)

CONTRACT_FILE = "prefilter.json"
VALIDATION_FILE = "validation_predictions.jsonl"
METRICS_FILE = "training_metrics.json"
RUN_FILE = "run.json"
CARD_FILE = "README.md"
ENGINE_FILE = "engine.json"  # in the folder of each converted model
RECOMMENDATION_FILE = "cpu_benchmark.json"
FIRST_STAGE_FILE = "first_stage.npz"
EARLY_EXITS_FILE = "early_exits.npz"


class Recommendation(TypedDict):
    """What others read of ``cpu_benchmark.json``: mean milliseconds per article, and how to run the model; ``stages``
    are the names of those of the contract that decide before the full read; ``engine_sha256`` is of the ``engine.json``
    of the converted model that was judged, None for PyTorch.
    """

    avg_ms: float
    engine: str
    max_length: int
    stages: list[str]
    engine_sha256: str | None


class PredictionRow(TypedDict):
    """One line of ``predictions/<model>.jsonl`` and of the validation predictions."""

    id: str | None
    label: int | None
    score: float
    language: str | None


def model_directories(models_dir: Path, names: Iterable[str] | None = None) -> list[Path]:
    """The directories under ``models_dir``, sorted by name; only those in ``names`` where given.

    Names that start with a dot are skipped: those are unfinished. Raises InputError.
    """
    if is_model(models_dir):
        raise InputError(f"{models_dir}: is a model itself; pass the folder that it is in")
    found = sorted(path for path in models_dir.glob("[!.]*") if path.is_dir())
    if not found:
        why = "contains no models" if models_dir.is_dir() else "no such directory"
        raise InputError(f"{models_dir}: {why}; train a model first (python train_encoder.py)")
    wanted = {path.name for path in found} if names is None else set(names)
    if missing := wanted - {path.name for path in found}:
        there = ", ".join(path.name for path in found)
        raise InputError(f"{models_dir}: has no {', '.join(sorted(missing))}; it has {there}")
    if reserved := [name for name in sorted(wanted) if name.startswith("_")]:
        name = models_dir / reserved[0]
        raise InputError(f"{name}: names that begin with _ are reserved for sections of the results; rename it")
    return [path for path in found if path.name in wanted]


def require_model_output(output: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raise InputError unless a model may be written to ``output``, in place of nothing or of a model.

    Args:
        overwrite: whether it may replace a model, one of ours or of the earlier scripts; anything else never is.
        inputs: what the run reads; neither they nor the working directory may be inside ``output``.
    """
    require_free(output, overwrite)
    real = output.resolve()
    for path in (*inputs, Path.cwd()):
        if path.exists() and path.resolve().is_relative_to(real):
            raise InputError(f"{output}: contains {path}, which would be lost; name another output")
    if output.exists() and any(output.iterdir()) and not is_model(output):
        raise InputError(f"{output}: is not a model directory, so --overwrite does not replace it; name another output")


def is_model(directory: Path) -> bool:
    """Whether it is a model: with a contract, or as earlier scripts left it, or an engine that a bundle held alone."""
    marks = (CONTRACT_FILE, "lora_config.json", "adapter_config.json", f"*/{ENGINE_FILE}")
    if any(path.is_file() for mark in marks for path in directory.glob(mark)):
        return True
    try:
        config = parse_json((directory / "config.json").read_text(encoding="utf-8"))
        return any("ForSequenceClassification" in name for name in config["architectures"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_contract(directory: Path) -> Contract | None:
    """The contract; None for a directory without one, as earlier scripts wrote them. Raises InputError."""
    path = directory / CONTRACT_FILE
    if not os.path.lexists(path):
        return None
    record = read_record(path)
    try:
        return Contract.from_record(record)
    except ValueError as error:
        raise InputError(f"{path}: not a valid contract: {error}; correct it, or train the model again") from None


def write_contract(directory: Path, contract: Contract) -> None:
    """Write ``prefilter.json``."""
    write_json(directory / CONTRACT_FILE, asdict(contract))


def read_validation(directory: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(n,) labels and (n,) calibrated scores of the validation articles; None where training left none.

    Raises InputError for a file that training did not write.
    """
    path = directory / VALIDATION_FILE
    if not path.is_file():
        return None
    try:
        rows = [parse_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        labels, scores = (np.array([row[key] for row in rows]) for key in ("label", "score"))
        if (
            labels.dtype != int
            or scores.dtype != float
            or not (np.isin(labels, (0, 1)) & (abs(scores - 0.5) <= 0.5)).all()
        ):
            raise ValueError("a label is not 0 or 1, or a score not from 0 to 1")
        return labels, scores
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not written by training ({error}); delete it and pass --val-data") from None


def write_predictions(path: Path, articles: Sequence[Article], scores: np.ndarray) -> None:
    """Write the (n,) scores, one row per article, in the order given."""
    rows: list[PredictionRow] = [
        {"id": article.id, "label": article.label, "score": round(float(score), 6), "language": article.language}
        for article, score in zip(articles, scores, strict=True)
    ]
    write_json_lines(path, rows)


def read_recommendation(directory: Path) -> Recommendation | None:
    """What the benchmark recommends; None where it has not run or, with a warning, its file is unreadable. Neither keys
    nor values are checked: earlier versions wrote others.
    """
    if not (directory / RECOMMENDATION_FILE).exists():
        return None
    try:
        record: Any = read_record(directory / RECOMMENDATION_FILE)
    except InputError as error:
        log.warning(str(error))
        return None
    return record


def is_judged(folder: Path, found: Mapping[str, Any]) -> bool:
    """Whether the benchmark recommends the converted model that is in ``folder`` now, and not one before it."""
    return found.get("engine_sha256") in (None, sha256_of(folder / ENGINE_FILE))  # None: an earlier version's


def recommended_stages(found: Mapping[str, Any], contract: Contract) -> tuple[Stage, ...] | None:
    """Those of the contract's stages that the recommendation names; None where it is not readable."""
    if "stages" not in found:  # an earlier version's: one pass, or a short read before the full one
        passes = found.get("passes")
        return tuple(s for s in contract.stages if passes == 2 and s.reader == ENCODER) if passes in (1, 2) else None
    names = found["stages"]
    return tuple(stage for stage in contract.stages if stage.name in names) if isinstance(names, list) else None


def cpu_benchmark_ms(directory: Path, contract: Contract) -> float | None:
    """Mean milliseconds per article on the CPU, as the benchmark measured it; None where it has not, or where the
    contract no longer has every stage that it was measured with.
    """
    found: Any = read_recommendation(directory) or {}
    stages = recommended_stages(found, contract)
    if stages is not None and len(stages) < (len(found["stages"]) if "stages" in found else found["passes"] - 1):
        return None
    ms = found.get("avg_ms")
    return float(ms) if isinstance(ms, int | float) and ms is not True and 0 < ms < sys.float_info.max else None


def fingerprints(directory: Path) -> dict[str, str]:
    """File name -> sha256, of the files that make up a checkpoint or a converted model."""
    names = {"config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "pytorch_model.bin"}
    parts = re.compile(r"(model|layers_\d+)\.(xml|bin|onnx)|.+\.safetensors")
    found = (path for path in sorted(directory.iterdir()) if path.name in names or parts.fullmatch(path.name))
    return {path.name: sha256_of(path) for path in found}


def is_current(folder: Path) -> bool:
    """Whether a converted model exists in ``folder``, unchanged since it was made from the checkpoint around it.

    Files of the checkpoint that a deployment left out, such as the weights, are not checked.
    """
    try:
        record = read_record(folder / ENGINE_FILE)
        made_from, made = dict(record["source"]), dict(record["files"])
        unchanged = "tokenizer.json" in made and fingerprints(folder) == made  # and no part of another model is there
        whole = type(record["pad_token_id"]) is type(record["max_length"]) is type(record["max_positions"]) is int
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return False
    return unchanged and whole and fingerprints(folder.parent).items() <= made_from.items()
