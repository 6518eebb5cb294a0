"""Files of fitted weights that stages need, each used only with the limits that were chosen for it."""

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from prefilter_common.files import sha256_of

log = logging.getLogger(__name__)
Model = TypeVar("Model")


def read_fitted(
    path: Path, sha256: str | None, what: str, of_arrays: Callable[[Mapping[str, np.ndarray]], Model]
) -> Model | None:
    """What ``of_arrays`` makes of an ``.npz`` file; None where no stage needs it, so that it has no hash, or, with a
    warning that ``what`` is skipped, where it is not that file.

    ``of_arrays`` raises ValueError, KeyError or TypeError for the file of another version.
    """
    if sha256 is None:
        return None
    try:
        if sha256_of(path) != sha256:
            raise ValueError("not the file that the benchmark made for this model")
        with np.load(path, allow_pickle=False) as file:
            return of_arrays({key: file[key] for key in file.files})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning(f"{path}: {what} skipped ({reason}); python benchmark_inference.py makes it again")
        return None
