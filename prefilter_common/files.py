"""Files that appear complete or not at all, and JSON that is read without surprises."""

import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of the text in UTF-8; bytes of a file name that are not UTF-8 become escapes, in JSON too."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, then rename it into place. A link is written through."""
    path = resolved(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write indented JSON. Raises ValueError for NaN and infinity, which other languages' parsers reject."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one compact JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def parse_json(text: str) -> Any:
    """Decode JSON. Raises ValueError for what is not JSON, is nested too deeply, or has a key twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # which would be written as Infinity, and is no JSON
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON; write null instead")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {json.dumps(twice)[:40]} occurs twice in one object")
    return found


def resolved(path: Path) -> Path:
    """Where a file or directory really is: beside it, not beside a link to it, it can be replaced in one step."""
    return Path(os.path.realpath(path))
