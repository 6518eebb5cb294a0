"""Building splits: every row counts once, duplicates stay together, and articles keep their earlier split."""

import json
import random
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SPLITS, call, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefilter_common.articles import Article, load_articles
from prefilter_common.files import BYTE_ORDER_MARK
from prefilter_common.splits import __main__ as splits_command
from prefilter_common.splits.assignment import NONE, TEST, TRAIN, VAL, Population, assign, quotas
from prefilter_common.splits.cleaning import clean_text, read_rows, to_record
from prefilter_common.splits.duplicates import clusters, find_pairs, same_id_pairs
from prefilter_common.splits.grouping import divide, length_name, published
from prefilter_common.splits.manifest import manifest_state

NAMES = ("train", "val", "test")
REGISTERS = ROOT.parent / "shared" / "data" / "registers"
WORDS = ["price", "shop", "minister", "storm", "goal", "court", "phone", "river", "music", "train", "bread", "glass"]


def scored(n, seed=0, **fields):
    """Articles of random words, with two labels, four languages and all lengths."""
    rng = random.Random(seed)
    return [
        {
            "id": f"{seed}-{i}",
            "title": " ".join(rng.choices(WORDS, k=4)) + f" {i}",
            "content": " ".join(f"{rng.choice(WORDS)}{rng.randrange(900)}" for _ in range(rng.choice([8, 40, 170]))),
            "commerce_score": 9.0 if i % 2 else 1.0,
            "language": rng.choice(["en", "el", "es", "hu"]),
            "source": f"source{rng.randrange(30)}",
            **fields,
        }
        for i in range(n)
    ]


def build(path, rows, *flags, expect=0):
    """Run ``build`` on these rows; returns the manifest."""
    path.mkdir(parents=True, exist_ok=True)
    write_jsonl(path / "scored.jsonl", rows)
    assert call(splits_command, ["build", path / "scored.jsonl", "--output", path / "out", *flags]) == expect
    return json.loads((path / "out" / "manifest.json").read_text(encoding="utf-8")) if expect == 0 else None


def assigned(folder):
    """Id -> split."""
    return {a.id: name for name in NAMES for a in load_articles(folder / f"{name}.jsonl")}


def test_sizes_and_balance_of_the_splits(tmp_path):
    rows = scored(1891)
    for i, row in enumerate(rows):
        row["commerce_score"] = 8.0 if i < 889 else 2.0
    middle = scored(109, seed=1, commerce_score=5.0)
    manifest = build(tmp_path, rows + middle, "--keep-middle", tmp_path / "middle.jsonl")
    assert manifest["input_rows"] == 2000
    assert manifest["discarded_rows"] == {"score in the middle": 109}
    labels = {name: part["labels"] for name, part in manifest["splits"].items()}
    assert labels == {
        "train": {"journalism": 801, "commerce": 711},
        "val": {"journalism": 100, "commerce": 89},
        "test": {"journalism": 101, "commerce": 89},
    }
    assert {part["rows"] for part in manifest["splits"].values()} == {1512, 189, 190}
    assert [a.commerce_score for a in load_articles(tmp_path / "middle.jsonl")] == [5.0] * 109


def test_languages_and_lengths_are_spread_evenly():
    articles = [Article.from_record({**row, "label": i % 2}) for i, row in enumerate(scored(600))]
    splits = divide(articles, [], 0).splits
    cells = [(a.label, a.language, length_name(a)) for a in articles]
    tested = Counter(cell for cell, split in zip(cells, splits, strict=True) if split == TEST)
    assert len(set(cells)) == 24
    assert all(abs(tested[cell] - n / 10) < 1 for cell, n in Counter(cells).items())


@pytest.mark.parametrize(("score", "label"), [(7.0, 1), (6.999, None), (3.0, None), (2.999, 0), (10, 1), (0, 0)])
def test_the_score_rule_at_its_thresholds(tmp_path, score, label):
    row = scored(1, seed=9, commerce_score=score)[0]
    build(tmp_path, [row, *scored(40)])
    found = [a.label for name in NAMES for a in load_articles(tmp_path / "out" / f"{name}.jsonl") if a.id == row["id"]]
    assert found == ([] if label is None else [label])


