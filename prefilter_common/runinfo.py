"""What produced a number: command, commit, versions, hardware, data."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "scikit-learn", "numpy")
ENGINE_PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx")  # not needed everywhere


def run_info(argv: Sequence[str] | None, data_files: dict[str, Path]) -> dict:
    """Provenance for a results file, as plain JSON values.

    Args:
        argv: the script's arguments; None means those of this process.
        data_files: role ("train", "test", ...) -> the file read.
    """
    return {
        "command": " ".join([Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]),
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {role: file_fingerprint(path) for role, path in data_files.items()},
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            **{name: importlib.metadata.version(name) for name in ENGINE_PACKAGES if find_spec(name)},
        },
    }


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


def file_fingerprint(path: Path) -> dict:
    """Name, sha256 and number of non-blank lines of a file, read in constant memory."""
    digest, rows = hashlib.sha256(), 0
    with Path(path).open("rb") as lines:
        for line in lines:
            digest.update(line)
            rows += bool(line.strip())
    return {"file": str(path), "sha256": digest.hexdigest(), "rows": rows}


def hardware() -> dict:
    """Processor, threads, memory, and the GPU if there is one."""
    import torch  # takes seconds, which those who only ask for the memory need not wait

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
    """The processor's marketing name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """The largest resident memory that this process has had, in MiB."""
    try:
        # What Linux tells through getrusage, a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        pass
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    with suppress(OSError, StopIteration):  # Linux, where getrusage counts what the parent had when it started this
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
