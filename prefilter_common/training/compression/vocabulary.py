"""Leave out of a model the tokens that its articles do not contain: often two thirds of a small multilingual encoder.

A text whose tokens are all kept is divided into the same tokens as before, and so gets the same scores: both Unigram
(the likeliest division) and WordPiece (the longest match first) choose the same among fewer candidates. Where a token
is missing they take shorter ones, down to single characters, which are kept of every script that the articles use. In
other scripts nearly everything is unknown, and the contract says from which share on an article is for another model.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import Checkpoint

TOKENIZERS = ("Unigram", "WordPiece")
# The contract's ``max_unknown``. With the tokens of six languages in Latin and Chinese script, 51 to 67 % of Greek
# articles was unknown, of their headlines at least 41 %, and of others in those scripts at most 18 %.
MAX_UNKNOWN_CHARACTERS = 0.3
# Articles use a script when it has this share of the needed tokens, and do not when they only quote it.
MIN_SHARE = 0.01
# What marks the beginning of a word, or its continuation.
MARKS = ("▁", "##")


def keep_tokens(checkpoint: Checkpoint, needed: Iterable[int]) -> Checkpoint:
    """The same model with only the ``needed`` tokens, by id, the special ones, and single characters of their scripts.

    Raises InputError for a tokenizer of another kind than ``TOKENIZERS``.
    """
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = record["model"]["type"]
    if kind not in TOKENIZERS:
        raise InputError(
            f"{checkpoint.contract.base_model}: its tokenizer is of type {kind}; only {' and '.join(TOKENIZERS)} work "
            "with fewer tokens, so leave out --vocabulary-from"
        )
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    added = {token["id"] for token in record["added_tokens"]}
    needed = set(needed) | added
    found = Counter(script for i in needed - added for script in _scripts(pieces[i]))
    scripts = {script for script, count in found.items() if count >= MIN_SHARE * len(needed)}
    single = {i for i, piece in enumerate(pieces) if len(_bare(piece)) <= 1 and _scripts(piece) <= scripts}
    kept = sorted(needed | single)
    renumbered = {old: new for new, old in enumerate(kept)}
    _shrink_tokenizer(record, kept, renumbered, pieces)
    names = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(record)),
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **names,
    )
    rows = model.get_input_embeddings().weight.detach()[kept]
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=small.pad_token_id))
    model.config.vocab_size = len(kept)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"):
        if getattr(model.config, key, None) is not None:
            setattr(model.config, key, renumbered[getattr(model.config, key)])
    return replace(
        checkpoint, tokenizer=small, contract=replace(checkpoint.contract, max_unknown=MAX_UNKNOWN_CHARACTERS)
    )


def script_of(character: str) -> str:
    """The writing system of a letter, by the first word of its Unicode name, such as LATIN; empty for what is none."""
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def _bare(piece: str) -> str:
    for mark in MARKS:
        piece = piece.removeprefix(mark)
    return piece


def _scripts(piece: str) -> set[str]:
    return {script for script in map(script_of, _bare(piece)) if script}


def _shrink_tokenizer(record: dict[str, Any], kept: list[int], renumbered: dict[int, int], pieces: list[str]) -> None:
    """Change ``tokenizer.json``'s content in place."""
    model = record["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][i] for i in kept if i < len(model["vocab"])]
        model["unk_id"] = renumbered[model["unk_id"]]
    else:
        model["vocab"] = {pieces[i]: new for i, new in renumbered.items() if pieces[i] in model["vocab"]}
    for token in record["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    processor = record["post_processor"] or {}
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [renumbered[i] for i in special["ids"]]
    for end in ("sep", "cls"):  # as BertProcessing and RobertaProcessing have them
        if end in processor:
            processor[end][1] = renumbered[processor[end][1]]
