"""Articles -> token ids, as the model's own tokenizer gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from prefilter_common.articles import Article, format_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ArticleTokenizer:
    """Token ids of articles, whole or cut.

    The tokenizers that transformers wraps keep the length at which they cut as a setting, which two threads that read
    to different lengths overwrite for each other. This one never cuts while it tokenises, so nothing in it changes.
    """

    def __init__(self, tokenizer: Tokenizer, pad_token_id: int):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.pad_token_id = pad_token_id
        self._tokenizer = tokenizer
        mask = tokenizer.encode("a").special_tokens_mask
        # Special tokens at the end, such as [SEP], stay there when an article is cut.
        self._n_end = next((i for i, special in enumerate(reversed(mask)) if not special), len(mask))

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "ArticleTokenizer":
        """A copy of what transformers wraps; ``tokenizer`` itself keeps its settings."""
        return cls(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), tokenizer.pad_token_id)

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        self._tokenizer.save(str(path))

    def encode(self, articles: Sequence[Article]) -> list[list[int]]:
        """Token ids of each article, special tokens included, not cut."""
        texts = [format_input(article) for article in articles]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def cut(self, ids: list[int], max_length: int) -> list[int]:
        """The first ``max_length`` tokens of an article, its final special tokens among them."""
        if len(ids) <= max_length:
            return ids
        return ids[: max_length - self._n_end] + ids[len(ids) - self._n_end :]

    def pad(self, encodings: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """``input_ids`` and ``attention_mask``, both (n, longest) int64, padded on the right."""
        width = max(len(ids) for ids in encodings)
        input_ids = np.full((len(encodings), width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(encodings):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask
