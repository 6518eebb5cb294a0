"""Pack what a deployment needs of a model directory into one file, and check it when it is unpacked.

    python -m prefilter_common.models.bundle models/distilbert distilbert.tar
    python -m prefilter_common.models.bundle --unpack distilbert.tar /srv/models/distilbert

It packs prefilter.json, the records of training, the weights of stages and, where the benchmark recommends a converted
engine, that engine with its own tokenizer; otherwise the checkpoint, without the pickles of earlier scripts.
bundle.json, the first file of the archive, lists the others with their sizes and hashes. Archives of the same files are
the same, byte for byte. Unpacking writes a whole model directory or nothing, and with --overwrite puts yesterday's
model back in one step.
"""

import hashlib
import io
import json
import logging
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, TypedDict

from prefilter_common.cli import Parser, configure_logging, exit_code
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, resolved, sha256_of
from prefilter_common.models.base_models import one_line
from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import (
    CARD_FILE,
    CONTRACT_FILE,
    EARLY_EXITS_FILE,
    ENGINE_FILE,
    FIRST_STAGE_FILE,
    METRICS_FILE,
    RECOMMENDATION_FILE,
    RUN_FILE,
    VALIDATION_FILE,
    is_current,
    is_judged,
    is_model,
    read_contract,
    read_recommendation,
    recommended_stages,
    require_model_output,
)
from prefilter_common.outputs import new_directory, partial_name, require_files

log = logging.getLogger(__name__)

LISTING = "bundle.json"
RECORDS = {
    CARD_FILE, CONTRACT_FILE, EARLY_EXITS_FILE, FIRST_STAGE_FILE, METRICS_FILE, RECOMMENDATION_FILE, RUN_FILE,
    VALIDATION_FILE,
}  # fmt: skip
BLOCK = 1 << 20
LONGEST_NAME = 255  # bytes, in the usual file systems
PICKLES = {".bin", ".pkl", ".pt", ".pth"}  # as earlier scripts left them, such as training_args.bin


class FileRecord(TypedDict):
    """One file of a bundle."""

    bytes: int
    sha256: str


def main(argv: list[str] | None = None) -> int:
    """Pack or unpack; print one line. Returns the exit code."""
    parser = Parser(__doc__, prog="python -m prefilter_common.models.bundle")
    parser.add_argument("source", type=Path, help="model directory, or with --unpack the archive")
    parser.add_argument("target", type=Path, help="archive to write, or with --unpack the model directory")
    parser.add_argument("--unpack", action="store_true", help="unpack source into target, and check every file")
    parser.add_argument("--overwrite", action="store_true", help="with --unpack, replace a model in target")
    args = parser.parse_args(argv)
    if args.overwrite and not args.unpack:
        parser.error("--overwrite is for --unpack; move an archive that is in the way")
    configure_logging()
    files = unpack(args.source, args.target, args.overwrite) if args.unpack else pack(args.source, args.target)
    size = sum(record["bytes"] for record in files.values())
    print(json.dumps({"output": str(args.target), "files": len(files), "bytes": size}, separators=(",", ":")))
    return 0


def pack(directory: Path, archive: Path) -> dict[str, FileRecord]:
    """Write ``archive``, complete or not at all. Returns its files.

    Raises InputError where ``directory`` is no model of this project or no whole one, or the archive exists.
    """
    if not is_model(directory):
        raise InputError(f"{directory}: is not a model directory; check the path")
    read_contract(directory)  # which must be readable, where there is one
    if archive.exists():
        raise InputError(f"{archive}: already exists; move it away, or name another output")
    if resolved(archive).is_relative_to(resolved(directory)):
        raise InputError(f"{archive}: is inside the model directory; name a place outside {directory}")
    require_files(archive)
    names = deployed(directory)
    files: dict[str, FileRecord] = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_of(directory / name)} for name in names
    }
    partial = partial_name(archive)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            listing = json.dumps({"files": files}, indent=2).encode()
            _add(tar, LISTING, len(listing), io.BytesIO(listing))
            for name in names:
                with (directory / name).open("rb") as content:
                    _add(tar, name, files[name]["bytes"], content)
        partial.replace(resolved(archive))
    finally:
        partial.unlink(missing_ok=True)
    return files


