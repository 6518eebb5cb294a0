"""Building splits: every row counts once, duplicates stay together, and articles keep their earlier split."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SPLITS, call, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefilter_common.articles import Article, load_articles
from prefilter_common.splits import __main__ as splits_command
from prefilter_common.splits.assignment import NONE, TEST, TRAIN, VAL, Population, assign, quotas
from prefilter_common.splits.cleaning import clean_text, read_rows
from prefilter_common.splits.duplicates import clusters, find_pairs, same_id_pairs
from prefilter_common.splits.grouping import divide
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
    assert manifest_state(tmp_path / "out").differs == ()
    with (tmp_path / "out" / "val.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert manifest_state(tmp_path / "out").differs == ("val",)


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
    """30 near duplicates and 20 snippets, and the index of the original of each."""
    rng = random.Random(seed)
    places = rng.sample([i for i, a in enumerate(articles) if len(a.content) > 150], 50)
    copies = [near_duplicate(articles[i], rng) for i in places[:30]]
    snippets = [articles[i] for i in places[30:]]
    copies += [Article(a.title, a.content[:125], a.label, f"cut-{a.id}", a.language) for a in snippets]
    return copies, places


def found_and_apart(articles, seed):
    """How many planted copies are found, and how many of these are not in the split of their original."""
    copies, places = planted(articles, seed)
    everyone = [*articles, *copies]
    groups = clusters(len(everyone), find_pairs(everyone))
    splits = divide(everyone, [], seed).splits
    ends = [(place, len(articles) + i) for i, place in enumerate(places)]
    found = [pair for pair in ends if groups[pair[0]] == groups[pair[1]]]
    return len(found), sum(splits[a] != splits[b] for a, b in found)


def test_planted_duplicates_and_snippets_are_found_and_kept_together():
    articles = [a for name in NAMES for a in load_articles(SPLITS / f"{name}.jsonl")]
    assert find_pairs(articles) == []
    found, apart = found_and_apart(articles, seed=0)
    assert found >= 45 and apart == 0


@pytest.mark.skipif(not REGISTERS.is_dir(), reason="needs the register corpora")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_planted_duplicates_in_the_register_corpora(seed):
    articles = [a for name in NAMES for a in load_articles(REGISTERS / f"{name}.jsonl")]
    assert find_pairs(articles) == []
    found, apart = found_and_apart(articles, seed)
    assert found >= 45 and apart == 0


def test_stubs_and_boilerplate_are_not_duplicates():
    text = [" ".join(f"{word}{i}{k}" for k, word in enumerate(WORDS * 8)) for i in range(30)]
    stubs = [Article(f"Story number {i} about {text[i][:40]}", "Subscribe to read on.", 0, f"s{i}") for i in range(30)]
    tail = " Follow us on social media, and sign up for our newsletter to get the best stories every morning."
    long = [Article(f"Story {i}", text[i] + tail, 0, f"l{i}") for i in range(30)]
    assert find_pairs(stubs) == [] and find_pairs(long) == []


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
@settings(max_examples=150, deadline=None)
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
@settings(max_examples=60, deadline=None)
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
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_becomes_one_row(tmp_path, raw):
    path = Path(tmp_path) / "raw.jsonl"
    path.write_bytes(b"\n".join([*raw, b"{}"]))
    rows = list(read_rows([path]))
    assert len(rows) == sum(bool(line.strip()) for line in raw) + 1
    assert all((row.article is None) <= (row.reason is not None) for row in rows)
