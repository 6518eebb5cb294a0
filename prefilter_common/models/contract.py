"""The input contract of a model, ``prefilter.json``: how to feed it and read its scores."""

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from prefilter_common.articles import INPUT_FORMAT
from prefilter_common.errors import InputError

# Below this a model reads hardly more than its special tokens and "[TITLE]".
MIN_LENGTH = 8
# What may read an article at a stage.
LINEAR, ENCODER, LAYERS = "linear", "encoder", "layers"


@dataclass(frozen=True)
class Stage:
    """A reader before the full read: it decides where its calibrated P(commerce) lies outside (``low``, ``high``).

    ``reader`` is ``linear``, the first stage, which decides only where it knows at least a share ``coverage`` of the
    tokens; ``encoder``, the model itself reading ``max_length`` tokens; or ``layers``, an early exit from the full read
    after so many ``layers``. The file with hash ``sha256`` has the weights of the first and the last kind;
    ``temperature`` divides the log-odds. Raises ValueError for a value that none of them can have.
    """

    reader: str
    temperature: float
    low: float
    high: float
    max_length: int | None = None
    coverage: float | None = None
    sha256: str | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.reader not in (LINEAR, ENCODER, LAYERS):
            raise ValueError(
                f'"stages.reader" is {_shown(self.reader)}; it must be "{LINEAR}", "{ENCODER}" or "{LAYERS}"'
            )
        _require_number("stages.temperature", self.temperature, above=0)
        _require_number("stages.high", self.high, 0, 1)
        _require_number("stages.low", self.low, 0, self.high)
        if self.reader == ENCODER:
            _require_whole("stages.max_length", self.max_length, 1)
        elif not isinstance(self.sha256, str):
            raise ValueError(f'"stages.sha256" is {_shown(self.sha256)}; it must be a string')
        elif self.reader == LINEAR:
            _require_number("stages.coverage", self.coverage, 0, 1)
        else:
            _require_whole("stages.layers", self.layers, 1)

    def encloses(self, *thresholds: float) -> bool:
        """Whether nothing that it decides lies between these, so that it decides alike at each."""
        return (self.low == 0 or self.low < min(thresholds)) and (self.high == 1 or max(thresholds) < self.high)

    @property
    def name(self) -> str:
        """As reports and ``cpu_benchmark.json`` call it."""
        if self.reader == LINEAR:
            return "first stage"
        return (
            f"{self.max_length} tokens" if self.reader == ENCODER else f"{self.layers} layer{'s' * (self.layers != 1)}"
        )


@dataclass(frozen=True)
class Contract:
    """How to feed a model and read its scores.

    ``max_length`` is in tokens; log-odds are divided by ``temperature`` before they become probabilities;
    ``thresholds`` are the named operating points on P(commerce); ``stages`` may decide, one after the other, before an
    article is read in full; an article with more than a share ``max_unknown`` of characters without a token is for
    another model, None where none is; ``tokenizer_sha256`` is of the ``tokenizer.json`` that the model was trained
    with, None where nobody recorded it. Raises ValueError for a value that none of them can have.
    """

    input_format: str = INPUT_FORMAT
    max_length: int = 512
    base_model: str | None = None
    base_revision: str | None = None
    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=lambda: {"default": 0.5})
    stages: tuple[Stage, ...] = ()
    max_unknown: float | None = None
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
        if self.max_unknown is not None:
            _require_number("max_unknown", self.max_unknown, 0, 1)
        if not all(isinstance(stage, Stage) for stage in self.stages):
            raise ValueError(f'"stages" is {_shown(self.stages)}; it must be a list of objects')
        # 0 for what is no early exit
        layers = [stage.layers or 0 if stage.reader == LAYERS else 0 for stage in self.stages]
        exits = layers[sum(n == 0 for n in layers) :]
        if 0 in exits or exits != sorted(set(exits)):
            raise ValueError('"stages" has early exits that are not at its end, each after more layers than the last')

    @property
    def stage_names(self) -> list[str]:
        """Of those before the full read, in order."""
        return [stage.name for stage in self.stages]

    def threshold(self, name: str = "default") -> float:
        """The lowest P(commerce) that counts as commerce at the named operating point.

        Every model has ``default``; evaluation adds ``best_f1`` and, where the validation articles support it,
        ``high_precision``. Raises InputError for one that the model does not have.
        """
        if name not in self.thresholds:
            raise InputError(f"no operating point {name!r}; this model has {', '.join(self.thresholds)}")
        return self.thresholds[name]

    def with_thresholds(self, thresholds: Mapping[str, float]) -> "Contract":
        """The same with other operating points, hence without stages: their limits were chosen for the earlier ones."""
        if thresholds == self.thresholds:
            return self
        return replace(self, thresholds=dict(thresholds), stages=())

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Contract":
        """From the content of ``prefilter.json``, an earlier version's too. Raises ValueError naming the key."""
        found = dict(record)
        if "two_pass" in found and "stages" not in found:
            earlier = found.pop("two_pass")
            if not isinstance(earlier, Mapping | None):
                raise ValueError(f'"two_pass" is {_shown(earlier)}; it must be an object or null')
            found["stages"] = [] if earlier is None else [{"reader": ENCODER, **earlier}]
        stages = found.get("stages", [])
        if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages):
            raise ValueError(f'"stages" is {_shown(stages)}; it must be a list of objects')
        for stage in stages:
            _require_keys(Stage, stage, "stages.")
            needed = {field.name for field in fields(Stage) if field.default is MISSING}
            if missing := needed - set(stage):
                raise ValueError(f'"stages.{min(missing)}" is missing')
        found["stages"] = tuple(Stage(**stage) for stage in stages)
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
