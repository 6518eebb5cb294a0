"""The classifier itself: the Hugging Face checkpoint or adapter, its tokenizer and its contract."""

import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefilter_common.articles import LABEL_NAMES
from prefilter_common.errors import InputError
from prefilter_common.files import read_record, sha256_of
from prefilter_common.models.base_models import locate_base, named_errors, require_checkpoint
from prefilter_common.models.checks import (
    check_finite,
    check_keys,
    check_labels,
    check_tokenizer_file,
    check_vocabulary,
)
from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import read_contract, write_contract

HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
TOKENIZER_FILE = "tokenizer.json"


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
        write_contract(directory, replace(self.contract, tokenizer_sha256=sha256_of(directory / TOKENIZER_FILE)))


def load_base_model(name: str, max_length: int, seed: int) -> Checkpoint:
    """A pretrained model with a two-label head, new unless it has one, in float32, ready for fine-tuning.

    ``name`` is the packaged encoder's, a directory, or a hub name; ``seed`` draws the head. Raises InputError when
    there is no such model, the hub cannot be reached, or ``max_length`` exceeds its positions.
    """
    source = locate_base(name)
    torch.manual_seed(seed)
    with named_errors(source):
        # Switches of what the base was trained for: another loss, or more outputs.
        switches = {"problem_type": None, "output_hidden_states": False, "output_attentions": False}
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **switches, **_labels(2))
        _check_max_length(config, max_length, name)
        # Dropout inside attention makes torch materialise every attention matrix, since its fused kernels cannot
        # drop: nearly half as much time and memory again. Hidden states keep their dropout.
        for attribute in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(config, attribute):
                setattr(config, attribute, 0.0)
        tokenizer = _load_tokenizer(source)
        config.pad_token_id = tokenizer.pad_token_id
        model = _load_model(source, name, trained=False, config=config)
        check_vocabulary(model, tokenizer, name)
        tokenizer.model_max_length = max_length
    revision = _revision(source)
    earlier = read_contract(Path(source)) or Contract()  # of a model that is trained further
    contract = Contract(max_length=max_length, base_model=name, base_revision=revision, max_unknown=earlier.max_unknown)
    return Checkpoint(model, tokenizer, contract)


def _revision(source: str) -> str | None:
    """The hub's commit of what was just loaded from it; None for a directory."""
    cached = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else None


def load_checkpoint(directory: Path) -> Checkpoint:
    """A trained classifier in float32 on the CPU, in evaluation mode.

    A LoRA adapter comes merged into its base model. A directory without ``prefilter.json``, as earlier scripts wrote
    them, gets the default contract.

    Raises:
        InputError: naming the directory: not a model, not a trained one, or damaged in any way that would change its
            scores: weights that are missing, left over, of another shape or not finite, labels that are not ours, a
            tokenizer other than its own.
    """
    contract = read_contract(directory)
    require_checkpoint(directory)
    if contract and contract.tokenizer_sha256:
        check_tokenizer_file(directory / TOKENIZER_FILE, contract.tokenizer_sha256)
    with named_errors(str(directory)):
        if (directory / "adapter_config.json").is_file():
            model, tokenizer = _load_adapter(directory)
        else:
            read_record(directory / "config.json")
            tokenizer = _load_tokenizer(directory)
            model = _load_model(directory, str(directory), trained=True, use_safetensors=True)
        check_vocabulary(model, tokenizer, str(directory))
        check_labels(model.config, str(directory))
        check_finite(model, str(directory))
        if hasattr(model, "score"):  # a decoder reads its score at the last token that is no padding
            model.config.pad_token_id = tokenizer.pad_token_id
        if contract is None:
            contract = Contract(max_length=min(Contract.max_length, max_positions(model.config)))
        _check_max_length(model.config, contract.max_length, str(directory))
    return Checkpoint(model.eval(), tokenizer, contract)


def _load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    if not hasattr(tokenizer, "backend_tokenizer"):
        kind = type(tokenizer).__name__
        raise InputError(f"{source}: its tokenizer, {kind}, has no fast version (tokenizer.json); name another model")
    # Without the id of a padding token a decoder's head cannot find the last real token.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has no padding token")
    tokenizer.padding_side = "right"
    return tokenizer


