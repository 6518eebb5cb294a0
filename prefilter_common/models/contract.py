"""The input contract of a model, ``prefilter.json``: how to feed it and read its scores."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from prefilter_common.articles import INPUT_FORMAT

# Below this a model reads hardly more than its special tokens and "[TITLE]".
MIN_LENGTH = 8


@dataclass(frozen=True)
class TwoPass:
    """When a short first read suffices: its calibrated P(commerce) lies outside (``low``, ``high``).

    ``max_length`` is the tokens of the first read; ``temperature`` divides its log-odds.
    """

    max_length: int
    temperature: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _require_whole("two_pass.max_length", self.max_length, 1)
        _require_number("two_pass.temperature", self.temperature, above=0)
        _require_number("two_pass.high", self.high, 0, 1)
        _require_number("two_pass.low", self.low, 0, self.high)


@dataclass(frozen=True)
class Contract:
    """How to feed a model and read its scores.

    ``max_length`` is in tokens; log-odds are divided by ``temperature`` before they become probabilities;
    ``thresholds`` are the named operating points on P(commerce); ``two_pass`` is None where every article is read in
    full; ``tokenizer_sha256`` is of the ``tokenizer.json`` that the model was trained with, None where nobody recorded
    it. Raises ValueError for a value that none of them can have.
    """

    input_format: str = INPUT_FORMAT
    max_length: int = 512
    base_model: str | None = None
    base_revision: str | None = None
    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=lambda: {"default": 0.5})
    two_pass: TwoPass | None = None
    tokenizer_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.input_format != INPUT_FORMAT:
            raise ValueError(f'"input_format" is {_shown(self.input_format)}; it must be {INPUT_FORMAT!r}')
        _require_whole("max_length", self.max_length, MIN_LENGTH)
        for key in ("base_model", "base_revision", "tokenizer_sha256"):
            if not isinstance(getattr(self, key), str | None):
                raise ValueError(f'"{key}" is {_shown(getattr(self, key))}; it must be a string or null')
        _require_number("temperature", self.temperature, above=0)
        if not isinstance(self.thresholds, Mapping) or "default" not in self.thresholds:
            raise ValueError(f'"thresholds" is {_shown(self.thresholds)}; it must be an object with a "default"')
        for name, value in self.thresholds.items():
            _require_number(f"thresholds.{name}", value, 0, 1)
        if not isinstance(self.two_pass, TwoPass | None):
            raise ValueError(f'"two_pass" is {_shown(self.two_pass)}; it must be an object or null')

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Contract":
        """From the content of ``prefilter.json``. Raises ValueError naming the key."""
        found = dict(record)
        if isinstance(found.get("two_pass"), Mapping):
            _require_keys(TwoPass, found["two_pass"], "two_pass.")
            if missing := {field.name for field in fields(TwoPass)} - set(found["two_pass"]):
                raise ValueError(f'"two_pass.{min(missing)}" is missing')
            found["two_pass"] = TwoPass(**found["two_pass"])
        _require_keys(cls, found)
        return cls(**found)


def _require_keys(kind: type, record: Mapping[str, Any], prefix: str = "") -> None:
    known = [field.name for field in fields(kind)]
    unknown = [f"{prefix}{key}"[:40] for key in record if key not in known]
    if unknown:
        raise ValueError(f"unknown {', '.join(map(repr, unknown))}; the keys are {', '.join(known)}")


def _require_whole(key: str, value: Any, low: int) -> None:
    # bool is an int in Python, but true in a file means that its writer had something else in mind.
    if type(value) is not int or value < low:
        raise ValueError(f'"{key}" is {_shown(value)}; it must be a whole number of at least {low}')


def _require_number(
    key: str, value: Any, low: float = -math.inf, high: float = math.inf, above: float = -math.inf
) -> None:
    number = type(value) in (int, float) and abs(value) <= sys.float_info.max
    if not (number and low <= value <= high and value > above):
        wanted = f"above {above}" if above > -math.inf else f"from {low} to {high}"
        raise ValueError(f'"{key[:40]}" is {_shown(value)}; it must be a number {wanted}')


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
