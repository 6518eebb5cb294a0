"""Which articles are compared, and how long they are."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import write_jsonl

from prefilter_common.articles import Article, capped
from prefilter_common.benchmark.data import ENOUGH, MIN_MORE, Data, content_lengths, cut_like, texts_worth_comparing
from prefilter_common.benchmark.fidelity import Tolerance, unchanged_needed
from prefilter_common.errors import InputError
from prefilter_common.scoring.engines.converters import CALIBRATION_ARTICLES, calibration_articles


def articles(n, role="a", words=400):
    return [Article(f"{role} {i}", f"{role}{i} " + "word " * words, i // 3 % 2, f"{role}-{i}") for i in range(n)]


@pytest.fixture
def feed(tmp_path):
    """A file of 500 articles whose contents are as short as a feed's; median 125 characters."""
    lengths = np.random.default_rng(0).lognormal(np.log(125), 0.9, 500).astype(int)
    return write_jsonl(tmp_path / "feed.jsonl", [{"title": "t", "content": "x" * n} for n in lengths.tolist()])


def test_an_article_is_cut_alike_every_time_wherever_it_stands(feed):
    lengths, whole = content_lengths(feed), articles(200)
    once = cut_like(whole, lengths)
    assert cut_like(whole, lengths) == once
    assert cut_like(whole[::-3], lengths) == once[::-3]
    assert len({article.content for article in once}) > 150


def test_without_ids_the_place_decides(feed):
    lengths = content_lengths(feed)
    nameless = [replace(article, id=None) for article in articles(200)]
    once = cut_like(nameless, lengths)
    assert cut_like(nameless, lengths) == once and cut_like(nameless[:50], lengths) == once[:50]
    assert len({len(article.content) for article in once}) > 50


def test_only_the_content_is_cut_and_only_at_a_word(feed):
    whole = articles(200)
    for article, short in zip(whole, cut_like(whole, content_lengths(feed)), strict=True):
        assert replace(short, content=article.content) == article
        assert article.content.startswith(f"{short.content} ")
    assert cut_like(whole[:9], [10**6]) == whole[:9]
    assert [article.content for article in cut_like(whole[:9], [0])] == [""] * 9


def test_the_lengths_are_distributed_as_those_of_the_file(feed):
    lengths = content_lengths(feed)
    found = [len(article.content) for article in cut_like(articles(4000), lengths)]
    shares = np.arange(0.1, 0.91, 0.1)
    # A cut at a word leaves up to five characters fewer; 4,000 draws are off by at most 3 % of the ranks.
    low, high = (np.quantile(lengths, np.clip(shares + d, 0, 1)) for d in (-0.03, 0.03))
    assert (np.quantile(found, shares) >= low - 5).all() and (np.quantile(found, shares) <= high).all()


def test_lengths_of_a_bad_file(tmp_path):
    with pytest.raises(InputError, match=r"feed\.jsonl: 1 of 2 lines are bad, .* line 2: "):
        content_lengths(write_jsonl(tmp_path / "feed.jsonl", [{"title": "t", "content": "c"}, {"title": "t"}]))


def divided(train):
    """A fourth of the articles, with each label's share, and the others."""
    judged = sorted(sorted(range(len(train)), key=lambda i: train[i].label)[::4])
    return [train[i] for i in judged], [article for i, article in enumerate(train) if i not in judged]


def all_read(some):
    """For ``comparing``: the model can read every article."""
    return np.zeros(len(some), dtype=bool)


def test_decisions_are_compared_on_distinct_texts_traffic_first():
    test, train, val = articles(5, "test"), articles(100, "train"), articles(40, "val")
    week = articles(30, "traffic")
    traffic = [*week, *week[:2], test[0], val[0]]
    data = Data(test, test, train, val, traffic)
    everything = data.comparing(1000, all_read)
    assert {role: len(part) for role, part in everything.more.items()} == {"train": 100, "traffic": 30, "val": 40}
    held_out, rest = divided(train)
    # Stages are fitted on the first half of the traffic, and judged on the second and on what is held out.
    assert everything.all_more == [*week[17:], *week[:17], *held_out, *rest, *val]
    assert everything.unseen.tolist() == 13 * [True] + 17 * [False] + 25 * [True] + 75 * [False] + 40 * [False]
    assert everything.fitting == [*rest, *week[:17]]
    assert data.comparing(51, all_read).all_more[30:41] == capped(held_out, 11)
    for limit, expected in (
        (10, {"traffic": 10}),
        (20, {"traffic": 20}),
        (51, {"train": 11, "traffic": 30, "val": 10}),
        (120, {"train": 50, "traffic": 30, "val": 40}),
    ):
        chosen = data.comparing(limit, all_read)
        assert {role: len(part) for role, part in chosen.more.items()} == expected
        assert chosen.unseen[:10].all() and len(chosen.unseen) == limit
    assert len(Data(test, test, train[:5], val).comparing(30, all_read).more["val"]) == 25
    assert Data(test, test).comparing(100, all_read).all_more == []


def test_what_the_model_cannot_read_is_not_compared_and_makes_room_for_what_it_can():
    test, train, week = articles(5, "test"), articles(100, "train"), articles(30, "traffic")
    data = Data(test, test, train, traffic=[*week, *week[:5]])

    def unread(some):
        return np.array([article.title.split()[1] in ("1", "20") for article in some], dtype=bool)

    chosen = data.comparing(50, unread)
    assert {role: len(part) for role, part in chosen.more.items()} == {"traffic": 28, "train": 22}
    assert not unread(chosen.all_more).any() and len(chosen.unseen) == 50
    assert chosen.n_unread == 1 + 2 + 2 and data.comparing(50, all_read).n_unread == 0  # each text once


def test_an_update_of_a_story_that_a_stage_was_fitted_on_does_not_judge_it():
    """A feed whose second half has the stories of the first again, with other words, and ten without a title."""
    week = [Article(f"story {i % 50}" if i < 100 else "", f"text {i}") for i in range(110)]
    data = Data([], [], traffic=[*week[:50], *week[100:105], *week[50:100], *week[105:]]).comparing(1000, all_read)
    assert len(data.unseen) == 110
    unseen = [article for article, new in zip(data.all_more, data.unseen, strict=True) if new]
    assert unseen == week[105:]


def test_traffic_out_of_which_the_validation_articles_came_does_not_judge_stages_by_them():
    """Their texts, and updates of their stories."""
    week = [Article(f"story {i}", f"text {i}", label=i % 2) for i in range(100)]
    later = [*week[:20], *(replace(article, content=f"{article.content} again") for article in week[20:40])]
    data = Data([], [], val=week[:40], traffic=[*week[40:], *later, *articles(20, "new")]).comparing(1000, all_read)
    unseen = [article for article, new in zip(data.all_more, data.unseen, strict=True) if new]
    assert unseen == articles(20, "new")


def test_stages_are_judged_neither_on_test_articles_nor_on_what_they_were_fitted_on():
    """Unlabelled articles may be given to be fitted on and, by mistake, to be compared on as well."""
    both = articles(40)
    data = Data(both[:3], [], train=both, traffic=both).comparing(1000, all_read)
    unseen = [article for article, new in zip(data.all_more, data.unseen, strict=True) if new]
    assert unseen == [article for article in divided(both)[0] if article in both[20:]]
    assert not any(article in data.fitting for article in unseen)
    assert len(data.all_more) == 37
    traffic_alone = Data(both[:3], [], val=both[3:5], traffic=both)
    assert traffic_alone.fitting == both[5:20]
    cut = [replace(article, content=article.content[:2]) for article in both[:5]]
    assert Data(cut[:3], [], val=cut[3:], traffic=both).fitting == both[5:20]


