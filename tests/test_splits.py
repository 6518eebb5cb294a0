"""The hand-written splits keep what the README says of them."""

import unicodedata
from collections import Counter

import pytest
from conftest import SPLITS

from prefilter_common.articles import Article, load_articles
from prefilter_common.splits.duplicates import find_pairs

MINIMUM = {"train": 224, "val": 48, "test": 48}


@pytest.fixture(scope="module")
def splits():
    return {name: load_articles(SPLITS / f"{name}.jsonl", require_labels=True) for name in MINIMUM}


@pytest.mark.parametrize("name", MINIMUM)
def test_counts_balance_languages_lengths_and_hard_share(splits, name):
    articles = splits[name]
    assert len(articles) >= MINIMUM[name]
    assert sum(a.label for a in articles) / len(articles) == pytest.approx(0.47, abs=0.01)
    languages = Counter(a.language for a in articles)
    assert {"en", "nl", "de", "fr", "es", "it", "pt", "el", "hu", "sv", "zh"} <= set(languages)
    assert languages["en"] / len(articles) == pytest.approx(0.5, abs=0.05)
    snippets = sum(60 <= len(a.content) <= 250 for a in articles)
    longer = sum(300 <= len(a.content) <= 2000 for a in articles)
    assert snippets + longer == len(articles)
    assert snippets / len(articles) == pytest.approx(0.5, abs=0.05)
    for label in (0, 1):
        mine = [a for a in articles if a.label == label]
        assert sum(a.source == "handwritten_hard" for a in mine) / len(mine) > 1 / 3


def test_every_article_has_its_fields_and_obeys_the_score_rule(splits):
    for article in (a for articles in splits.values() for a in articles):
        assert article.title and article.content and article.language and not article.extra
        assert article.id.startswith(f"hw_{article.language}_")
        assert article.source in ("handwritten_plain", "handwritten_hard")
        assert article.commerce_score >= 7.0 if article.label == 1 else article.commerce_score < 3.0


def test_every_id_title_and_text_is_different_across_the_splits(splits):
    articles = [a for articles in splits.values() for a in articles]
    for values in ([a.id for a in articles], [plain(a.title) for a in articles], [plain(a.content) for a in articles]):
        assert len(set(values)) == len(values)
    # No shared passage either: no eight-word run stands in two articles.
    owner = {}
    for article in articles:
        words = plain(article.content).split()
        for i in range(len(words) - 7):
            assert owner.setdefault(tuple(words[i : i + 8]), article.id) == article.id


def plain(text):
    return " ".join("".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", text).casefold()).split())


def test_articles_without_a_letter_are_no_copies_of_each_other():
    articles = [Article("", "🔥🔥🔥"), Article("—", "…"), Article("", "🔥🔥🔥"), Article("a title", "and words")]
    assert [(pair.first, pair.second) for pair in find_pairs(articles)] == [(0, 2)]
