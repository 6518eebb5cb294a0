"""The input contract of a model, ``prefilter.json``, so that nobody retypes as flags how it must be fed and read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefilter_common.articles import INPUT_FORMAT
from prefilter_common.cli import InputError
from prefilter_common.files import write_json

CONTRACT_FILE = "prefilter.json"


@dataclass(frozen=True)
class TwoPass:
    """When a short first read is enough: its calibrated P(commerce) lies outside (``low``, ``high``).

    ``max_length`` is the tokens of the first read; ``temperature`` divides its log-odds.
    """

    max_length: int
    temperature: float
    low: float
    high: float

    def __post_init__(self):
        whole = isinstance(self.max_length, int) and self.max_length >= 1
        if not (whole and self.temperature > 0 and 0 <= self.low <= self.high <= 1):
            raise ValueError(f"two_pass is impossible: {asdict(self)}")


@dataclass(frozen=True)
class Contract:
    """How a model must be fed and read.

    ``max_length`` is in tokens; log-odds are divided by ``temperature`` before they become probabilities;
    ``thresholds`` are the named operating points on P(commerce); ``two_pass`` is None where every article is to be
    read in full.
    """

    input_format: str = INPUT_FORMAT
    max_length: int = 512
    base_model: str | None = None
    base_revision: str | None = None
    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=lambda: {"default": 0.5})
    two_pass: TwoPass | None = None

    @classmethod
    def load(cls, path: Path) -> "Contract":
        """Read a ``prefilter.json``. Raises InputError."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("two_pass") is not None:
                record["two_pass"] = TwoPass(**record["two_pass"])
            contract = cls(**record)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a valid contract ({error}); train the model again") from None
        if contract.input_format != INPUT_FORMAT:
            raise InputError(f"{path}: input format {contract.input_format!r} is not {INPUT_FORMAT!r}; train again")
        return contract

    def save(self, directory: Path) -> None:
        """Write ``prefilter.json``."""
        write_json(directory / CONTRACT_FILE, asdict(self))
