"""Where a base model comes from (the packaged encoder, a directory, a model hub), and what to say when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefilter_common.cli import InputError
from prefilter_common.packaged_encoder import PACKAGED_ENCODER, packaged_encoder


def locate_base(name: str) -> str:
    """What ``from_pretrained`` is to be given for ``name``.

    Does not import transformers, so that a wrong name is answered at once. Raises InputError for a directory without
    a checkpoint and, when HF_HUB_OFFLINE=1 is set, for a hub name that is not in the local cache.
    """
    if name == PACKAGED_ENCODER:
        return str(packaged_encoder())
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise InputError(f"{name}: holds no config.json, so no checkpoint; name the directory that does")
        return name
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise InputError(f"{name}: neither a directory nor a hub name; check the path") from None
    if constants.HF_HUB_OFFLINE and not isinstance(cached, str):
        raise _unreachable(name, "HF_HUB_OFFLINE=1 is set and it is not in the local cache")
    return name


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn what the libraries raise for a missing model or an unreachable hub into one line with the mend.

    transformers raises OSError, peft ValueError, datasets ConnectionError (an OSError).
    """
    try:
        yield
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if Path(name).exists():
            raise InputError(f"{name}: cannot be loaded ({first_line}); is the checkpoint complete?") from error
        raise _unreachable(name, first_line) from error


def _unreachable(name: str, why: str) -> InputError:
    return InputError(
        f"{name}: not a directory, and no model hub gave it ({why}); without a hub, pass a directory or "
        f"--model {PACKAGED_ENCODER}, the packaged encoder; HF_HUB_OFFLINE=1 skips the hub's retries"
    )
