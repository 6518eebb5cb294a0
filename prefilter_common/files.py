"""Files that appear complete or not at all, and JSON that is read without surprises."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefilter_common.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"  # how such a file begins


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


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines of a file with their numbers, from 1, one in memory at a time.

    Raises InputError for a file that is missing, cannot be read, or has no such line.
    """
    empty = True
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.removeprefix(BYTE_ORDER_MARK).strip():
                    empty = False
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if empty:
        raise InputError(f"{path}: contains no rows; expected one JSON object per line")


def decoded(line: bytes) -> Any:
    """The JSON of one line, which may begin with a byte order mark. Raises ValueError with the problem and the fix."""
    if line.startswith(GZIP):
        raise ValueError("the file is compressed; decompress it first")
    try:
        return parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON at column {error.colno} ({error.msg})") from None
    except ValueError as error:
        raise ValueError(f"invalid JSON ({error})") from None


def parse_json(text: str) -> Any:
    """Decode JSON. Raises ValueError for what is not JSON, is nested too deeply, or has a key twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError, in one line, for whatever else is there."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: invalid UTF-8 at byte {error.start + 1}; copy the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError as error:
        raise InputError(f"{path}: invalid JSON ({error}); copy the file again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: contains no JSON object; copy the file again")
    return found


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
