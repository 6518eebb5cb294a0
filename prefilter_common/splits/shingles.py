"""Texts as sets of hashed shingles: sequences of 12 characters, without case, accents, punctuation and white space.

This works for every script.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

SHINGLE = 12
# A text with fewer normalised characters than this is too short to count as part of another.
MIN_SNIPPET = 50
# Content with this many normalised characters is compared without its title, since duplicates often differ in title.
# Shorter content is often a stub that many different articles share, such as "Subscribe to read on".
MIN_CONTENT = 100


def normalised(text: str) -> str:
    """Letters and digits of any script, in lower case and without accents, and one space for anything in between.

    Accents, and the dot that tells the two Turkish letters i apart, often get lost when a text is set in capitals.
    """
    plain = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text).casefold()).replace("ı", "i")
    return re.sub(r"[\W_]+", " ", plain).strip()


class ShingleSets:
    """The hashed shingles of n texts: sorted sets, concatenated in ``values``.

    ``probes`` (n,): which part of a text is searched for in others: ``content`` without the title, ``all`` if the
    content is too short for that, "" if even the whole text is. ``probed`` marks the values that are searched for.
    ``groups`` (n,): texts with the same number have the same content, and it is long enough to be searched for.
    """

    def __init__(self, texts: Sequence[tuple[str, str]]):
        sets, probed, self.probes = [], [], []
        for title, content in texts:
            whole = f"{title} {content}".strip()
            hashes = hash_shingles(whole)
            values = _distinct(hashes)
            if len(content) >= MIN_CONTENT:
                inside = np.zeros(len(values), bool)
                inside[np.searchsorted(values, hashes[len(whole) - len(content) :])] = True
            else:
                inside = np.full(len(values), len(whole) >= MIN_SNIPPET)
            sets.append(values)
            probed.append(inside)
            self.probes.append("content" if len(content) >= MIN_CONTENT else "all" if len(whole) >= MIN_SNIPPET else "")
        keys = [content if len(content) >= MIN_CONTENT else (title, content) for title, content in texts]
        numbers: dict[object, int] = {}
        self.groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        self.sizes = np.array([len(values) for values in sets], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.values = np.concatenate(sets) if sets else np.zeros(0, np.uint32)
        self.probed = np.concatenate(probed) if sets else np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.starts[i] : self.starts[i + 1]]

    def probe(self, i: int) -> np.ndarray:
        """The shingles of text ``i`` that are searched for in other texts."""
        return self[i][self.probed[self.starts[i] : self.starts[i + 1]]]


def hash_shingles(text: str) -> np.ndarray:
    """Hashes of all sequences of 12 characters, in order. A shorter text is padded and hashed as a whole."""
    codes = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le"), "<u4").astype(np.uint64)
    hashed = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for i in range(SHINGLE):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + codes[i : i + len(hashed)]
    hashed ^= hashed >> np.uint64(29)
    hashed *= np.uint64(0xBF58476D1CE4E5B9)
    return (hashed >> np.uint64(32)).astype(np.uint32)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The sorted unique values; much faster on short arrays than numpy.unique, which hashes."""
    ordered = np.sort(values)
    return ordered[changes(ordered)]


def changes(ordered: np.ndarray) -> np.ndarray:
    """(n,) bool: where a sorted array has the first of each value."""
    return np.concatenate([np.ones(min(len(ordered), 1), bool), ordered[1:] != ordered[:-1]])


def common(a: np.ndarray, b: np.ndarray) -> int:
    """The number of values that two sorted sets share."""
    if len(a) > len(b):
        a, b = b, a
    where = np.searchsorted(b, a)
    return int((b[np.minimum(where, len(b) - 1)] == a).sum())
