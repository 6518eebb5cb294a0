"""The sections of the audit that need no model: contents, labels, duplicates and truncation."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefilter_common.articles import LABEL_NAMES, Article
from prefilter_common.errors import InputError
from prefilter_common.language import languages
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.audit.rows import (
    AcrossSplits,
    Duplicates,
    Matches,
    Reading,
    ScoreConflicts,
    ScoredArticle,
    ShownArticle,
    SplitDescription,
    SplitReading,
    WithinSplit,
)
from prefilter_common.splits.cleaning import ScoreRule, has_own_id
from prefilter_common.splits.duplicates import Pair, clusters, find_pairs, same_id_pairs
from prefilter_common.splits.grouping import LENGTH_NAMES, length_name

MAX_EXAMPLES = 20
MAX_SHOWN_TEXT = 600  # characters shown per article
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

    def shown(self, place: int) -> ShownArticle:
        """What a report shows of one article."""
        article = self.articles[place]
        return {
            "split": self.names[place],
            "id": article.id,
            "title": article.title[:200],
            "content": article.content[:MAX_SHOWN_TEXT],
            "language": article.language,
            "source": article.source,
            "label": article.label,
            "characters": article.characters,
        }


def gather(splits: Mapping[str, Sequence[Article]]) -> Whole:
    """All splits as one, with their duplicates."""
    articles = [article for part in splits.values() for article in part]
    names = [name for name, part in splits.items() for _ in part]
    named = [i for i, article in enumerate(articles) if has_own_id(article)]
    same = same_id_pairs([articles[i] for i in named])
    pairs = find_pairs(articles) + [Pair(named[p.first], named[p.second], SAME, p.similarity) for p in same]
    return Whole(articles, names, pairs, clusters(len(articles), pairs))


def describe_split(articles: Sequence[Article]) -> SplitDescription:
    """Counts of labels (none for traffic), languages, lengths and sources."""
    labels = Counter(LABEL_NAMES[a.label] for a in articles if a.label is not None)
    lengths = np.array([a.characters for a in articles])
    lengths_named = Counter(map(length_name, articles))
    return {
        "articles": len(articles),
        "labels": {name: labels[name] for name in LABEL_NAMES},
        "languages": dict(Counter(languages(articles)).most_common()),
        "lengths": {name: lengths_named[name] for name in LENGTH_NAMES},
        "characters": {
            f"p{round(100 * q)}": int(value)
            for q, value in zip(QUANTILES, np.quantile(lengths, QUANTILES), strict=True)
        },
        "sources": len({a.source for a in articles if a.source}),
    }


def labels_against_scores(whole: Whole, rule: ScoreRule) -> ScoreConflicts:
    """How many labels contradict the score rule, with examples."""
    scored = [i for i, a in enumerate(whole.articles) if a.commerce_score is not None]
    said = {i: rule.label(whole.articles[i].commerce_score) for i in scored}
    against = [i for i in scored if said[i] not in (None, whole.articles[i].label)]
    shown: list[ScoredArticle] = [
        {**whole.shown(i), "score": whole.articles[i].commerce_score} for i in against[:MAX_EXAMPLES]
    ]
    middle = sum(said[i] is None for i in scored)
    return {"scored": len(scored), "against": len(against), "in_the_middle": middle, "examples": shown}


def duplicates(whole: Whole) -> Duplicates:
    """How many articles share their text with another in the same split, and in another split, with examples.

    Each article that repeats another is counted once, by the strongest of ``KINDS`` that links it: across two splits
    those of the second, within a split all but the first of a cluster.
    """
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, group in enumerate(whole.clusters.tolist()):
        members[group][whole.names[i]].append(i)
    partners: dict[int, list[Pair]] = defaultdict(list)
    for pair in whole.pairs:
        partners[pair.first].append(pair)
        partners[pair.second].append(pair)
    present = [name for name in NAMES if name in whole.names]
    within: dict[str, WithinSplit] = {}
    for name in present:
        groups = [group[name] for group in members.values() if len(group[name]) > 1]
        within[name] = {
            "clusters": len(groups),
            "articles": sum(map(len, groups)),
            "largest": max(map(len, groups), default=0),
            # The first article of each cluster is not a duplicate, the others are.
            **_matches(whole, partners, [(i, name, group[0]) for group in groups for i in group[1:]]),
        }
    across: list[AcrossSplits] = []
    for first, second in SPLIT_PAIRS:
        if first in present and second in present:
            both = [group for group in members.values() if group[first] and group[second]]
            matches = _matches(whole, partners, [(i, first, group[first][0]) for group in both for i in group[second]])
            across.append({"splits": [first, second], "articles": sum(matches["kinds"].values()), **matches})
    torn = [g for g in members.values() if len({whole.articles[i].label for part in g.values() for i in part}) > 1]
    contradicting = [[whole.shown(i) for part in group.values() for i in part][:4] for group in torn]
    return {"within": within, "across": across, "both_labels": len(torn), "contradicting": contradicting[:MAX_EXAMPLES]}


def _matches(whole: Whole, partners: Mapping[int, Sequence[Pair]], wanted: Sequence[tuple[int, str, int]]) -> Matches:
    """Counts by kind, and examples, of articles and the strongest match of each.

    Args:
        partners: article -> the pairs that it is in.
        wanted: an article, the split to match it in, and an article of its cluster there in case none matches directly.
    """
    found = []
    for i, name, linked in wanted:
        others = {pair: pair.first if pair.second == i else pair.second for pair in partners[i]}
        direct = [pair for pair, other in others.items() if whole.names[other] == name]
        best = min(direct, key=lambda p: (KINDS.index(p.kind), -p.similarity), default=Pair(linked, i, LINKED, 0.0))
        found.append((best, i, others.get(best, linked)))
    found.sort(key=lambda match: (KINDS.index(match[0].kind), -match[0].similarity))
    counts = Counter(best.kind for best, _, _ in found)
    return {
        "kinds": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "examples": [
            {"kind": best.kind, "similarity": best.similarity, "article": whole.shown(i), "other": whole.shown(other)}
            for best, i, other in found[:MAX_EXAMPLES]
        ],
    }


def reading(splits: Mapping[str, Sequence[Article]], model: str | None) -> Reading:
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
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{directory}: contains no tokenizer.json; pass a model directory")
    max_length = (read_contract(directory) or Contract()).max_length
    try:
        tokenizer = ArticleTokenizer(Tokenizer.from_file(str(path)), pad_token_id=0)
    except Exception as error:  # the library has no class of its own
        raise InputError(f"{path}: cannot be read ({error}); pass a model directory") from None
    shares: dict[str, SplitReading] = {}
    for name, articles in splits.items():
        lengths = np.array([len(ids) for ids in tokenizer.encode(articles)])
        shares[name] = {"share_cut": float((lengths > max_length).mean()), "median_tokens": int(np.median(lengths))}
    return {"model": model or PACKAGED_ENCODER, "max_length": max_length, "splits": shares}
