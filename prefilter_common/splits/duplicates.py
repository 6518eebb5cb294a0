"""Find articles that share their text: exact and near duplicates, and snippets of longer articles.

Which articles are linked, directly or through others, does not depend on their order.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product

import numpy as np
import rensa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prefilter_common.articles import Article
from prefilter_common.splits.shingles import ShingleSets, changes, common, normalised

# Jaccard similarity of the shingles. Unrelated articles from one feed stay below 0.2, boilerplate included.
NEAR = 0.5
# Share of the snippet's shingles that occur in the longer article.
SNIPPET_SHARE = 0.8
# Under the same title, of this many normalised characters or more, half of the shorter article is enough: feeds put a
# footer under a snippet, and newsrooms rewrite an article under its headline.
SAME_TITLE, SAME_TITLE_SHARE = 20, 0.5
# A title of more articles than this is that of a column, or a placeholder, and says nothing about the text below it.
MAX_SAME_TITLE = 20
# 42 bands of 3 find 99.6 % of the pairs at NEAR and 4 % of those at 0.1.
N_HASHES, BANDS, BAND_SIZE = 126, 42, 3
# Snippets are looked up by one shingle in four, chosen by its hash; the share in this sample may be this much lower.
SAMPLE, SLACK = 4, 0.15
DIGESTED_AT_ONCE = 1_000  # articles; keeps the copies of their shingles to a few tens of MB


@dataclass(frozen=True, slots=True)
class Pair:
    """Two articles, by index; ``kind`` is exact, near, contained (the first in the second, in part) or same id.

    ``similarity`` is the Jaccard similarity of their shingles, or the share of the first one's if it is contained.
    """

    first: int
    second: int
    kind: str
    similarity: float


def find_pairs(articles: Sequence[Article]) -> list[Pair]:
    """Pairs that link all articles that share their text, directly or through other articles.

    Articles with the same title and content are paired only with the first of them, and so are articles with the same
    long content and different titles. Two such groups are paired once, by the first of their articles found to match.
    Not found, unless the titles are the same: an article of which less than ``SNIPPET_SHARE`` is in the longer one.
    """
    texts = [(normalised(article.title), normalised(article.content)) for article in articles]
    # Of an article without a letter or digit nothing would be left, and all of them would be copies of each other.
    texts = [text if any(text) else (a.title, a.content) for text, a in zip(texts, articles, strict=True)]
    distinct, copies = _first_of_each(texts)
    pairs = [Pair(i, j, "exact", 1.0) for i, j in copies]
    sets = ShingleSets([texts[i] for i in distinct])
    titles = [texts[i][0] for i in distinct]
    _, retitled = _first_of_each(sets.groups.tolist())
    found = [Pair(i, j, "contained", 1.0) for i, j in retitled]
    linked = {}
    for pair in same_title_pairs(sets, titles) + contained_pairs(sets) + near_pairs(sets):  # the strongest last
        linked[frozenset(sets.groups[[pair.first, pair.second]].tolist())] = pair
    found += linked.values()
    return pairs + [Pair(distinct[p.first], distinct[p.second], p.kind, p.similarity) for p in found]


def same_id_pairs(articles: Sequence[Article]) -> list[Pair]:
    """Pairs of articles with the same id: each repeat with the first that has it."""
    _, copies = _first_of_each([article.id for article in articles])
    return [Pair(i, j, "same id", 1.0) for i, j in copies]


def clusters(n: int, pairs: Iterable[Pair]) -> np.ndarray:
    """(n,) cluster number of each article; a cluster is linked by pairs, directly or through other articles."""
    ends = np.array([(pair.first, pair.second) for pair in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def near_pairs(sets: ShingleSets) -> list[Pair]:
    """Pairs with a Jaccard similarity of ``NEAR`` or more, found by MinHash (Broder 1997) and banding."""
    if not len(sets):
        return []
    digests = np.empty((len(sets), N_HASHES), np.uint32)
    for start in range(0, len(sets), DIGESTED_AT_ONCE):
        stop = min(start + DIGESTED_AT_ONCE, len(sets))
        values = sets.values[sets.starts[start] : sets.starts[stop]].astype(np.uint64)
        offsets = (sets.starts[start : stop + 1] - sets.starts[start]).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(values, offsets, N_HASHES, 0)
        digests[start:stop] = matrix.to_rows()
    linked: dict[tuple[int, int], Pair] = {}  # by group
    tried: set[tuple[int, int]] = set()
    for band in np.split(digests, BANDS, axis=1):
        alike: dict[bytes, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        rows = np.ascontiguousarray(band).view(f"V{4 * BAND_SIZE}")[:, 0].tolist()
        for i, (row, group) in enumerate(zip(rows, sets.groups.tolist(), strict=True)):
            alike[row][group].append(i)
        for members in alike.values():
            for groups in combinations(sorted(members), 2):
                for i, j in product(*(members[group] for group in groups)):
                    if groups in linked:
                        break
                    if (i, j) in tried:
                        continue
                    tried.add((i, j))
                    shared = common(sets[i], sets[j])
                    similarity = shared / (sets.sizes[i] + sets.sizes[j] - shared)
                    if similarity >= NEAR:
                        linked[groups] = Pair(i, j, "near", round(float(similarity), 4))
    return list(linked.values())


def contained_pairs(sets: ShingleSets) -> list[Pair]:
    """Pairs of a text and one that contains at least ``SNIPPET_SHARE`` of the shingles that are searched for.

    If too many of these shingles occur nowhere else, no text contains the first; this settles nearly all texts. For the
    rest, only the rarest shingles are looked up, enough of them that a text without half of them cannot contain it.
    Two groups are paired once, by the first text of the one that contains the content of the other.
    """
    chosen = np.flatnonzero(sets.values % SAMPLE == 0)
    owners = np.repeat(np.arange(len(sets), dtype=np.int32), sets.sizes)[chosen]
    keys = sets.values[chosen].astype(np.uint64) << np.uint64(32) | sets.groups[owners].astype(np.uint64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    fresh = changes(keys)
    begins = np.flatnonzero(changes(keys[fresh] >> np.uint64(32))).astype(np.int32)
    counts = np.diff(begins, append=np.int32(fresh.sum()))
    # For each sampled shingle, in the order of the texts: how many groups have it, and where they begin in ``holders``.
    number = np.empty(len(order), np.int32)
    number[order] = np.cumsum(changes(keys >> np.uint64(32)), dtype=np.int32) - 1
    frequency, first = counts[number], begins[number]
    holders = (keys[fresh] & np.uint64(0xFFFFFFFF)).astype(np.int32)

    probed = sets.probed[chosen]
    sampled = np.bincount(owners[probed], minlength=len(sets))
    unique = np.bincount(owners[probed & (frequency == 1)], minlength=len(sets))
    allowed = ((1 - SNIPPET_SHARE + SLACK) * sampled).astype(np.int64)
    budgets = allowed - unique
    starts = np.searchsorted(owners, np.arange(len(sets) + 1))
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(sets.groups.tolist()):
        members[group].append(i)
    pairs: list[Pair] = []
    # The texts of a group are searched for once, since what is searched for is the same.
    for i in (texts[0] for texts in members.values() if budgets[texts[0]] >= 0 and sampled[texts[0]]):
        mine = np.arange(starts[i], starts[i + 1])
        mine = mine[probed[mine] & (frequency[mine] > 1)]
        rarest = mine[np.argsort(frequency[mine], kind="stable")][: 2 * budgets[i] + 8]
        found = np.concatenate([holders[first[k] : first[k] + frequency[k]] for k in rarest])
        others, matches = np.unique(found, return_counts=True)
        for group in others[matches >= max(len(rarest) - budgets[i], 1)].tolist():
            if group != sets.groups[i]:
                pairs += islice(_containers(sets, i, members[group], allowed[i]), 1)
    return pairs


def same_title_pairs(sets: ShingleSets, titles: Sequence[str]) -> list[Pair]:
    """Pairs with the same title and at least ``SAME_TITLE_SHARE`` of the shorter one's shingles, title included."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, title in enumerate(titles):
        if len(title) >= SAME_TITLE:
            members[title].append(i)
    pairs = []
    for texts in members.values():
        for i, j in combinations(texts, 2) if len(texts) <= MAX_SAME_TITLE else ():
            short, long = sorted((i, j), key=sets.sizes.__getitem__)
            share = common(sets[short], sets[long]) / len(sets[short])
            if share >= SAME_TITLE_SHARE:
                pairs.append(Pair(short, long, "contained", round(float(share), 4)))
    return pairs


def _containers(sets: ShingleSets, i: int, texts: Iterable[int], allowed: int) -> Iterator[Pair]:
    """Pairs of text ``i`` and those of ``texts`` that contain it and lack at most ``allowed`` of its sample.

    The whole sample decides too, so that the result does not depend on which shingles are rare in this data.
    """
    probe = sets.probe(i)
    sample = probe[probe % SAMPLE == 0]
    for j in texts:
        if common(sample, sets[j]) >= len(sample) - allowed:
            share = common(probe, sets[j]) / len(probe)
            if share >= SNIPPET_SHARE:
                yield Pair(i, j, "contained", round(float(share), 4))


def _first_of_each(values: Sequence[Hashable | None]) -> tuple[list[int], list[tuple[int, int]]]:
    """Indices of the first of each value, and (first, repeat) indices of the repeats. None is never a repeat."""
    first: dict[Hashable, int] = {}
    places, copies = [], []
    for i, value in enumerate(values):
        if value is None or first.setdefault(value, i) == i:
            places.append(i)
        else:
            copies.append((first[value], i))
    return places, copies
