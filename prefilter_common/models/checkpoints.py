"""What is in a model directory: the Hugging Face checkpoint and its input contract."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefilter_common.articles import COMMERCE, LABEL_NAMES
from prefilter_common.base_models import locate_base, named_errors
from prefilter_common.cli import InputError
from prefilter_common.contract import CONTRACT_FILE, Contract


@dataclass(frozen=True)
class Checkpoint:
    """A classifier with its tokenizer and contract."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    contract: Contract

    def save(self, directory: Path) -> None:
        """Write a directory that ``transformers.pipeline`` and ``load_checkpoint`` read."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        self.contract.save(directory)


def load_base_model(name: str, max_length: int, seed: int) -> Checkpoint:
    """A pretrained model with a new two-label head, in float32, ready to be fine-tuned.

    ``name`` is the packaged encoder's, a directory, or a hub name; ``seed`` draws the head. Raises InputError when
    there is no such model, the hub cannot be reached, or ``max_length`` exceeds it.
    """
    source = locate_base(name)
    torch.manual_seed(seed)
    with named_errors(name):
        config = AutoConfig.from_pretrained(source, **_labels(2))
        _check_max_length(config, max_length, name)
        # Dropout inside the attention would make torch materialise every attention matrix (its fused kernels do
        # not drop): nearly half as much time and memory again. Hidden states keep their dropout.
        for attribute in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(config, attribute):
                setattr(config, attribute, 0.0)
        tokenizer = AutoTokenizer.from_pretrained(source)
        config.pad_token_id = _padding_id(tokenizer)
        # The checkpoint's own dtype may be half. A head trained in half precision without a float32 master loses
        # most of its updates to rounding: weights are kept in float32, mixed precision is the trainer's.
        model = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    n_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > n_embeddings:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only {n_embeddings}; "
            "name a checkpoint whose tokenizer is its own"
        )
    tokenizer.model_max_length = max_length
    revision = getattr(config, "_commit_hash", None)
    return Checkpoint(model, tokenizer, Contract(max_length=max_length, base_model=name, base_revision=revision))


def load_checkpoint(directory: Path) -> Checkpoint:
    """A trained classifier in float32 on the CPU, in evaluation mode. Raises InputError naming the directory.

    A LoRA adapter comes merged into its base model. A directory without ``prefilter.json``, as earlier scripts wrote
    them, gets the default contract.
    """
    directory = Path(directory)
    path = directory / CONTRACT_FILE
    contract = Contract.load(path) if path.is_file() else None
    if (directory / "adapter_config.json").is_file():
        model, tokenizer = _load_adapter(directory)
    elif (directory / "config.json").is_file():
        with named_errors(str(directory)):
            model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(directory)
    else:
        raise InputError(
            f"{directory}: no config.json or adapter_config.json, so not a model; train one there or remove it"
        )
    if model.config.num_labels > 2:
        raise InputError(f"{directory}: has {model.config.num_labels} labels; one (sigmoid) or two (softmax) are known")
    if contract is None:
        contract = Contract(max_length=min(Contract.max_length, _max_positions(model.config)))
    _check_max_length(model.config, contract.max_length, str(directory))
    return Checkpoint(model.eval(), tokenizer, contract)


def _load_adapter(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with named_errors(str(directory)):
        adapter = PeftConfig.from_pretrained(directory)
        n_labels = _adapter_labels(directory)
    base = adapter.base_model_name_or_path or _earlier_base(directory)
    source = locate_base(base)
    with named_errors(base):
        tokenizer = AutoTokenizer.from_pretrained(directory if (directory / "tokenizer.json").is_file() else source)
        config = AutoConfig.from_pretrained(source, revision=adapter.revision, **_labels(n_labels))
        config.pad_token_id = _padding_id(tokenizer)
        model = AutoModelForSequenceClassification.from_pretrained(
            source, revision=adapter.revision, config=config, dtype=torch.float32
        )
    with named_errors(str(directory)):
        return PeftModel.from_pretrained(model, directory).merge_and_unload(), tokenizer


def _adapter_labels(directory: Path) -> int:
    """One or two, from the head among the adapter's weights: PEFT writes down neither."""
    try:
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                if name.endswith(("score.weight", "classifier.weight", "classifier.out_proj.weight")):
                    return weights.get_slice(name).get_shape()[0]
    except SafetensorError as error:
        raise ValueError(f"adapter_model.safetensors: {error}") from None
    raise ValueError("adapter_model.safetensors holds no classification head")


def _earlier_base(directory: Path) -> str:
    """The base model's name where only an earlier script's ``lora_config.json`` has it."""
    path = directory / "lora_config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return next(record[key] for key in ("base_model", "base_model_name", "model_name") if record.get(key))
    except (OSError, ValueError, StopIteration):
        raise InputError(
            f'{directory}: names no base model; add "base_model_name_or_path" to adapter_config.json'
        ) from None


def commerce_index(config: PretrainedConfig) -> int:
    """Which of two logits is commerce's: by its name, or the second where the labels have no names."""
    return config.label2id.get(LABEL_NAMES[COMMERCE], COMMERCE)


def _labels(n_labels: int) -> dict:
    """The configuration entries that name the labels; a single sigmoid output has only commerce's name."""
    names = LABEL_NAMES[-n_labels:]
    return {"num_labels": n_labels, "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Make sure that there is a padding token: without its id a decoder's head cannot find the last real token."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer.pad_token_id


def _check_max_length(config: PretrainedConfig, max_length: int, name: str) -> None:
    positions = _max_positions(config)
    if max_length > positions:
        raise InputError(f"{name}: reads at most {positions} tokens; pass --max-length {positions} or less")


def _max_positions(config: PretrainedConfig) -> float:
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # these count positions from behind the padding index
    return positions
