"""What is in a model directory: the Hugging Face checkpoint and its input contract, ``prefilter.json``."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefilter_common.articles import COMMERCE, INPUT_FORMAT, LABEL_NAMES
from prefilter_common.base_models import locate_base, named_errors
from prefilter_common.cli import InputError
from prefilter_common.files import write_json

CONTRACT_FILE = "prefilter.json"


@dataclass(frozen=True)
class Contract:
    """How a model must be fed and read: ``prefilter.json``, so that nobody retypes it as flags.

    ``max_length`` is in tokens; logits are divided by ``temperature`` before they become probabilities;
    ``thresholds`` are the named operating points on P(commerce).
    """

    input_format: str = INPUT_FORMAT
    max_length: int = 512
    base_model: str | None = None
    base_revision: str | None = None
    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=lambda: {"default": 0.5})

    @classmethod
    def load(cls, path: Path) -> "Contract":
        """Read a ``prefilter.json``. Raises InputError."""
        try:
            contract = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not a valid contract ({error}); train the model again") from None
        if contract.input_format != INPUT_FORMAT:
            raise InputError(f"{path}: input format {contract.input_format!r} is not {INPUT_FORMAT!r}; train again")
        return contract

    def save(self, directory: Path) -> None:
        """Write ``prefilter.json``."""
        write_json(directory / CONTRACT_FILE, asdict(self))


@dataclass(frozen=True)
class Checkpoint:
    """A classifier with its tokenizer and contract."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    contract: Contract

    def save(self, directory: Path) -> None:
        """Write a directory that ``transformers.pipeline`` and ``load_checkpoint`` read."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        self.contract.save(directory)


def load_base_encoder(name: str, max_length: int, seed: int) -> Checkpoint:
    """A pretrained encoder with a new two-label head, ready to be fine-tuned.

    ``name`` is the packaged encoder's, a directory, or a hub name; ``seed`` draws the head. Raises InputError when
    there is no such model, the hub cannot be reached, or ``max_length`` exceeds it.
    """
    source = locate_base(name)
    torch.manual_seed(seed)
    with named_errors(name):
        config = AutoConfig.from_pretrained(
            source,
            num_labels=2,
            id2label=dict(enumerate(LABEL_NAMES)),
            label2id={n: i for i, n in enumerate(LABEL_NAMES)},
        )
        _check_max_length(config, max_length, name)
        # Dropout inside the attention would make torch materialise every attention matrix (its fused kernels do
        # not drop): a third more time and memory for training. Hidden states keep their dropout.
        for attribute in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(config, attribute):
                setattr(config, attribute, 0.0)
        tokenizer = AutoTokenizer.from_pretrained(source)
        # The checkpoint's own dtype may be half: weights are kept in float32, mixed precision is the trainer's.
        model = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.get_input_embeddings().num_embeddings}; name a checkpoint whose tokenizer is its own"
        )
    tokenizer.model_max_length = max_length
    return Checkpoint(
        model,
        tokenizer,
        Contract(max_length=max_length, base_model=name, base_revision=getattr(config, "_commit_hash", None)),
    )


def load_checkpoint(directory: Path) -> Checkpoint:
    """A trained classifier in float32 on the CPU, in evaluation mode. Raises InputError naming the directory.

    A directory without ``prefilter.json``, as earlier scripts wrote them, gets the default contract.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json, so not a model; train one there or remove the directory")
    path = directory / CONTRACT_FILE
    contract = Contract.load(path) if path.is_file() else None
    with named_errors(str(directory)):
        model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    if model.config.num_labels > 2:
        raise InputError(f"{directory}: has {model.config.num_labels} labels; one (sigmoid) or two (softmax) are known")
    if contract is None:
        contract = Contract(max_length=min(Contract.max_length, _max_positions(model.config)))
    _check_max_length(model.config, contract.max_length, str(directory))
    return Checkpoint(model.eval(), tokenizer, contract)


def commerce_index(config: PretrainedConfig) -> int:
    """Which of two logits is commerce's: by its name, or the second where the labels have no names."""
    return config.label2id.get(LABEL_NAMES[COMMERCE], COMMERCE)


def _check_max_length(config: PretrainedConfig, max_length: int, name: str) -> None:
    positions = _max_positions(config)
    if max_length > positions:
        raise InputError(f"{name}: reads at most {positions} tokens; pass --max-length {positions} or less")


def _max_positions(config: PretrainedConfig) -> float:
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # these count positions from behind the padding index
    return positions
