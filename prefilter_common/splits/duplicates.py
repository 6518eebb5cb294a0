"""Find articles that share their text: exact and near duplicates, and snippets of longer articles.

Texts are compared as sets of 12-character sequences (shingles), without case, accents, punctuation and white space;
this works for every script. Whether two articles are a pair depends only on these two.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import rensa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prefilter_common.articles import Article

SHINGLE = 12
# Jaccard similarity of the shingles. Unrelated articles from one feed stay below 0.2, boilerplate included.
NEAR = 0.5
# Share of the snippet's shingles that occur in the longer article.
CONTAINED = 0.8
# A text with fewer normalised characters than this is too short to count as part of another.
MIN_SNIPPET = 50
# Content with this many normalised characters is compared without its title, since duplicates often differ in title.
# Shorter content is often a stub that many different articles share, such as "Subscribe to read on".
MIN_CONTENT = 100
# 42 bands of 3 find 99.6 % of the pairs at NEAR and 4 % of those at 0.1.
N_HASHES, BANDS, BAND_SIZE = 126, 42, 3
# Snippets are looked up by one shingle in four, chosen by its hash; the share in this sample may be this much lower.
SAMPLE, SLACK = 4, 0.15
CHUNK = 1_000  # articles hashed at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two articles, by index; ``kind`` is exact, near, contained (the first in the second) or same id.

    ``similarity`` is the Jaccard similarity of their shingles, or the share of the first one's if it is contained.
    """

    first: int
    second: int
    kind: str
    similarity: float


def normalised(text: str) -> str:
    """Letters and digits of any script, in lower case and without accents, and one space for anything in between.

    Accents, and the dot that tells the two Turkish letters i apart, often get lost when a text is set in capitals.
    """
    plain = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text).casefold()).replace("ı", "i")
    return re.sub(r"[\W_]+", " ", plain).strip()


def find_pairs(articles: Sequence[Article]) -> list[Pair]:
    """All pairs of articles that share their text; articles with the same content are paired only with their first."""
    texts = [(normalised(article.title), normalised(article.content)) for article in articles]
    keys = [content if len(content) >= MIN_CONTENT else f"{title} {content}" for title, content in texts]
    distinct, copies = _first_of_each(keys)
    pairs = [Pair(i, j, "exact" if texts[i] == texts[j] else "contained", 1.0) for i, j in copies]
    sets = ShingleSets([texts[i] for i in distinct])
    found = {(p.first, p.second): p for p in contained_pairs(sets)} | {(p.first, p.second): p for p in near_pairs(sets)}
    return pairs + [Pair(distinct[p.first], distinct[p.second], p.kind, p.similarity) for p in found.values()]


def same_id_pairs(articles: Sequence[Article]) -> list[Pair]:
    """Pairs of articles with the same id: each repeat with the first that has it."""
    _, copies = _first_of_each([article.id for article in articles])
    return [Pair(i, j, "same id", 1.0) for i, j in copies]