@pytest.mark.parametrize("written", ["", "{} ", "{}"])
def test_a_story_is_known_by_its_beginning_or_however_its_title_is_written(written):
    """Traffic has the test articles, whole, in its first half, and training articles in its second."""
    own = {role: articles(40, role) for role in ("test", "train")}
    if not written:
        own = {role: [replace(a, title="", content=f"{a.title} is how it begins, {a.content}") for a in some]
               for role, some in own.items()}  # fmt: skip
    week = [
        replace(a, title=written.format(a.title.upper()), content=a.content.upper())
        for a in [*own["test"], *own["train"]]
    ]
    cut = {role: [replace(a, content=a.content[:60]) for a in some] for role, some in own.items()}
    data = Data(cut["test"], [], cut["train"], traffic=week, whole_train=own["train"]).comparing(1000, all_read)
    assert {article.content for article in data.fitting} <= {article.content for article in own["train"]}
    seen = {article.content[:40] for article in data.fitting}
    judged = [article for article, new in zip(data.all_more, data.unseen, strict=True) if new]
    assert judged and not any(article.content.lower()[:40] in seen for article in judged)


def test_as_many_texts_as_a_minute_allows_but_no_more_than_help():
    tolerance = Tolerance()
    assert texts_worth_comparing(tolerance, articles_per_second=1.0) == MIN_MORE
    assert texts_worth_comparing(tolerance, articles_per_second=50.0) == 3_000
    assert texts_worth_comparing(tolerance, articles_per_second=1e4) == ENOUGH * 368
    assert texts_worth_comparing(Tolerance(0.05, 0.02), 1e4) == ENOUGH * unchanged_needed(0.02)
    assert texts_worth_comparing(Tolerance(1.0, 1.0), 1e4) == 0


def test_as_many_texts_as_help_show_that_half_the_tolerated_changes_are_tolerable():
    from scipy.stats import binom

    from prefilter_common.statistics.intervals import clopper_pearson

    n, changed = ENOUGH * unchanged_needed(0.01), np.arange(100)
    inside = changed[clopper_pearson(changed, n)[1] < 0.01]
    assert binom.cdf(inside.max(), n, 0.005) > 0.95


def test_int8_is_calibrated_on_articles_in_full_and_at_the_length_of_a_feed():
    train = articles(1000)
    chosen = calibration_articles(train)
    assert len(chosen) == CALIBRATION_ARTICLES and chosen == calibration_articles(train)
    whole = [article for article in chosen if article in train]
    short = [article for article in chosen if len(article.content) <= 400]
    assert len(whole) == len(short) == CALIBRATION_ARTICLES // 2
    assert len({article.title for article in chosen}) == CALIBRATION_ARTICLES  # no article twice
    assert 0 < sum(article.label for article in whole) < len(whole)
    assert len(calibration_articles(train[:1])) == 1


def test_a_first_stage_is_fitted_on_whole_articles_and_judged_at_the_length_of_the_benchmark(feed):
    whole = articles(40)
    short = cut_like(whole, content_lengths(feed))
    data = Data([], [], train=short, whole_train=whole).comparing(1000, all_read)
    assert data.fitting == divided(whole)[1]
    assert data.all_more[:10] == divided(short)[0] and data.unseen.tolist() == 10 * [True] + 30 * [False]


def test_of_a_file_in_which_labels_alternate_both_are_fitted_judged_and_calibrated_on():
    train = [replace(article, label=i % 2) for i, article in enumerate(articles(400))]
    data = Data([], [], train=train).comparing(1000, all_read)
    judged = [article for article, new in zip(data.all_more, data.unseen, strict=True) if new]
    for some, n in ((judged, 100), (data.fitting, 300), (calibration_articles(train), CALIBRATION_ARTICLES)):
        assert len(some) == n and sum(article.label for article in some) == n // 2
