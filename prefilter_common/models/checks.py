"""What would silently change the scores of a model: each is refused in one line that names the model."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefilter_common.articles import COMMERCE, LABEL_NAMES
from prefilter_common.errors import InputError
from prefilter_common.files import sha256_of

# A vocabulary may be rounded up for speed (Qwen2.5: 271 embeddings more than tokens), not by more than this.
MAX_UNUSED_EMBEDDINGS = 0.1


def commerce_index(config: PretrainedConfig) -> int:
    """Which of two logits is commerce's: by its name, or the second where the labels have no names."""
    return config.label2id.get(LABEL_NAMES[COMMERCE], COMMERCE)


def check_keys(name: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise InputError where there are any: weights that a checkpoint lacks, has too many, or in another shape."""
    problems = {"missing": sorted(missing), "left over": sorted(unexpected), "of another shape": sorted(mismatched)}
    said = [f"{len(keys)} {kind}, such as {keys[0]}" for kind, keys in problems.items() if keys]
    if said:
        raise InputError(
            f"{name}: its weights are not those of its configuration ({'; '.join(said)}); copy the directory "
            "again from where it was made"
        )


def check_labels(config: PretrainedConfig, name: str) -> None:
    """Raise InputError unless there are one or two labels and commerce's place is beyond doubt."""
    if config.num_labels not in (1, 2):
        raise InputError(f"{name}: has {config.num_labels} labels; it must have one (sigmoid) or two (softmax)")
    named = [i for i, label in config.id2label.items() if label == LABEL_NAMES[COMMERCE]]
    if config.num_labels == 2 and (commerce_index(config) not in (0, 1) or named not in ([], [commerce_index(config)])):
        raise InputError(f"{name}: id2label and label2id in its config.json contradict each other; correct them")


def check_tokenizer_file(path: Path, sha256: str) -> None:
    """Raise InputError unless the file has the hash that was recorded with the model."""
    if not path.is_file() or sha256_of(path) != sha256:
        raise InputError(
            f"{path}: {'not the one that the model was trained with' if path.exists() else 'is missing'}; copy it "
            "again from where the model was made"
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise InputError unless every token has an embedding, and nearly every embedding a token."""
    n_embeddings = model.get_input_embeddings().num_embeddings
    if not (1 - MAX_UNUSED_EMBEDDINGS) * n_embeddings <= len(tokenizer) <= n_embeddings:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {n_embeddings} embeddings; its tokenizer "
            "files are missing or belong to another model: copy them again from where it was made"
        )


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raise InputError where a weight is NaN or infinite."""
    for key, weight in model.named_parameters():
        # The sum is thirty times as fast; it could overflow, so that alone it proves nothing.
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
            raise InputError(f"{name}: its weights {key} are not all finite numbers; train it again")
