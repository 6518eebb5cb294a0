from dataclasses import replace

import numpy as np
import pytest
from conftest import SPLITS
from sklearn.metrics import f1_score

from prefilter_common.articles import Article, load_articles
from prefilter_common.evaluation.baseline import against_floor, baseline_scores
from prefilter_common.evaluation.leakage import integrity_section, shared_articles
from prefilter_common.evaluation.sections import Scored


def test_the_baseline_learns():
    train, test = (load_articles(SPLITS / f"{name}.jsonl") for name in ("train", "val"))
    scores = baseline_scores(train, test)
    assert f1_score([a.label for a in test], scores >= 0.5) > 0.7
    assert (scores == baseline_scores(train, test)).all() and scores.shape == (len(test),)


def test_one_article_more_beats_the_floor_but_not_beyond_chance():
    labels = np.repeat([0, 1], 30)
    right = labels == 1
    for n_errors, beats, beyond in ((0, False, False), (1, True, False), (15, True, True)):
        floor = right & (np.arange(60) < 60 - n_errors)
        found = against_floor(labels, right, floor, 1)
        assert (found["beats"], found["beyond_chance"]) == (beats, beyond)


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


def test_a_snippet_of_a_training_article_is_found():
    """Title and first 125 characters, as a feed delivers them."""
    train = [a for a in load_articles(SPLITS / "train.jsonl") if len(a.content) > 400][:40]
    snippets = [replace(a, id=f"snippet-{i}", content=a.content[:125]) for i, a in enumerate(train)]
    found = shared_articles(train, snippets)
    assert len(found) == len(train) >= 30
    assert all(row["train_id"] == a.id and row["similarity"] >= 0.5 for row, a in zip(found, train, strict=True))
    assert {row["kind"] for row in found} >= {"contained"}
    # and the other way round, a whole article of which the training set has the snippet
    assert len(shared_articles(snippets, train)) == len(train)


def test_the_texts_of_the_splits_contain_no_parts_of_each_other_by_chance():
    splits = [load_articles(SPLITS / f"{name}.jsonl") for name in ("train", "val", "test")]
    assert shared_articles(splits[0], splits[1]) == shared_articles(splits[0], splits[2]) == []


def test_duplicate_ids_drop_only_the_duplicate():
    train = load_articles(SPLITS / "train.jsonl")
    test = load_articles(SPLITS / "test.jsonl")
    articles = [replace(train[3], id="same"), replace(test[0], id="same"), *test[1:]]
    scores = np.array([a.label for a in articles], float)
    model = Scored(scores, np.ones(len(articles), int), 64, 1.0, {"default": 0.5})
    section = integrity_section(train, articles, {"m": model}, None)
    assert [row["position"] for row in section["shared"]] == [0]
    assert np.sum(section["models"]["m"]["without"]["confusion_matrix"]) == len(articles) - 1


def test_validation_articles_are_checked_against_both_and_short_texts_are_counted():
    train, test = load_articles(SPLITS / "train.jsonl"), load_articles(SPLITS / "test.jsonl")
    section = integrity_section(
        train, [*test, Article("Short", "", 0)], {}, [replace(test[4], id="v1"), replace(train[4], id="v2")]
    )
    assert [[row["id"] for row in rows] for rows in section["others"].values()] == [["v1"], ["v2"]]
    assert section["n_too_short"] == 1 and "paraphrase" in section["not_found"]
