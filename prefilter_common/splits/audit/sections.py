"""The sections of the audit that need no model: contents, labels, duplicates and truncation."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefilter_common.articles import LABEL_NAMES, Article
from prefilter_common.errors import InputError
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.cleaning import ScoreRule
from prefilter_common.splits.duplicates import Pair, clusters, find_pairs, same_id_pairs
from prefilter_common.splits.manifest import LENGTH_NAMES, UNKNOWN, length_name

MAX_EXAMPLES = 20
MAX_TEXT = 600  # characters shown per article
QUANTILES = (0.1, 0.5, 0.9)
SAME, LINKED = "same id", "linked"
# Strongest first. Linked articles share their text only through other articles.
KINDS = ("exact", "near", "contained", SAME, LINKED)
# The exit code depends on the first pair.
SPLIT_PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))


@dataclass(frozen=True)
class Whole:
    """The n articles of all splits, with the ``names`` (n,) of their splits, duplicate pairs, and ``clusters`` (n,)."""

    articles: Sequence[Article]
    names: Sequence[str]
    pairs: Sequence[Pair]
    clusters: np.ndarray

    def shown(self, place: int) -> dict[str, Any]:
        """What a report shows of one article."""
        article = self.articles[place]
        return {
            "split": self.names[place],
            "id": article.id,
            "title": article.title[:200],
            "content": article.content[:MAX_TEXT],
            "language": article.language,
            "source": article.source,
            "label": article.label,
            "characters": len(article.title) + len(article.content),
        }


def gather(splits: Mapping[str, Sequence[Article]]) -> Whole:
    """All splits as one, with their duplicates."""
    articles = [article for part in splits.values() for article in part]
    names = [name for name, part in splits.items() for _ in part]
    # An id that was made up from a line number identifies nothing.
    named = [i for i, article in enumerate(articles) if not (article.id or "line-").startswith("line-")]
    same = same_id_pairs([articles[i] for i in named])
    pairs = find_pairs(articles) + [Pair(named[p.first], named[p.second], SAME, p.similarity) for p in same]
    return Whole(articles, names, pairs, clusters(len(articles), pairs))


def describe_split(articles: Sequence[Article]) -> dict[str, Any]:
    """Counts of labels (none for traffic), languages, lengths and sources."""
    labels = Counter(LABEL_NAMES[a.label] for a in articles if a.label is not None)
    lengths = np.array([len(a.title) + len(a.content) for a in articles])
    lengths_named = Counter(map(length_name, articles))
    return {
        "articles": len(articles),
        "labels": {name: labels[name] for name in LABEL_NAMES},
        "languages": dict(Counter(a.language or UNKNOWN for a in articles).most_common()),
        "lengths": {name: lengths_named[name] for name in LENGTH_NAMES},
        "characters": {
            f"p{round(100 * q)}": int(value)
            for q, value in zip(QUANTILES, np.quantile(lengths, QUANTILES), strict=True)
        },
        "sources": len({a.source for a in articles if a.source}),
    }


def labels_against_scores(whole: Whole, rule: ScoreRule) -> dict[str, Any]:
    """How many labels contradict the score rule, with examples."""
    scored = [i for i, a in enumerate(whole.articles) if a.commerce_score is not None]
    said = {i: rule.label(whole.articles[i].commerce_score) for i in scored}
    against = [i for i in scored if said[i] not in (None, whole.articles[i].label)]
    shown = [{**whole.shown(i), "score": whole.articles[i].commerce_score} for i in against[:MAX_EXAMPLES]]
    middle = sum(said[i] is None for i in scored)
    return {"scored": len(scored), "against": len(against), "in_the_middle": middle, "examples": shown}


def duplicates(whole: Whole) -> dict[str, Any]:
    """How many articles share their text with another in the same split, and in another split, with examples.

    Across two splits, each article of the second is counted once, by the strongest of ``KINDS`` that links it.
    """
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, group in enumerate(whole.clusters.tolist()):
        members[group][whole.names[i]].append(i)
    links = {frozenset((p.first, p.second)): p for p in sorted(whole.pairs, key=lambda p: -KINDS.index(p.kind))}
    present = [name for name in NAMES if name in whole.names]
    within = {}
    for name in present:
        sizes = [len(group[name]) for group in members.values() if len(group[name]) > 1]
        within[name] = {"clusters": len(sizes), "articles": sum(sizes), "largest": max(sizes, default=0)}
    both = [g for g in members.values() if len({whole.articles[i].label for part in g.values() for i in part}) > 1]
    across = [_across(whole, members, links, a, b) for a, b in SPLIT_PAIRS if a in present and b in present]
    contradicting = [[whole.shown(i) for part in group.values() for i in part][:4] for group in both]
    return {"within": within, "across": across, "both_labels": len(both), "contradicting": contradicting[:MAX_EXAMPLES]}


def _across(whole: Whole, members: Mapping, links: Mapping, first: str, second: str) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    examples = []
    for group in members.values():
        for i in group.get(second, ()) if group.get(first) else ():
            found = [links[key] for j in group[first] if (key := frozenset((i, j))) in links]
            best = min(found, key=lambda p: KINDS.index(p.kind), default=Pair(group[first][0], i, LINKED, 0.0))
            counts[best.kind] += 1
            other = best.first if best.second == i else best.second
            examples.append((best, {"kind": best.kind, "similarity": best.similarity,
                                    "article": whole.shown(i), "other": whole.shown(other)}))  # fmt: skip
    examples.sort(key=lambda example: (KINDS.index(example[0].kind), -example[0].similarity))
    return {
        "splits": [first, second],
        "articles": counts.total(),
        "kinds": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "examples": [shown for _, shown in examples[:MAX_EXAMPLES]],
    }


def reading(splits: Mapping[str, Sequence[Article]], model: str | None) -> dict[str, Any]:
    """The share of articles in each split that a model truncates, measured with its own tokenizer.

    Raises InputError if ``model`` is given and cannot be read; the packaged encoder may be missing.
    """
    from tokenizers import Tokenizer

    from prefilter_common.models.contract import Contract
    from prefilter_common.models.directory import read_contract
    from prefilter_common.models.packaged_encoder import PACKAGED_ENCODER, packaged_encoder
    from prefilter_common.scoring.tokenization import ArticleTokenizer

    try:
        directory = packaged_encoder() if model in (None, PACKAGED_ENCODER) else Path(model)
    except InputError as error:
        if model is not None:
            raise
        return {"model": None, "max_length": None, "splits": {}, "reason": str(error)}
    if not (directory / "tokenizer.json").is_file():
        raise InputError(f"{directory}: contains no tokenizer.json; pass a model directory")
    max_length = (read_contract(directory) or Contract()).max_length
    tokenizer = ArticleTokenizer(Tokenizer.from_file(str(directory / "tokenizer.json")), pad_token_id=0)
    shares = {}
    for name, articles in splits.items():
        lengths = np.array([len(ids) for ids in tokenizer.encode(articles)])
        shares[name] = {"share_cut": float((lengths > max_length).mean()), "median_tokens": int(np.median(lengths))}
    return {"model": model or PACKAGED_ENCODER, "max_length": max_length, "splits": shares}