def test_every_row_is_written_or_reported(tmp_path):
    bad = '{"title": "no end\n["list"]\n{"title": "", "content": " "}\n{"title": "", "content": "b", "label": 2}\n'
    noted = [
        {"id": "none", "title": "No score", "content": "at all"},
        {"id": "odd", "title": "!!!", "content": "…", "commerce_score": 9},
        {**scored(40)[3]},  # a second time
        {"id": "moji", "title": "It‚Äôs here", "content": "A dash ‚Äî repaired", "commerce_score": 9},
        {"id": "html", "title": "Deal", "content": "<p>Buy <b>now</b> &amp; save</p>", "commerce_score": 9},
        {"id": "label", "title": "Labelled otherwise", "content": "by somebody", "label": 0, "commerce_score": 9},
    ]
    write_jsonl(tmp_path / "a.jsonl", scored(40) + noted)
    (tmp_path / "b.jsonl").write_text(bad, encoding="utf-8")
    assert (
        call(splits_command, ["build", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--output", tmp_path / "out"]) == 0
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["discarded_rows"] == {"invalid line": 3, "missing text": 2, "no score": 1, "repeated row": 1}
    assert manifest["input_rows"] == 50 == manifest["written_rows"] + sum(manifest["discarded_rows"].values())
    assert manifest["repaired_rows"] == {"html": 1, "label": 1, "mojibake": 1}
    lines = (tmp_path / "out" / "cleaning.jsonl").read_text(encoding="utf-8").splitlines()
    report = [json.loads(line) for line in lines]
    assert Counter(row.get("discarded") for row in report) == {**manifest["discarded_rows"], None: 3}
    assert {(row["file"], row["line"]) for row in report if row["id"] == "html"} == {(str(tmp_path / "a.jsonl"), 45)}
    texts = {a.id: a for name in NAMES for a in load_articles(tmp_path / "out" / f"{name}.jsonl")}
    assert texts["moji"].title == "It’s here" and texts["moji"].content == "A dash — repaired"
    assert texts["html"].content == "Buy now & save"
    assert texts["label"].label == 1


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("if p<q and r>s", "if p<q and r>s"),
        ("x <b and c> d, 3 < 4", "x <b and c> d, 3 < 4"),
        ("中文，“全角”！", "中文，“全角”！"),
        ("a?x=1&copy=2", "a?x=1&copy=2"),
        ("one\n\ntwo", "one\n\ntwo"),
        ("&lt;p&gt;twice&lt;/p&gt; escaped", "twice\n\nescaped"),
        ("<script>var a=1;</script>text", "text"),
        ("1 < 2 <br/>3 &amp;amp; 4", "1 < 2\n3 & 4"),
        ("fÃ¶r", "för"),
    ],
)
def test_only_broken_text_is_changed(text, cleaned):
    assert clean_text(text)[0] == cleaned


def test_the_files_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = scored(200)
    first = build(tmp_path / "a", rows)
    second = build(tmp_path / "b", random.Random(1).sample(rows, len(rows)))
    third = build(tmp_path / "c", rows, "--seed", "7")
    digests = [[part["sha256"] for part in manifest["splits"].values()] for manifest in (first, second, third)]
    assert digests[0] == digests[1] != digests[2]


def test_articles_keep_their_split_when_rows_are_added_or_edited(tmp_path):
    rows = scored(300)
    build(tmp_path, rows)
    before = assigned(tmp_path / "out")
    edited = {**rows[5], "content": rows[5]["content"] + " updated"}
    manifest = build(tmp_path, [*scored(300, seed=2), *rows[:5], edited, *rows[6:]], "--overwrite")
    after = assigned(tmp_path / "out")
    assert {key: after[key] for key in before} == before
    assert {name: manifest["splits"][name]["rows"] for name in NAMES} == {"train": 480, "val": 60, "test": 60}
    assert manifest["previous"] == {"articles": 300, "kept": 299, "not_in_input": 1}


def test_a_build_keeps_the_labels_that_merge_has_corrected(tmp_path):
    rows = scored(60)
    build(tmp_path, rows)
    wrong = load_articles(tmp_path / "out" / "train.jsonl")[3]
    answer = {"title": wrong.title, "content": wrong.content, "label": 1 - wrong.label}
    queue = write_jsonl(tmp_path / "queue.jsonl", [answer])
    assert call(splits_command, ["merge", queue, "--splits", tmp_path / "out", "--overwrite"]) == 0
    for _ in range(2):
        manifest = build(tmp_path, rows, "--overwrite")
        labels = {article.id: article.label for article in load_articles(tmp_path / "out" / "train.jsonl")}
        assert labels[wrong.id] == answer["label"] and manifest["repaired_rows"] == {"label": 1}
    for score in (5.0, None, 9.0 if answer["label"] else 1.0, 1.0 if answer["label"] else 9.0):
        own = [{**row, "commerce_score": score} if row["id"] == wrong.id else row for row in rows]
        build(tmp_path, own, "--overwrite")
        assert {a.id: a.label for a in load_articles(tmp_path / "out" / "train.jsonl")}[wrong.id] == answer["label"]


def test_a_build_keeps_the_labels_of_scored_articles_that_were_merged(tmp_path):
    """Those of --keep-middle, whose score decides nothing, and one whose score said something else."""
    rows = scored(60)
    middle = [{"id": f"m{i}", "title": f"Middle {i}", "content": f"of its own kind {i}", "commerce_score": s}
              for i, s in enumerate((5.0, 6.5, 9.0))]  # fmt: skip
    build(tmp_path, rows)
    queue = write_jsonl(tmp_path / "queue.jsonl", [{**row, "label": 0} for row in middle])
    assert call(splits_command, ["merge", queue, "--splits", tmp_path / "out", "--overwrite"]) == 0
    for _ in range(2):
        build(tmp_path, [*rows, *middle], "--overwrite")
        labels = {article.id: article.label for article in load_articles(tmp_path / "out" / "train.jsonl")}
        assert [labels.get(row["id"]) for row in middle] == [0, 0, 0]


@pytest.mark.parametrize(
    ("flags", "kept_out", "allowed"),
    [
        (["--group-by", "source"], {"source": "one of val"}, {"source": "new.example"}),
        (["--group-by", "source"], {"source": "one of test"}, {"source": "new.example"}),
        (["--test-after", "2026-01-18"], {"date": "2026-01-19"}, {"date": "2026-01-18"}),
    ],
)
def test_merge_adds_nothing_that_the_build_keeps_out_of_train(tmp_path, flags, kept_out, allowed):
    rows = [{**row, "date": f"2026-01-{i % 20 + 1:02}"} for i, row in enumerate(scored(240))]
    build(tmp_path, rows, *flags)
    if "source" in kept_out:
        name = kept_out["source"].removeprefix("one of ")
        kept_out = {"source": load_articles(tmp_path / "out" / f"{name}.jsonl")[0].source}
    answers = [{"title": f"Answer {i}", "content": f"a text of its own {i}", "label": 1, **more}
               for i, more in enumerate((kept_out, allowed, {}))]  # fmt: skip
    queue = write_jsonl(tmp_path / "queue.jsonl", answers)
    assert call(splits_command, ["merge", queue, "--splits", tmp_path / "out", "--overwrite"]) == 0
    titles = {article.title for article in load_articles(tmp_path / "out" / "train.jsonl")}
    assert titles >= {"Answer 1", "Answer 2"} and "Answer 0" not in titles
    record = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["merges"][-1]
    assert record["discarded_rows"] == {"kept out of train by the build": 1}
    build(tmp_path, [*rows, *answers[1:]], "--overwrite", *flags)  # and so it can be continued


def test_a_new_article_that_links_two_splits_is_dropped_and_moves_nothing(tmp_path):
    rows = scored(200)
    build(tmp_path, rows)
    before = assigned(tmp_path / "out")
    content = {row["id"]: row["content"] for row in rows if len(row["content"]) > 200}
    one = next(key for key in content if before[key] == "train")
    two = next(key for key in content if before[key] == "test")
    link = {"id": "link", "title": "Both", "content": f"{content[one]} {content[two]}", "commerce_score": 9}
    manifest = build(tmp_path, [link, *rows], "--overwrite")
    assert assigned(tmp_path / "out") == before
    assert manifest["discarded_rows"] == {"same text as articles in different splits": 1}


def test_whole_sources_or_the_newest_articles_are_held_out(tmp_path):
    rows = scored(600)
    build(tmp_path / "a", rows, "--group-by", "source")
    sources = {name: {a.source for a in load_articles(tmp_path / "a/out" / f"{name}.jsonl")} for name in NAMES}
    assert not sources["train"] & sources["test"] and not sources["train"] & sources["val"]
    assert len(sources["test"]) > 1
    for i, row in enumerate(rows):
        row["published_date"] = f"2026-01-{i % 20 + 1:02}T10:00:00"
    build(tmp_path / "b", rows, "--test-after", "2026-01-18")
    dates = {name: {a.extra["published_date"][:10] for a in load_articles(tmp_path / "b/out" / f"{name}.jsonl")}
             for name in NAMES}  # fmt: skip
    assert dates["test"] == {"2026-01-19", "2026-01-20"}
    assert max(dates["train"] | dates["val"]) == "2026-01-18"
    build(tmp_path / "c", scored(60), "--test-after", "2026-01-18", expect=2)


def test_one_source_is_not_the_whole_test_set(tmp_path):
    """The largest goes to train, after which val and test lack as many articles as the next two have."""
    sources = ["large"] * 60 + ["second"] * 20 + ["third"] * 20 + [f"small{i // 4}" for i in range(100)]
    rows = [{**row, "source": source} for row, source in zip(scored(200), sources, strict=True)]
    build(tmp_path, rows, "--group-by", "source")
    for name in ("val", "test"):
        tested = Counter(article.source for article in load_articles(tmp_path / "out" / f"{name}.jsonl"))
        assert tested.total() == 20 and max(tested.values()) <= 20 / 3


@pytest.mark.parametrize("text", ["Mon, 1 Jan 99999999999999999999 0:0 +0000", "Mon, 1 Jan 2026 0:0 +99999999999999"])
def test_a_date_that_no_calendar_has_is_none(text):
    assert published(Article("t", "c", extra={"date": text})) is None


def test_articles_without_a_readable_date_are_counted_and_not_tested_on(tmp_path, capsys):
    """The dates of an RSS feed are read."""
    rows = [{**row, "pubDate": f"Mon, {19 if i % 10 < 2 else 12} Jan 2026 10:00:00 GMT"}
            for i, row in enumerate(scored(100))]  # fmt: skip
    for row in rows[:5]:
        row["pubDate"] = "yesterday"
    build(tmp_path, rows, "--test-after", "2026-01-18")
    splits = assigned(tmp_path / "out")
    assert {row["id"] for row in rows if splits[row["id"]] == "test"} == {
        row["id"] for row in rows if row["pubDate"].startswith("Mon, 19")
    }
    words = "--test-after: 5 of 100 articles have no readable date, and are in train or val"
    assert words in capsys.readouterr().err


def test_a_test_set_of_all_days_is_not_continued_with_the_newest_articles_alone(tmp_path, capsys):
    rows = [{**row, "date": f"2026-01-{i % 18 + 1:02}"} for i, row in enumerate(scored(300))]
    build(tmp_path, rows)
    newer = [{**row, "date": "2026-02-05"} for row in scored(60, seed=1)]
    build(tmp_path, [*rows, *newer], "--overwrite", "--test-after", "2026-01-20", expect=2)
    words = "30 articles that were not published after 2026-01-20 are in test of the previous splits"
    assert words in capsys.readouterr().err


def test_a_refused_build_replaces_and_deletes_nothing(tmp_path, capsys):
    build(tmp_path, scored(60))
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"train.jsonl", "val.jsonl", "test.jsonl", "manifest.json", "cleaning.jsonl"}
    build(tmp_path, scored(80), expect=2)
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    build(tmp_path, scored(80), "--overwrite", expect=2)
    assert "notes.txt" in capsys.readouterr().err
    (tmp_path / "out" / "notes.txt").unlink()
    build(tmp_path, [row for row in scored(80) if row["commerce_score"] > 5], "--overwrite", expect=2)
    assert "no journalism" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_manifest_reveals_changed_files(tmp_path):
    assert manifest_state(SPLITS) is None
    build(tmp_path, scored(60))
    assert manifest_state(tmp_path / "out")["differs"] == []
    with (tmp_path / "out" / "val.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert manifest_state(tmp_path / "out")["differs"] == ["val"]


def test_of_articles_in_two_previous_splits_the_one_in_test_is_kept(tmp_path):
    rows = scored(60)
    build(tmp_path, rows)
    tested = load_articles(tmp_path / "out" / "test.jsonl")[:2]
    same, louder = ({**to_record(a), "id": f"in train-{a.id}"} for a in tested)
    louder["content"] = louder["content"].upper()
    with (tmp_path / "out" / "train.jsonl").open("a", encoding="utf-8") as train:
        train.writelines(json.dumps(row) + "\n" for row in (same, louder))
    manifest = build(tmp_path, [*rows, same, louder], "--overwrite")
    after = assigned(tmp_path / "out")
    assert [after[a.id] for a in tested] == ["test", "test"] and after[same["id"]] == "test"
    assert louder["id"] not in after
    assert manifest["discarded_rows"] == {"same text as articles in different splits": 1}


def test_previous_splits_need_no_manifest(tmp_path):
    rows = [json.loads(line) for name in NAMES for line in (SPLITS / f"{name}.jsonl").open(encoding="utf-8")]
    build(tmp_path, rows + scored(100), "--previous", SPLITS)
    before, after = assigned(SPLITS), assigned(tmp_path / "out")
    assert {key: after[key] for key in before} == before


# --- near duplicates -------------------------------------------------------------------------------------------------


def near_duplicate(article, rng):
    """The article with a different title, one sentence removed, and different punctuation and case."""
    sentences = [part for part in article.content.replace("!", ".").split(".") if part.strip()]
    if len(sentences) > 2:
        sentences.pop(rng.randrange(len(sentences)))
    content = " –".join(sentences).replace(",", ";")
    content = content.upper() if rng.random() < 0.5 else content.lower()
    return Article(f"Updated: {article.title[::-1]}", content, article.label, f"near-{article.id}", article.language)


def planted(articles, seed):
    """30 near duplicates, 20 snippets and 20 snippets with the footer of a site, and the index of each original."""
    rng = random.Random(seed)
    # A shorter article that loses a sentence loses half of its text, and is no longer a near duplicate.
    places = rng.sample([i for i, a in enumerate(articles) if len(a.content) > 250], 70)
    # A snippet with a footer is found only under a title that is long enough to prove something.
    places.sort(key=lambda i: len(articles[i].title))
    copies = [near_duplicate(articles[i], rng) for i in places[:30]]
    for k, i in enumerate(places[30:]):
        a = articles[i]
        footer = f" […] The post {a.title} appeared first on Example News." if k >= 20 else ""
        copies.append(Article(a.title, a.content[:125] + footer, a.label, f"cut-{a.id}", a.language))
    return copies, places


def found_and_apart(articles, seed):
    """How many planted copies are found, and how many of all are not in the split of their original."""
    copies, places = planted(articles, seed)
    everyone = [*articles, *copies]
    groups = clusters(len(everyone), find_pairs(everyone))
    splits = divide(everyone, [], seed).splits
    ends = [(place, len(articles) + i) for i, place in enumerate(places)]
    found = sum(groups[a] == groups[b] for a, b in ends)
    return found, sum(splits[a] != splits[b] for a, b in ends)


@pytest.mark.parametrize("seed", range(3))
def test_planted_duplicates_and_snippets_are_found_and_kept_together(seed):
    articles = [a for name in NAMES for a in load_articles(SPLITS / f"{name}.jsonl")]
    assert find_pairs(articles) == []
    found, apart = found_and_apart(articles, seed)
    assert found >= 65 and apart == 0


@pytest.mark.skipif(not REGISTERS.is_dir(), reason="needs the register corpora")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_planted_duplicates_in_the_register_corpora(seed):
    articles = [a for name in NAMES for a in load_articles(REGISTERS / f"{name}.jsonl")]
    assert find_pairs(articles) == []
    found, apart = found_and_apart(articles, seed)
    assert found >= 65 and apart == 0


def test_stubs_and_boilerplate_are_not_duplicates():
    text = [" ".join(f"{word}{i}{k}" for k, word in enumerate(WORDS * 8)) for i in range(30)]
    stubs = [Article(f"Story number {i} about {text[i][:40]}", "Subscribe to read on.", 0, f"s{i}") for i in range(30)]
    tail = " Follow us on social media, and sign up for our newsletter to get the best stories every morning."
    long = [Article(f"Story {i}", text[i] + tail, 0, f"l{i}") for i in range(30)]
    assert find_pairs(stubs) == [] and find_pairs(long) == []


def test_half_of_an_article_is_enough_under_the_same_title():
    title = "A headline of twenty characters or more"
    a, b, c = (" ".join(f"{word}{i}{k}" for k, word in enumerate(WORDS * 4)) for i in range(3))
    rewritten = [Article(title, f"{a} {b}", 0), Article(title.upper() + "!", f"{a} {c}", 0)]
    (pair,) = find_pairs(rewritten)
    assert pair.kind == "contained" and 0.5 <= pair.similarity < 0.7
    assert find_pairs([rewritten[0], Article("Another headline", f"{a} {c}", 0)]) == []
    assert find_pairs([rewritten[0], Article(title, c, 0)]) == []
    own = [" ".join(f"{word}-{i}-{k}" for k, word in enumerate(WORDS * 3)) for i in range(10, 31)]
    column = [Article(title, f"{a} {text}", 0) for text in own]
    assert find_pairs(column) == [] and len(find_pairs(column[1:])) == 20 * 19 / 2


def test_kinds_of_pairs():
    rng = random.Random(0)
    body = " ".join(f"{rng.choice(WORDS)}{rng.randrange(900)}" for _ in range(80))
    other = body.replace(body.split()[20], "changed").replace(body.split()[50], "numbers")
    articles = [
        Article("The title", body, 0, "a"),
        Article("the TITLE!", body.upper(), 0, "b"),
        Article("The title", other, 0, "c"),
        Article("Else", body[:200], 0, "d"),
        Article("Nothing", "in common with them at all", 0, "a"),
    ]
    kinds = {(p.first, p.second): p.kind for p in find_pairs(articles) + same_id_pairs(articles)}
    assert kinds[0, 1] == "exact" and kinds[0, 2] == "near" and kinds[3, 0] == "contained" and kinds[0, 4] == "same id"
    assert clusters(5, find_pairs(articles)).tolist() == [0, 0, 0, 0, 1]


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def populations(draw):
    n = draw(st.integers(1, 120))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    groups = np.arange(n)
    for _ in range(draw(st.integers(0, 12))):
        groups[rng.integers(n)] = groups[rng.integers(n)]
    strata = [f"s{i}" for i in rng.integers(0, draw(st.integers(1, 20)), n)]
    return Population(rng.integers(0, 2, n), strata, groups, rng.permutation(n).astype(np.uint64))


@given(populations())
@settings(max_examples=150)
def test_every_article_gets_one_split_and_clusters_stay_whole(population):
    splits = assign(population, np.full(len(population.labels), NONE))
    assert set(splits.tolist()) <= {TRAIN, VAL, TEST}
    for group in np.unique(population.clusters):
        assert len(set(splits[population.clusters == group].tolist())) == 1
    if len(np.unique(population.clusters)) == len(splits):
        for label in (0, 1):
            mine = splits[population.labels == label]
            assert np.bincount(mine, minlength=3).tolist() == quotas(len(mine)).tolist()


@given(populations(), st.integers(0, 1000))
@settings(max_examples=60)
def test_the_order_of_the_articles_does_not_matter(population, seed):
    order = np.random.default_rng(seed).permutation(len(population.labels))
    shuffled = Population(
        population.labels[order],
        [population.strata[i] for i in order],
        population.clusters[order],
        population.keys[order],
    )
    nowhere = np.full(len(order), NONE)
    assert assign(shuffled, nowhere).tolist() == assign(population, nowhere)[order].tolist()


# Few different texts, so that many are copies, snippets or near duplicates of others.
BODIES = [" ".join(f"{word}{i}{k}" for k, word in enumerate(WORDS * 3)) for i in range(12)]
CONTENTS = [*BODIES, *(body[:150] for body in BODIES), *(f"{a} {b}" for a, b in pairwise(BODIES))]
texts = st.tuples(st.integers(0, 40).map("Title {}".format), st.sampled_from(CONTENTS))


@given(st.lists(texts, min_size=1, max_size=60), st.lists(texts, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_adding_articles_moves_nothing_and_splits_no_cluster(old, new, rng):
    old = [Article(title, content, i % 2, f"old-{i}", "en") for i, (title, content) in enumerate(old)]
    new = [Article(title, content, i % 2, f"new-{i}", "en") for i, (title, content) in enumerate(new)]
    first = divide(old, [], 0)
    assert not first.dropped and NONE not in first.splits
    before = {a.id: int(split) for a, split in zip(old, first.splits, strict=True)}
    together = [*old, *new]
    rng.shuffle(together)
    second = divide(together, [(a, before[a.id]) for a in old], 0)
    after = {a.id: int(split) for a, split in zip(together, second.splits, strict=True)}
    assert {key: after[key] for key in before} == before
    assert {together[i].id for i in second.dropped} == {key for key, split in after.items() if split == NONE}
    kept = [a for a in together if after[a.id] != NONE]
    groups = clusters(len(kept), find_pairs(kept))
    for group in np.unique(groups):
        assert len({after[kept[i].id] for i in np.flatnonzero(groups == group)}) == 1


lines = st.one_of(
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")),
    st.fixed_dictionaries(
        {"title": st.text(max_size=20), "content": st.text(max_size=40)},
        optional={"commerce_score": st.one_of(st.floats(0, 10), st.none(), st.text(max_size=3)), "id": st.text()},
    ).map(lambda row: json.dumps(row).encode()),
)  # fmt: skip


@given(st.lists(lines, min_size=1, max_size=30))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_becomes_one_row(tmp_path, raw):
    path = Path(tmp_path) / "raw.jsonl"
    path.write_bytes(b"\n".join([*raw, b"{}"]))
    rows = list(read_rows([path]))
    assert len(rows) == sum(bool(line.removeprefix(BYTE_ORDER_MARK).strip()) for line in raw) + 1
    assert all((row.article is None) <= (row.reason is not None) for row in rows)


def messy_rows(rng):
    """Enough rows for a split, with copies, copies under another title, edited copies, snippets and ids given twice."""
    rows = scored(60, seed=3)
    for i, row in enumerate(rng.sample([row for row in rows if len(row["content"]) > 300], 12)):
        changed = row["content"].split()
        changed[5] = "changed"
        copies = [
            {"title": row["title"]},
            {"title": f"Another headline {i}"},
            {"title": row["title"], "content": " ".join(changed)},
            # Contained only in the one with this title.
            {"title": "", "content": f"{row['title']} {row['content'][:60]}"},
            {"id": row["id"], "content": f"Rewritten from the start, number {i}"},
        ]
        rows += [{**row, "id": f"{kind}-{row['id']}", **copies[kind]} for kind in rng.sample(range(5), 3)]
    return rows


@given(st.integers(0, 1000))
@settings(max_examples=8)
def test_shuffled_rows_give_the_same_files(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("shuffled"), random.Random(seed)
    rows = messy_rows(rng)
    first = build(folder / "a", rows)
    rng.shuffle(rows)
    second = build(folder / "b", rows)
    assert first["splits"] == second["splits"] and first["clusters"] == second["clusters"]
    assert first["repaired_rows"] == second["repaired_rows"] and first["clusters"]["pairs"].keys() >= {"near"}


@pytest.mark.parametrize("order", list(permutations("abd")), ids="".join)
def test_a_snippet_of_one_of_two_articles_with_the_same_content(order):
    """The snippet contains the headline of A, which is what makes it a part of A and not of B."""
    content = " ".join(f"{word}{i}" for i, word in enumerate(WORDS * 3))
    headline = "A headline of this length is a large part of what a feed shows"
    articles = {"a": Article(headline, content, 0, "a"), "b": Article("Else", content, 0, "b")}
    articles["d"] = Article(headline, content[:60], 0, "d")
    found = clusters(3, find_pairs([articles[key] for key in order]))
    assert found.tolist() == [0, 0, 0]


def test_many_titles_above_one_content_are_not_compared_each_with_each():
    articles = [Article(f"Title {i}", BODIES[0], 0) for i in range(300)]
    assert len(find_pairs(articles)) == 299


# --- ids -------------------------------------------------------------------------------------------------------------


def test_two_texts_under_one_id_are_written_under_two(tmp_path):
    rows = scored(60)
    build(tmp_path, rows)
    known = next(row for row in rows if assigned(tmp_path / "out")[row["id"]] == "test")
    other = {**known, "title": "A", "content": "an older version, which comes first in every order"}
    manifest = build(tmp_path, [other, *rows], "--overwrite")
    after = assigned(tmp_path / "out")
    (added,) = set(after) - {row["id"] for row in rows}
    assert added.startswith(f"{known['id']}-") and after[added] == after[known["id"]] == "test"
    assert manifest["repaired_rows"] == {"id": 1} and manifest["written_rows"] == 61
    for name in NAMES:
        load_articles(tmp_path / "out" / f"{name}.jsonl", require_labels=True)  # refuses an id that occurs twice
    (report,) = map(json.loads, (tmp_path / "out" / "cleaning.jsonl").read_text(encoding="utf-8").splitlines())
    assert report["line"] == 1 and report["id"] == added and report["repaired"] == ["id"]
    assert report["detail"] == f"the id {known['id']} belongs to another article"
    # The same again, from the rows and from what was written of them.
    written = [json.loads(line) for name in NAMES for line in (tmp_path / "out" / f"{name}.jsonl").open("rb")]
    build(tmp_path, [*written, other, *rows], "--overwrite")
    again = assigned(tmp_path / "out")
    assert {key: again[key] for key in after} == after


def test_ids_made_up_from_line_numbers_do_not_identify_articles(tmp_path):
    rows = [{**row, "id": f"line-{i % 30}"} for i, row in enumerate(scored(60))]
    manifest = build(tmp_path, rows)
    assert len(assigned(tmp_path / "out")) == 60 and manifest["clusters"]["clusters"] == 0


@pytest.mark.parametrize("flags", [[], ["--group-by", "source"]])
def test_blank_ids_and_sources_link_nothing(tmp_path, flags):
    manifest = build(tmp_path, [{**row, "id": "", "source": " "} for row in scored(60)], *flags)
    assert manifest["splits"]["test"]["rows"] == 6 and manifest["clusters"]["clusters"] == 0
    assert all(id.startswith("text-") for id in assigned(tmp_path / "out"))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_no_input_is_replaced(tmp_path, refused):
    inputs = [write_jsonl(tmp_path / f"in{i}.jsonl", scored(60, i)) for i in (1, 2)]
    (tmp_path / "raw").mkdir()
    raw = [write_jsonl(tmp_path / "raw" / f"{name}.jsonl", scored(60, i)) for i, name in enumerate(NAMES)]
    (tmp_path / "alias").symlink_to(tmp_path / "raw")
    (tmp_path / "link.jsonl").symlink_to(inputs[0])
    (tmp_path / "hard.jsonl").hardlink_to(inputs[1])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train.jsonl").symlink_to(inputs[0])
    base = ["build", *inputs, "--overwrite", "--output", tmp_path / "out"]
    for middle in (inputs[0], "link.jsonl", "hard.jsonl"):
        words = "is one of the inputs, which would be lost"
        refused(splits_command, [*base, "--keep-middle", tmp_path / middle], tmp_path, words=words)
    for middle in ("out", "out/middle.jsonl", "out/deeper/middle.jsonl", "raw/middle.jsonl", "alias/train.jsonl"):
        flags = ["--previous", tmp_path / "raw", "--keep-middle", tmp_path / middle]
        refused(splits_command, [*base, *flags], tmp_path, words="must be outside")
    for files, output in ((raw, "raw"), (raw, "alias"), ([tmp_path / "linked" / "train.jsonl"], "linked")):
        flags = ["--output", tmp_path / output, "--overwrite"]
        refused(splits_command, ["build", *files, *flags], tmp_path, words="which would be lost; name another folder")
    flags = ["--splits", tmp_path / "raw", "--output", tmp_path / "raw", "--overwrite"]
    refused(splits_command, ["merge", raw[0], *flags], tmp_path, words="which would be lost")


def test_outputs_are_checked_before_the_work(tmp_path, refused, monkeypatch):
    def never(*args):
        raise AssertionError("the input was read")

    monkeypatch.setattr("prefilter_common.splits.build.read_rows", never)
    monkeypatch.setattr("prefilter_common.splits.audit.run.read_splits", never)
    rows = write_jsonl(tmp_path / "in.jsonl", scored(60))
    (tmp_path / "folder").mkdir()
    (tmp_path / "results" / "split_audit.html").mkdir(parents=True)
    base = ["build", rows, "--output", tmp_path / "out", "--keep-middle"]
    refused(splits_command, [*base, tmp_path / "folder"], tmp_path, words="is not a file")
    refused(splits_command, [*base, rows / "middle"], tmp_path, words="cannot be created")
    for output in ("results", "in.jsonl"):
        refused(splits_command, ["audit", SPLITS, "--output", tmp_path / output], tmp_path, words=": ")


@pytest.mark.parametrize(
    "flags",
    [
        ["build"], ["bild"], [], ["build", "in", "--commerce-from", "nan"], ["build", "in", "--commerce-from", "inf"],
        ["build", "in", "--journalism-below", "-1"], ["audit", "in", "--commerce-from", "11"],
        ["build", "in", "--commerce-from", "x"], ["build", "in", "--commerce-from", "2"],
        ["build", "in", "--test-after", "yesterday"], ["build", "in", "--seed", "-1"], ["build", "in", "--bogus"],
        ["build", "in", "--group-by", "title"], ["merge"], ["audit"], ["build", "nowhere.jsonl"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_flags(tmp_path, refused, flags):
    refused(splits_command, flags, tmp_path)


def test_a_bad_line_of_the_previous_splits_is_refused(tmp_path, refused):
    """Its article would be new otherwise, and could move from test to train."""
    rows = scored(60)
    build(tmp_path, rows)
    with (tmp_path / "out" / "test.jsonl").open("r+", encoding="utf-8") as file:
        file.write("#")
    base = ["build", tmp_path / "scored.jsonl", "--output"]
    words = "test.jsonl, line 1: invalid line: "
    refused(splits_command, [*base, tmp_path / "out", "--overwrite"], tmp_path, words=words)
    refused(splits_command, [*base, tmp_path / "new", "--previous", tmp_path / "out"], tmp_path, words=words)


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert call(splits_command, ["build", tmp_path / "nowhere", "--output", tmp_path / "out", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ['{"title": "t", "content": "c", "commerce_score": 1, "commerce_score": 9}',
     '{"title": "t", "content": "c", "commerce_score": 9, "x": {"a": 1, "a": 2}}',
     '{"title": "t", "content": "c", "commerce_score": 9, "x": NaN}',
     '{"title": "t", "content": "c", "commerce_score": 9, "x": "\\ud800"}'],
    ids=["a key twice", "a key twice, deeper", "NaN", "half a character"],
)  # fmt: skip
def test_invalid_lines_are_reported(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(line + "\n", encoding="utf-8")
    write_jsonl(tmp_path / "in.jsonl", scored(60))
    flags = ["build", tmp_path / "in.jsonl", tmp_path / "bad.jsonl", "--output", tmp_path / "out"]
    assert call(splits_command, flags) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["discarded_rows"] == {"invalid line": 1} and manifest["written_rows"] == 60


def test_where_a_length_ends_and_how_many_are_validated_without_a_quota_for_test():
    assert [length_name(Article("t", "x" * (n - 1))) for n in (249, 250, 999, 1_000)] == [
        "<250", "250-999", "250-999", "1000+",
    ]  # fmt: skip
    assert quotas(90, with_test=False).tolist() == [80, 10, 0]
    assert quotas(95).tolist() == [76, 9, 10]