def deployed(directory: Path) -> list[str]:
    """The files that a deployment needs, relative to the model directory, sorted."""
    recommended = read_recommendation(directory)
    again = f"python benchmark_inference.py --model {directory}"
    for stage in recommended_stages(recommended, read_contract(directory) or Contract()) or () if recommended else ():
        path = directory / (EARLY_EXITS_FILE if stage.layers else FIRST_STAGE_FILE)
        if stage.sha256 is not None and not (path.is_file() and sha256_of(path) == stage.sha256):
            raise InputError(f"{path}: a recommended stage's, but missing or damaged; {again} makes it again")
    # What runs as bf16 is converted as fp32.
    engine = str(recommended.get("engine")).replace("bf16", "fp32") if recommended else ""
    if engine.startswith(("openvino", "onnxruntime")):
        if not is_current(directory / engine):
            raise InputError(
                f"{directory / engine}: recommended, but missing, damaged or not made from this checkpoint; {again} "
                "makes it again"
            )
        if not is_judged(directory / engine, recommended or {}):
            raise InputError(f"{directory / engine}: made again since it was recommended; {again} judges it")
        kept = [path for path in (directory / engine).rglob("*") if path.is_file()]
        kept += [directory / name for name in RECORDS if (directory / name).is_file()]
    elif (directory / "adapter_config.json").exists():
        raise InputError(
            f"{directory}: an adapter without its base model; python train_qwen_lora.py --merge {directory}"
        )
    else:
        files = (path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
        kept = [path for path in files if path.suffix not in PICKLES]
        for path in kept:
            if path.suffix == ".safetensors":
                _require_whole(path)
        if not any(path.suffix == ".safetensors" for path in kept):
            raise InputError(
                f"{directory}: has no weights in safetensors, and no others are loaded; write it with save_pretrained"
            )
    return sorted(path.relative_to(directory).as_posix() for path in kept)


def unpack(archive: Path, directory: Path, overwrite: bool = False) -> dict[str, FileRecord]:
    """Write ``directory``, complete or not at all. Returns its files.

    Raises:
        InputError: not a bundle; a file that is damaged, missing, or not in its list; or ``directory`` exists.
    """
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; check the path")
    require_model_output(directory, overwrite, [archive])
    try:
        with tarfile.open(archive, "r:") as tar:
            members = iter(tar)
            files = _read_listing(tar, members)
            with new_directory(directory, overwrite) as partial:
                left = dict(files)
                for member in members:
                    record = left.pop(member.name, None)
                    if record is None or not member.isfile():
                        raise InputError(f"{archive}: {member.name[:80]!r} is not in its list; copy the archive again")
                    _extract(tar, member, record, partial / member.name, archive)
                if left:
                    raise InputError(f"{archive}: {min(left)} is missing; copy the archive again")
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        raise InputError(f"{archive}: not a bundle, or damaged; copy it again, or pack the model again") from None
    return files


def _require_whole(weights: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np"):
            pass
    except SafetensorError as error:
        raise InputError(
            f"{weights}: damaged or cut short ({one_line(error)}); copy it again, or train again"
        ) from None


def _add(tar: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)  # no owner, and no time: the same files give the same archive
    member.size, member.mode = size, 0o644
    tar.addfile(member, content)


def _read_listing(tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> dict[str, FileRecord]:
    first = next(members, None)
    content = tar.extractfile(first) if first is not None and first.name == LISTING and first.size <= BLOCK else None
    if content is None:
        raise ValueError(LISTING)
    files = parse_json(content.read().decode())["files"]
    if not isinstance(files, dict):
        raise ValueError(LISTING)
    for name, record in files.items():
        path = PureWindowsPath(name)  # stricter than a POSIX path
        if path.anchor or "\\" in name or ".." in path.parts or not name or name.startswith("."):
            raise ValueError(name)
        if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
            raise ValueError(name)
        if any(parent.as_posix() in files for parent in path.parents):  # a file would be in the place of its folder
            raise ValueError(name)
        if type(record["bytes"]) is not int or not isinstance(record["sha256"], str):
            raise ValueError(record)
    # A model of the earlier scripts has no contract.
    if not any(name.endswith((CONTRACT_FILE, "config.json", ENGINE_FILE)) for name in files):
        raise ValueError(CONTRACT_FILE)
    return files


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, record: FileRecord, target: Path, archive: Path) -> None:
    damaged = InputError(f"{archive}: {member.name} is damaged; copy the archive again")
    if member.size != record["bytes"]:
        raise damaged
    content = tar.extractfile(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as out:
        while content is not None and (block := content.read(BLOCK)):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != record["sha256"]:
        raise damaged


if __name__ == "__main__":
    sys.exit(exit_code(main))
