"""Where a base model comes from: the packaged encoder, a directory or a model hub; and the error when it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefilter_common.errors import InputError
from prefilter_common.models.directory import ENGINE_FILE
from prefilter_common.models.packaged_encoder import PACKAGED_ENCODER, packaged_encoder

# Model types whose layers ``encoder_layers`` knows.
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta")


def locate_base(name: str) -> str:
    """What to pass to ``from_pretrained`` for ``name``.

    Does not import transformers, so that a wrong name fails at once. Raises InputError for a directory without
    a checkpoint and, when HF_HUB_OFFLINE=1 is set, for a hub name that is not in the local cache.
    """
    if not name.strip():
        raise InputError("--model is empty; name a directory or a hub model, or leave it out")
    if name == PACKAGED_ENCODER:
        return str(packaged_encoder())
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise InputError(f"{name}: contains no config.json, so no checkpoint; name the directory that does")
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


def require_checkpoint(directory: Path) -> None:
    """Raise InputError, with what is there instead, for a directory that contains neither checkpoint nor adapter."""
    if any((directory / file).is_file() for file in ("config.json", "adapter_config.json")):
        return
    why = "no config.json or adapter_config.json, so not a model; train one there or remove it"
    if not directory.is_dir():
        why = "no such model directory; check the path"
    elif engines := sorted(record.parent.name for record in directory.glob(f"*/{ENGINE_FILE}")):
        only = f"contains no checkpoint, only {', '.join(engines)}"
        why = f"{only}; pass --engine with it to a script that has that flag, or copy the whole model directory"
    raise InputError(f"{directory}: {why}")


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn what the libraries raise for a missing or damaged model or an unreachable hub into one line with the fix.

    For an unreachable hub transformers raises OSError, peft ValueError, datasets ConnectionError (an OSError). For
    files that are not a checkpoint they raise whatever goes wrong first, so nothing else belongs in the block.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = one_line(error)
        if Path(name).exists():
            raise InputError(f"{name}: cannot be loaded ({why}); copy it again from where it was made") from error
        raise _unreachable(name, why) from error


def one_line(error: Exception) -> str:
    """The type of an error and the beginning of its message, for a line that says more."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:250]


def _unreachable(name: str, why: str) -> InputError:
    from huggingface_hub import constants

    retries = "" if constants.HF_HUB_OFFLINE else "; HF_HUB_OFFLINE=1 skips the hub's retries"
    return InputError(
        f"{name}: not a directory, and no model hub provided it ({why}); without a hub, pass a directory or, for an "
        f"encoder, --model {PACKAGED_ENCODER}, the packaged one{retries}"
    )
