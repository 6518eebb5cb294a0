"""What produced a number: command, commit, versions, hardware, data."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "scikit-learn", "numpy")
ENGINE_PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx")  # optional


class FileFingerprint(TypedDict):
    """Which data: a file's name, its hash, and its number of non-blank lines."""

    file: str
    sha256: str
    rows: int


class Hardware(TypedDict):
    """``cores`` are physical ones where the system tells them; ``gpu`` is None where there is none."""

    cpu: str
    cores: int | None
    torch_threads: int
    memory_gib: float
    platform: str
    gpu: str | None


class RunInfo(TypedDict):
    """What produced a number, as results files keep it."""

    command: str
    commit: str | None
    finished: str
    data: dict[str, FileFingerprint]
    hardware: Hardware
    versions: dict[str, str]


def run_info(argv: Sequence[str] | None, data_files: dict[str, Path]) -> RunInfo:
    """Provenance for a results file, as plain JSON values.

    Args:
        argv: the script's arguments; None means those of this process.
        data_files: role ("train", "test", ...) -> the file read.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]),
        "commit": commit(),
        "finished": now(),
        "data": {role: file_fingerprint(path) for role, path in data_files.items()},
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            **_engine_versions(),
        },
    }


def now() -> str:
    """The time in UTC, to the second: for ``finished`` where a run takes its provenance as soon as it has its data."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _engine_versions() -> dict[str, str]:
    found = {}
    for name in ENGINE_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str | None:
    """The project's commit, with ``-dirty`` when tracked files differ from it; None outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def file_fingerprint(path: Path) -> FileFingerprint:
    """Name, sha256 and number of non-blank lines (``rows``) of a file, read in constant memory."""
    digest, rows = hashlib.sha256(), 0
    with path.open("rb") as lines:
        for line in lines:
            digest.update(line)
            rows += bool(line.strip())
    return {"file": str(path), "sha256": digest.hexdigest(), "rows": rows}


def hardware() -> Hardware:
    """Processor, threads, memory, and the GPU if there is one."""
    # A deployment has neither, and asks only for memory.
    import psutil
    import torch

    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def cpu_name() -> str:
    """The processor's marketing name, where the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_gpu_memory() -> str:
    """Such as " (15.5 of 16.0 GiB allocated at the peak)", for a message; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    allocated, total = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.mem_get_info()[1] / 2**30
    return f" ({allocated:.1f} of {total:.1f} GiB allocated at the peak)"


def peak_memory_mib() -> float:
    """The peak resident memory of this process so far, in MiB."""
    try:
        # On Linux, getrusage starts from the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        pass
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