def _load_model(source: str | Path, name: str, trained: bool, **settings: Any) -> PreTrainedModel:
    """A classifier in float32, whose head need not be in the file unless it is ``trained``. Raises InputError."""
    # On the newest GPUs torch prefers cuDNN's attention, which plans anew for each shape of a batch. With it each
    # training step took a quarter of a second on an H100, however small the model.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # The checkpoint's own dtype may be half. A head trained in half precision without a float32 master copy
    # loses most of its updates to rounding: weights stay in float32, and mixed precision is up to the trainer.
    model, found = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        **settings,
    )  # fmt: skip
    body = f"{model.base_model_prefix}."
    in_body = {key for key in found["missing_keys"] if key.startswith(body) and ".pooler." not in key}
    missing = found["missing_keys"] if trained else in_body
    if missing and not in_body:
        raise InputError(
            f"{name}: not a trained classifier, its weights have no {max(missing)}; train it: "
            f"python train_encoder.py --model {name}"
        )
    mismatched = {key for key, *_ in found["mismatched_keys"] if trained or key.startswith(body)}
    check_keys(name, missing, found["unexpected_keys"] if trained else (), mismatched)
    return model


def _load_adapter(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    record = read_record(directory / "adapter_config.json")
    if record.get("peft_type") != "LORA":
        raise InputError(f"{directory}: its adapter is of type {str(record.get('peft_type'))[:40]!r}; it must be LORA")
    adapter = PeftConfig.from_pretrained(directory)
    shapes = _adapter_shapes(directory)
    heads = [shape[0] for key, shape in shapes.items() if key.endswith(HEADS)]
    if not heads:
        raise InputError(f"{directory}: adapter_model.safetensors contains no classification head; train it again")
    base = adapter.base_model_name_or_path or _earlier_base(directory)
    try:
        source = locate_base(base)
    except InputError:
        wrong = f"{directory}: its base model {base} is not there, and no model hub provided it"
        raise InputError(f'{wrong}; correct "base_model_name_or_path" in its adapter_config.json') from None
    with named_errors(base):
        own = (directory / TOKENIZER_FILE).is_file()
        tokenizer = _load_tokenizer(directory) if own else _load_tokenizer(source, adapter.revision)
        config = AutoConfig.from_pretrained(
            source, revision=adapter.revision, trust_remote_code=False, **_labels(heads[0])
        )
        config.pad_token_id = tokenizer.pad_token_id
        model = _load_model(source, base, trained=False, revision=adapter.revision, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing weights, which are an error below
        adapted = PeftModel.from_pretrained(model, directory)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    left_over = {key for key in shapes.keys() - expected.keys() if "embed" not in key}
    check_keys(str(directory), expected.keys() - shapes.keys(), left_over, ())
    return adapted.merge_and_unload(), tokenizer


def _adapter_shapes(directory: Path) -> dict[str, list[int]]:
    """The shapes of the adapter's weights, among them its head's: PEFT does not record the number of labels."""
    try:
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as weights:
            return {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"adapter_model.safetensors: {error}") from None


def _earlier_base(directory: Path) -> str:
    """The base model's name where only an earlier script's ``lora_config.json`` has it."""
    path = directory / "lora_config.json"
    record = read_record(path) if path.is_file() else {}
    for key in ("base_model", "base_model_name", "model_name"):
        if isinstance(record.get(key), str) and record[key]:
            return record[key]
    raise InputError(f'{directory}: names no base model; add "base_model_name_or_path" to adapter_config.json')


def _labels(n_labels: int) -> dict:
    """The configuration entries that name the labels; a single sigmoid output has only commerce's name."""
    names = LABEL_NAMES[-n_labels:]
    return {"num_labels": n_labels, "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def _check_max_length(config: PretrainedConfig, max_length: int, name: str) -> None:
    positions = max_positions(config)
    if max_length > positions:
        raise InputError(f"{name}: reads at most {positions} tokens; pass --max-length {positions} or less")


def max_positions(config: PretrainedConfig) -> int:
    """The most tokens that a model has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # these count positions from the padding index
    return positions
