"""Articles in, token ids out, as the model's own tokenizer makes them.

A long text is tokenised in pieces, and only as far as it will be read: the tokenizers library takes 70 to 300 bytes per
character. The pieces end at breaks, where the tokens of the parts are, one after the other, those of the whole. No step
of a tokenizer that is listed here looks across a break: Unicode normalisation composes nothing with white space or an
ideographic punctuation mark; the pre-tokenizers start a new word there, and begin a text that starts there as they go
on after a word; the models (WordPiece, Unigram, BPE) see one word at a time. With any other tokenizer a text is never
divided, which takes memory and changes nothing else.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from prefilter_common.articles import Article, format_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of a piece: about as many as the tokens that are needed have, or where no break is so near, more. What is
# still unbroken then, such as data in base64, is divided there all the same, the only case in which tokens may differ.
CHARACTERS_PER_TOKEN, LONGEST_PIECE = 6, 100_000
CHARACTERS_AT_ONCE = 1_000_000

LOCAL_NORMALIZERS = {
    "NFC", "NFD", "NFKC", "NFKD", "BertNormalizer", "Lowercase", "StripAccents", "Nmt", "Precompiled"
}  # fmt: skip
WHITE_SPACE = {"Regex": r"\s+"}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The last break, after a letter or digit: before a space, any of the usual white space, or an ideographic mark as well.
SPACE = re.compile(r".*[^\W_](?= )", re.DOTALL)
BLANK = re.compile(r".*[^\W_](?=[ \n])", re.DOTALL)
BLANK_OR_MARK = re.compile(r".*(?:[^\W_](?=[ \n])|[^\W\d_](?=[。，、！？]))", re.DOTALL)


class ArticleTokenizer:
    """Token ids of articles, whole or cut.

    The tokenizers inside transformers keep their maximum length as a setting, which two threads that read to different
    lengths would overwrite for each other. This one never cuts while it tokenises, so it has no such state.
    """

    def __init__(self, tokenizer: Tokenizer, pad_token_id: int):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.pad_token_id = pad_token_id
        self._tokenizer = tokenizer
        self._breaks = _breaks(tokenizer)
        example = tokenizer.encode("a")
        own = [i for i, special in enumerate(example.special_tokens_mask) if not special] or [len(example.ids)]
        self._first, self._last = example.ids[: own[0]], example.ids[own[-1] + 1 :]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "ArticleTokenizer":
        """A copy of what transformers wraps; ``tokenizer`` itself keeps its settings."""
        return cls(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), tokenizer.pad_token_id)

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        self._tokenizer.save(str(path))

    def encode(self, articles: Sequence[Article], max_length: int = sys.maxsize) -> list[list[int]]:
        """Token ids of each article, special tokens included, cut at ``max_length`` as by ``cut``.

        Memory does not grow with the length of a text, apart from the ids themselves.
        """
        texts = [format_input(article) for article in articles]
        needed = max_length - len(self._first) - len(self._last)
        ids: list[list[int]] = [[] for _ in texts]
        starts = [0] * len(texts)
        unread = list(range(len(texts)))
        while unread:
            for group in self._groups(texts, starts, unread, needed):
                pieces = [texts[i][starts[i] : end] for i, end in group]
                found = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
                for (i, end), encoding in zip(group, found, strict=True):
                    ids[i] += encoding.ids
                    starts[i] = end
            unread = [i for i in unread if starts[i] < len(texts[i]) and len(ids[i]) < needed]
        return [self.cut([*self._first, *own, *self._last], max_length) for own in ids]

    def unknown(self, articles: Sequence[Article], max_length: int, bound: float | None) -> np.ndarray:
        """Which articles have more than a share ``bound`` of characters without a token of their own: (n,) bool.

        Counted are the article's own, of about the first ``max_length`` tokens, white space left out. The share of
        unknown tokens would not tell, since a whole sentence can be one of them.
        """
        if bound is None:
            return np.zeros(len(articles), dtype=bool)
        # Without the words of the input format, which would outweigh a headline in an unknown script.
        texts = [f"{article.title} {article.content}"[: max_length * CHARACTERS_PER_TOKEN] for article in articles]
        return np.array([self._unknown_share(text) > bound for text in texts], dtype=bool)

    def _unknown_share(self, text: str) -> float:
        if self._characters.issuperset(text):  # most texts, at a tenth of the cost of normalising and counting
            return 0.0
        normalizer = self._tokenizer.normalizer
        text = "".join((normalizer.normalize_str(text) if normalizer else text).split())
        return sum(character not in self._characters for character in text) / max(1, len(text))

    @cached_property
    def _characters(self) -> frozenset[str]:
        """Those with a token of their own, white space, and the mark that some normalizers put in its place."""
        bare = (piece.removeprefix("▁").removeprefix("##") for piece in self._tokenizer.get_vocab())
        return frozenset(piece for piece in bare if len(piece) == 1) | frozenset(" \n\r\t▁")

    def cut(self, ids: list[int], max_length: int) -> list[int]:
        """The first ``max_length`` tokens of an article; special tokens at its end, such as [SEP], stay there."""
        if len(ids) <= max_length:
            return ids
        return ids[: max_length - len(self._last)] + ids[len(ids) - len(self._last) :]

    def own(self, ids: list[int]) -> list[int]:
        """The tokens of the article itself, without the special ones around them."""
        return ids[len(self._first) : len(ids) - len(self._last)]

    def pad(
        self, encodings: Sequence[list[int]], step: int = 1, max_length: int = sys.maxsize
    ) -> tuple[np.ndarray, np.ndarray]:
        """``input_ids`` and ``attention_mask``, both (n, t) int64, padded on the right: t is the length of the longest,
        rounded up to a multiple of ``step``, but not beyond ``max_length``.
        """
        longest = max(len(ids) for ids in encodings)
        width = max(longest, min(-(-longest // step) * step, max_length))
        input_ids = np.full((len(encodings), width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(encodings):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask

    def batches(
        self, encodings: Sequence[list[int]], batch_size: int, step: int = 1, max_length: int = sys.maxsize
    ) -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray]]]:
        """Batches of articles of similar length, so that little is padding: their indices, and what ``pad`` gives."""
        by_length = sorted(range(len(encodings)), key=lambda i: len(encodings[i]))
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            yield batch, self.pad([encodings[i] for i in batch], step, max_length)

    def _groups(
        self, texts: Sequence[str], starts: Sequence[int], unread: Sequence[int], needed: int
    ) -> Iterator[list[tuple[int, int]]]:
        """The next piece of each unread text, as its index and end, in groups to be tokenised together."""
        group: list[tuple[int, int]] = []
        total = 0
        for i in unread:
            end = self._end_of_piece(texts[i], starts[i], needed * CHARACTERS_PER_TOKEN)
            if group and total + end - starts[i] > CHARACTERS_AT_ONCE:
                yield group
                group, total = [], 0
            group.append((i, end))
            total += end - starts[i]
        yield group

    def _end_of_piece(self, text: str, start: int, size: int) -> int:
        if self._breaks is None:
            return len(text)
        for length in (min(size, LONGEST_PIECE), LONGEST_PIECE):
            if len(text) - start <= length:
                return len(text)
            if found := self._breaks.match(text, start, start + length):
                return found.end()
        return start + LONGEST_PIECE


def _breaks(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """What ends at the last break of a text; None for a tokenizer that is not listed."""
    added = tokenizer.get_added_tokens_decoder().values()
    normalization = _steps(tokenizer.normalizer, "normalizers")
    if any(token.rstrip or re.search(r"\s", token.content) for token in added):
        return None
    if not all(step["type"] in LOCAL_NORMALIZERS or _joins_white_space(step) for step in normalization):
        return None
    words = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    last = words[-1] if words else {}
    match [step["type"] for step in words]:
        case ["BertPreTokenizer"]:
            return BLANK_OR_MARK
        case ["WhitespaceSplit", "Metaspace"] if last["prepend_scheme"] == "always" and last["split"]:
            return BLANK
        case ["Metaspace"] if last["prepend_scheme"] == "always" and last["split"]:
            return BLANK if any(step.get("pattern") == WHITE_SPACE for step in normalization) else SPACE
        case ["ByteLevel"] if last["use_regex"]:
            return BLANK_OR_MARK
        case ["Split", "ByteLevel"] if not (last["use_regex"] or last["add_prefix_space"]):
            isolated = words[0]["behavior"] == "Isolated" and not words[0]["invert"]
            return BLANK_OR_MARK if isolated and words[0]["pattern"] == {"Regex": QWEN_WORDS} else None
    return None


def _steps(component: Any, parts: str) -> list[dict[str, Any]]:
    """The settings of each step of a normaliser or pre-tokenizer, as in ``tokenizer.json``."""
    if component is None:
        return []
    record = json.loads(component.__getstate__())
    return record[parts] if record["type"] == "Sequence" else [record]


def _joins_white_space(step: dict[str, Any]) -> bool:
    spaces = step["type"] == "Replace" and step["pattern"] in (WHITE_SPACE, {"Regex": " {2,}"})
    return spaces and step["content"] in (" ", "▁")
