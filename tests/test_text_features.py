from dataclasses import replace

import pytest
from conftest import SPLITS
from sklearn.metrics import f1_score

from prefilter_common.articles import Article, load_articles
from prefilter_common.text_features import baseline_scores, shared_articles


def test_the_baseline_learns():
    train, test = (load_articles(SPLITS / f"{name}.jsonl") for name in ("train", "val"))
    scores = baseline_scores(train, test)
    assert f1_score([a.label for a in test], scores >= 0.5) > 0.7
    assert (scores == baseline_scores(train, test)).all() and scores.shape == (len(test),)


def test_exact_and_near_duplicates_are_named_and_others_are_not():
    train = load_articles(SPLITS / "train.jsonl")
    test = load_articles(SPLITS / "test.jsonl")
    assert shared_articles(train, test) == []
    exact = replace(train[5], id="exact", title=train[5].title.upper())
    longest = max(train, key=lambda a: len(a.content))
    near = replace(longest, id="near", content=longest.content.replace(" a ", " one "), label=1 - longest.label)
    found = shared_articles(train, [*test, exact, near, Article("", "")])
    assert [(row["id"], row["kind"], row["train_id"]) for row in found] == [
        ("exact", "exact", train[5].id), ("near", "near", longest.id),
    ]  # fmt: skip
    assert found[0]["similarity"] == 1 and 0.8 <= found[1]["similarity"] <= 1
    assert found[0]["same_label"] and not found[1]["same_label"]


def test_the_similarity_is_the_cosine_of_the_sets():
    # each word is its own sequence, " abc ": 9 of 10 in common
    words = [f"{chr(97 + i)}bc" for i in range(11)]
    a, b = Article("", " ".join(words[:10]), id="a"), Article("", " ".join(words[1:]), id="b")
    (row,) = shared_articles([a], [b])
    assert row["similarity"] == pytest.approx(0.9) and row["kind"] == "near"