def clusters(n: int, pairs: Iterable[Pair]) -> np.ndarray:
    """(n,) cluster number of each article; a cluster is linked by pairs, directly or through other articles."""
    ends = np.array([(pair.first, pair.second) for pair in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


class ShingleSets:
    """The hashed shingles of n texts: sorted sets, concatenated in ``values``.

    ``probes`` (n,): which part of a text is searched for in others: ``content`` without the title, ``all`` if the
    content is too short for that, "" if even the whole text is. ``probed`` marks the values that are searched for.
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


def near_pairs(sets: ShingleSets) -> list[Pair]:
    """Pairs with a Jaccard similarity of ``NEAR`` or more, found by MinHash (Broder 1997) and banding."""
    if not len(sets):
        return []
    digests = np.empty((len(sets), N_HASHES), np.uint32)
    for start in range(0, len(sets), CHUNK):
        stop = min(start + CHUNK, len(sets))
        values = sets.values[sets.starts[start] : sets.starts[stop]].astype(np.uint64)
        offsets = (sets.starts[start : stop + 1] - sets.starts[start]).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(values, offsets, N_HASHES, 0)
        digests[start:stop] = matrix.to_rows()
    candidates: set[tuple[int, int]] = set()
    for band in np.split(digests, BANDS, axis=1):
        groups: dict[bytes, list[int]] = defaultdict(list)
        for i, row in enumerate(np.ascontiguousarray(band).view(f"V{4 * BAND_SIZE}")[:, 0].tolist()):
            groups[row].append(i)
        for members in groups.values():
            candidates.update(combinations(members, 2))
    pairs = []
    for i, j in sorted(candidates):
        common = _common(sets[i], sets[j])
        similarity = common / (sets.sizes[i] + sets.sizes[j] - common)
        if similarity >= NEAR:
            pairs.append(Pair(i, j, "near", round(float(similarity), 4)))
    return pairs


def contained_pairs(sets: ShingleSets) -> list[Pair]:
    """Pairs of a text and one that contains at least ``CONTAINED`` of the shingles that are searched for.

    If too many of these shingles occur nowhere else, no text contains the first; this settles nearly all texts. For the
    rest, only the rarest shingles are looked up, enough of them that a text without half of them cannot contain it.
    """
    chosen = np.flatnonzero(sets.values % SAMPLE == 0)
    owners = np.repeat(np.arange(len(sets), dtype=np.int32), sets.sizes)[chosen]
    order = np.argsort(sets.values[chosen], kind="stable")
    ordered = sets.values[chosen][order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + 1))
    counts = np.diff(begins, append=len(ordered))
    # For each sampled shingle, in the order of the texts: how many texts have it, and where they begin in ``holders``.
    frequency, first = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    frequency[order], first[order] = np.repeat(counts, counts), np.repeat(begins, counts)
    holders = owners[order]

    probed = sets.probed[chosen]
    sampled = np.bincount(owners[probed], minlength=len(sets))
    unique = np.bincount(owners[probed & (frequency == 1)], minlength=len(sets))
    allowed = ((1 - CONTAINED + SLACK) * sampled).astype(np.int64)
    budgets = allowed - unique
    starts = np.searchsorted(owners, np.arange(len(sets) + 1))
    pairs = []
    for i in np.flatnonzero((budgets >= 0) & (sampled > 0)).tolist():
        mine = np.arange(starts[i], starts[i + 1])
        mine = mine[probed[mine] & (frequency[mine] > 1)]
        rarest = mine[np.argsort(frequency[mine], kind="stable")][: 2 * budgets[i] + 8]
        found = np.concatenate([holders[first[k] : first[k] + frequency[k]] for k in rarest])
        others, matches = np.unique(found, return_counts=True)
        probe = sets.probe(i)
        sample = probe[probe % SAMPLE == 0]
        for j in others[matches >= max(len(rarest) - budgets[i], 1)].tolist():
            # The whole sample decides too, so that the result does not depend on which shingles are rare in this data.
            if j == i or _common(sample, sets[j]) < len(sample) - allowed[i]:
                continue
            share = _common(probe, sets[j]) / len(probe)
            if share >= CONTAINED:
                pairs.append(Pair(i, j, "contained", round(float(share), 4)))
    return pairs


def _distinct(values: np.ndarray) -> np.ndarray:
    """The sorted unique values; much faster on short arrays than numpy.unique, which hashes."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """The number of values that two sorted sets share."""
    if len(a) > len(b):
        a, b = b, a
    where = np.searchsorted(b, a)
    return int((b[np.minimum(where, len(b) - 1)] == a).sum())


def _first_of_each(values: Sequence[str | None]) -> tuple[list[int], list[tuple[int, int]]]:
    """Indices of the first of each value, and (first, repeat) indices of the repeats. None is never a repeat."""
    first: dict[str, int] = {}
    places, copies = [], []
    for i, value in enumerate(values):
        if value is None or first.setdefault(value, i) == i:
            places.append(i)
        else:
            copies.append((first[value], i))
    return places, copies
