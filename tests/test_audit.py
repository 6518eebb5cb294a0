"""From a labelled stratified sample to precision and recall in production."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import write_jsonl
from scipy.stats import hypergeom

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.evaluation.traffic.answers import read_audit, usable_audit
from prefilter_common.evaluation.traffic.audit import audit_section
from prefilter_common.evaluation.traffic.labelling import audit_sample, review_queue
from prefilter_common.statistics.survey import Sample, allocate, difference, production


def population(n, rng):
    """Four parts of the traffic, in which commerce, recall and false alarms differ; two models."""
    cell = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    commerce = rng.random(n) < 0.05 * np.array([1, 0.5, 1.5, 2])[cell]
    luck = rng.random(n)
    first = np.where(
        commerce, luck < np.array([0.9, 0.9, 0.7, 0.8])[cell], luck < np.array([0.01, 0.02, 0.03, 0.02])[cell]
    )
    other = np.where(rng.random(n) < 0.7, luck, rng.random(n))
    second = np.where(commerce, other < 0.8, other < 0.03)
    return cell, commerce, first, second


@pytest.mark.slow
def test_the_estimates_are_unbiased_and_the_intervals_hold_the_truth(monkeypatch):
    """1,500 audits of one traffic, drawn by the first model's flags; the second model is judged on them too."""
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 3_000)
    rng, runs = np.random.default_rng(5), 1_500
    cell, commerce, first, second = population(10_000, rng)
    strata = [np.flatnonzero((first == flag) & (cell == c)) for flag in (True, False) for c in range(4)]
    sizes = np.array([len(members) for members in strata])
    drawn = np.concatenate([allocate(sizes[:4], 100), allocate(sizes[4:], 400)])
    truth = {
        name: {"precision": commerce[flags].mean(), "recall": flags[commerce].mean(),
               "false_positive_rate": flags[~commerce].mean(), "prevalence": commerce.mean()}
        for name, flags in (("first", first), ("second", second))
    }  # fmt: skip
    held = {name: dict.fromkeys(rates, 0) for name, rates in truth.items()}
    values = {name: {rate: [] for rate in rates} for name, rates in truth.items()}
    stratum = np.repeat(np.arange(8), drawn)
    for seed in range(runs):
        units = np.concatenate([rng.choice(m, k, replace=False) for m, k in zip(strata, drawn, strict=True)])
        sample = Sample(stratum, sizes, np.ones(len(units)))
        for name, flags in (("first", first), ("second", second)):
            kind = (stratum >= 4).astype(int)
            found = production(sample, kind, commerce[units], flags[units], name == "first", seed)
            for rate, true in truth[name].items():
                low, high = found["intervals"][rate]
                held[name][rate] += low - 1e-4 <= true <= high + 1e-4
                values[name][rate].append(found[rate])
    assert all(0.93 <= n / runs <= 0.97 for rates in held.values() for n in rates.values()), held
    for name, rates in values.items():
        for rate, found in rates.items():
            assert np.mean(found) == pytest.approx(truth[name][rate], abs=0.02, rel=0.05), (name, rate)


@pytest.mark.slow
@pytest.mark.parametrize("repeated", [False, True])
def test_the_intervals_of_a_part_and_of_repeated_texts_hold_the_truth(monkeypatch, repeated):
    """A part that is no stratum, or texts that occur up to 50 times: how many articles it has is not known."""
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 800)
    rng, runs = np.random.default_rng(1), 300
    commerce, luck = rng.random(10_000) < 0.07, rng.random(10_000)
    flagged = np.where(commerce, luck < 0.85, luck < 0.02)
    copies = np.minimum(rng.zipf(2.0, 10_000), 50) if repeated else np.ones(10_000, int)
    part = np.ones(10_000, bool) if repeated else rng.random(10_000) < 0.1
    truth = {
        "prevalence": np.average(commerce[part], weights=copies[part]),
        "false_positive_rate": np.average(flagged[part & ~commerce], weights=copies[part & ~commerce]),
    }
    strata, stratum = [np.flatnonzero(flagged), np.flatnonzero(~flagged)], np.repeat([0, 1], [200, 400])
    held = dict.fromkeys(truth, 0)
    for seed in range(runs):
        units = np.concatenate([rng.choice(m, k, replace=False) for m, k in zip(strata, (200, 400), strict=True)])
        sample = Sample(stratum, np.array([len(members) for members in strata]), copies[units])
        inside = None if repeated else part[units]
        found = production(sample, stratum, commerce[units], flagged[units], True, seed, inside)
        for rate, true in truth.items():
            low, high = found["intervals"][rate]
            held[rate] += low - 1e-4 <= true <= high + 1e-4
    assert min(held.values()) >= 0.92 * runs, held


def test_a_miss_that_was_not_drawn_is_not_no_miss():
    stratum = np.repeat([0, 1], [50, 100])
    commerce, flagged = stratum == 0, stratum == 0
    sample = Sample(stratum, np.array([50, 5_000]), np.ones(150))
    found = production(sample, stratum, commerce, flagged, True, 0)
    assert found["recall"] == 1 and found["intervals"]["recall"][0] < 0.5  # 1 of 100 would be 50 of 5,000
    assert found["precision"] == 1 and found["intervals"]["precision"] == [1, 1]  # all of them were labelled


@pytest.mark.parametrize(("size", "drawn"), [(120, 100), (150, 100), (13, 10), (400, 100), (2_000, 100)])
def test_an_interval_holds_where_most_of_what_is_flagged_is_labelled(size, drawn):
    """Over every number of errors that a sample may show. What was not drawn may be the one error that there is."""
    flagged = np.ones(drawn, bool)
    sample = Sample(np.zeros(drawn, int), np.array([size]), np.ones(drawn))
    low, high = np.transpose([
        production(sample, sample.stratum, np.arange(drawn) >= wrong, flagged, True, 0)["intervals"]["precision"]
        for wrong in range(min(drawn, 12) + 1)
    ])  # fmt: skip
    for wrong in range(5):
        true = 1 - wrong / size
        seen = hypergeom(size, wrong, drawn).pmf(np.arange(len(low)))
        assert seen[(low - 1e-4 <= true) & (true <= high + 1e-4)].sum() >= 0.95


@pytest.mark.parametrize(("size", "drawn", "wrong"), [(120, 100, 3), (13, 10, 1)])
def test_an_interval_holds_where_texts_repeat_and_most_of_them_are_labelled(monkeypatch, size, drawn, wrong):
    """One text in ten occurs five times: of ten texts of which none does, those that were not drawn still may."""
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 800)
    rng, held, runs = np.random.default_rng(2), 0, 300
    for seed in range(runs):
        copies = np.where(rng.random(size + 300) < 0.1, 5, 1)
        of_all = copies[:size]
        units = rng.choice(size, drawn, replace=False)
        stratum = np.repeat([0, 1], [drawn, 300])
        sample = Sample(stratum, np.array([size, 2_000]), np.r_[of_all[units], copies[size:]])
        commerce = np.r_[units >= wrong, np.zeros(300, bool)]
        low, high = production(sample, stratum, commerce, stratum == 0, True, seed)["intervals"]["precision"]
        held += low - 1e-4 <= of_all[wrong:].sum() / of_all.sum() <= high + 1e-4
    assert held >= 0.92 * runs


@pytest.mark.parametrize("heavy", [False, True])
def test_an_interval_holds_where_commerce_repeats_more_often_than_journalism(monkeypatch, heavy):
    """Advertisements are published again, five times each or up to fifty: a few that were missed stand for many."""
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 800)
    rng, runs = np.random.default_rng(6), 200
    flagged = np.arange(5_000) < 400
    commerce = (np.arange(5_000) < 340) | ((np.arange(5_000) >= 400) & (np.arange(5_000) < 470))
    stratum = np.repeat([0, 1], [100, 300])
    held = dict.fromkeys(("precision", "recall", "false_positive_rate", "prevalence"), 0)
    for seed in range(runs):
        times = np.minimum(rng.zipf(2.0, 5_000), 50) if heavy else 5
        copies = np.where(commerce, times, 1)
        units = np.concatenate([rng.choice(400, 100, replace=False), 400 + rng.choice(4_600, 300, replace=False)])
        sample = Sample(stratum, np.array([400, 4_600]), copies[units])
        found = production(sample, stratum, commerce[units], flagged[units], True, seed)["intervals"]
        both, alarms = copies[flagged & commerce].sum(), copies[flagged & ~commerce].sum()
        truth = {
            "precision": both / copies[flagged].sum(), "recall": both / copies[commerce].sum(),
            "false_positive_rate": alarms / copies[~commerce].sum(),
            "prevalence": copies[commerce].sum() / copies.sum(),
        }  # fmt: skip
        for rate, (low, high) in found.items():
            held[rate] += low - 1e-4 <= truth[rate] <= high + 1e-4
    assert min(held.values()) >= 0.9 * runs, held


def test_articles_of_a_slice_that_are_flagged_may_exist_though_none_was_drawn():
    """Of 5,000 articles in the slice some may be flagged: neither that all commerce is missed nor that no journalism is
    blocked is certain."""
    stratum = np.repeat([0, 1], [100, 300])
    flagged, commerce = stratum == 0, np.isin(np.arange(400), [0, 1, 350])
    sample = Sample(stratum, np.array([1_000, 19_000]), np.ones(400))
    inside = np.arange(400) >= 325
    found = production(sample, stratum, commerce, flagged, True, 0, inside)
    assert found["recall"] == 0 and found["intervals"]["recall"][1] > 0.3
    assert found["false_positive_rate"] == 0 and 0 < found["intervals"]["false_positive_rate"][1] < 0.05


@pytest.mark.slow
def test_of_another_model_none_flagged_in_the_sample_is_not_none_in_the_traffic(monkeypatch):
    """It flags what the model that drew the sample flags, and 95 of 19,000 others, of which most samples have none."""
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 800)
    rng, runs = np.random.default_rng(3), 300
    first = np.arange(20_000) < 1_000
    commerce = np.where(first, rng.random(20_000) < 0.9, rng.random(20_000) < 0.01)
    other = first | (np.arange(20_000) >= 20_000 - 95)
    truth = {"precision": commerce[other].mean(), "false_positive_rate": other[~commerce].mean()}
    held = dict.fromkeys(truth, 0)
    stratum = np.repeat([0, 1], [100, 300])
    for seed in range(runs):
        units = np.concatenate([rng.choice(1_000, 100, replace=False), rng.choice(19_000, 300, replace=False) + 1_000])
        sample = Sample(stratum, np.array([1_000, 19_000]), np.ones(400))
        found = production(sample, stratum, commerce[units], other[units], False, seed)
        for rate, true in truth.items():
            low, high = found["intervals"][rate]
            held[rate] += low - 1e-4 <= true <= high + 1e-4
    assert min(held.values()) >= 0.93 * runs, held


def test_rows_go_out_without_labels_and_come_back_with_them(tmp_path):
    rng = np.random.default_rng(1)
    articles = [
        Article("", f"text {i} " + "x" * int(rng.integers(50, 600)), id=f"a{i}", language=("en", "el")[i % 2])
        for i in range(2_000)
    ]
    truth = rng.random(2_000) < 0.1
    scores = np.where(truth ^ (rng.random(2_000) < 0.03), 0.9, 0.1)
    rows = audit_sample(articles, np.ones(2_000, int), scores, 0.5, (100, 200), 0)
    labelled = [{**row, "label": int(truth[int(row["id"][1:])])} for row in rows]
    audit = read_audit(write_jsonl(tmp_path / "audit.jsonl", labelled))
    where = [int(article.id[1:]) for article in audit.articles]
    section = audit_section(audit, {"m": scores[where], "n": 1 - scores[where]}, {"m": 0.5, "n": 0.5}, "en", True, 0)
    assert section["random_sample"]
    assert audit.drawn_by(scores[where], 0.5) and not audit.drawn_by(1 - scores[where], 0.5)
    assert not audit.drawn_by(scores[where], 0.45)  # though it decides all of these as before
    found = section["models"]["m"]
    assert found["precision"] == pytest.approx(truth[scores > 0.5].mean(), abs=0.1)
    assert found["intervals"]["recall"][0] <= (scores > 0.5)[truth].mean() <= found["intervals"]["recall"][1]
    assert {row["by"] for row in found["slices"]} == {"language", "characters", "language and length"}
    (pair,) = section["pairs"]
    assert pair["better"] == "m" and pair["n_disputed"] == 300
    # half of the labels, in the order of the file, are a sample too
    half = read_audit(write_jsonl(tmp_path / "half.jsonl", labelled[:150] + rows[150:]))
    assert half.random
    assert len(half.articles) == 150 and half.sample.weights.sum() == pytest.approx(2_000, rel=0.02)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"title": "t", "content": "c", "label": 1}], "article 1 (line-1) has no valid stratum"),
        ([{"title": "t", "content": "c", "label": None, "stratum": "x", "stratum_size": 3, "copies": 1, "why": "w"}],
         "no article has a label"),
    ],
)  # fmt: skip
def test_a_file_that_was_not_drawn_or_not_labelled_is_refused(tmp_path, rows, words):
    with pytest.raises(InputError) as error:
        read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    assert words in str(error.value)


def test_strata_of_more_texts_than_there_were_are_refused(tmp_path):
    row = {**DRAWN, "content": "a", "position": 1, "stratum_size": 10**30, "texts": {"flagged": 12}}
    with pytest.raises(InputError, match=r'the strata of "flagged" have more texts, 1,0.*, than it was drawn from'):
        read_audit(write_jsonl(tmp_path / "a.jsonl", [row]))


DRAWN = {"title": "", "label": 1, "why": "flagged", "stratum": "flagged: en", "stratum_size": 9, "copies": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"content": "a"},  # the same text again
        {"position": 1},  # a place that is taken
        {"stratum_size": 7},  # another audit with strata of the same names
        {"why": "models disagree", "stratum": "models disagree: en"},  # a review queue
        {"threshold": 0.4},  # another model's
        {"texts": {"flagged": 12}},  # another week's
    ],
)
def test_rows_of_two_draws_are_not_one_sample(tmp_path, change):
    rows = [{**DRAWN, "content": "a", "position": 1}, {**DRAWN, "content": "b", **change}]
    with pytest.raises(InputError, match=r"article 2 \(.*\) comes from a different draw than those before it"):
        read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    assert len(read_audit(write_jsonl(tmp_path / "b.jsonl", [rows[0], {**DRAWN, "content": "b"}])).articles) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"why": None},
        {"stratum": ["en"]},
        {"stratum_size": -1},
        {"copies": 1.5},
        {"position": 0},
        {"texts": {"flagged": 0}},
        {"texts": {"not flagged": 9}},
    ],
)
def test_keys_that_were_changed_are_named(tmp_path, change):
    with pytest.raises(InputError, match=f"article 1 .* has no valid {next(iter(change))}; label a file"):
        read_audit(write_jsonl(tmp_path / "a.jsonl", [{**DRAWN, "content": "a", **change}]))


def test_labels_that_models_may_have_learnt_are_not_counted(tmp_path):
    rows = [{**DRAWN, "content": f"{i * 7919} {i * 104729} " * 4, "stratum_size": 60} for i in range(60)]
    audit = read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    assert usable_audit(audit, audit.articles[:1], audit.articles) == (audit, True, [])  # one may be, by chance
    none, _, (warning,) = usable_audit(audit, audit.articles[:2], audit.articles)
    assert none is None and "2 of the 60 labelled articles of --audited are training articles" in warning
    alike = [replace(article, content=article.content[:-20] + "and more of it") for article in audit.articles]
    same, of_traffic, (warning,) = usable_audit(audit, alike, audit.articles[:50])
    assert same is audit and not of_traffic and "are not among those of --traffic" in warning


def disputed_labels(tmp_path, labels, picked):
    """A review queue in which the rows for which ``picked`` holds are labelled."""
    articles = [Article("", f"text {i}", id=f"a{i}", language="en") for i in range(1_000)]
    scores = np.where(np.arange(1_000) < 60, 0.9, 0.1)
    disputed = np.arange(1_000) < 40
    queue = review_queue(articles, np.ones(1_000, int), scores, np.full(1_000, 0.8), disputed, 0)
    rows = [{**row, "label": labels(int(row["id"][1:])) if picked(row) else None} for row in queue]
    audit = read_audit(write_jsonl(tmp_path / "queue.jsonl", rows))
    where = np.array([int(article.id[1:]) for article in audit.articles])
    found = {"old": scores[where], "new": np.where(disputed[where], 0.1, scores[where])}
    return audit, audit_section(audit, found, {"old": 0.5, "new": 0.5}, "en", True, 0)


def test_labels_of_disputed_articles_alone_are_no_precision_in_production(tmp_path):
    """In the disaster all of them are commerce: one label is enough to say who is right, and nothing more."""
    audit, section = disputed_labels(tmp_path, lambda i: 1, lambda row: row["why"] == "models disagree")
    assert not audit.random and audit.unlabelled > 0.9
    assert section["models"] == {} and not section["random_sample"]
    (pair,) = section["pairs"]
    assert (pair["n_disputed"], pair["only_first_right"], pair["better"]) == (40, 40, "old")
    assert pair["disputed_by_slice"]["language and length en, short"] == 40


def test_rows_that_were_picked_out_are_no_random_sample(tmp_path):
    everything, section = disputed_labels(tmp_path, lambda i: int(i < 50), lambda row: True)
    assert everything.random and section["models"]["old"]["recall"] == 1
    audit, section = disputed_labels(tmp_path, lambda i: int(i < 50), lambda row: int(row["id"][1:]) % 3 > 0)
    assert audit.unlabelled == 0 and audit.skipped > 0.2 and section["models"] == {}
    same, _, doubts = usable_audit(audit, None, None)
    assert same is audit and doubts == []  # a review queue is not expected to be one
    drawn = replace(audit, flags=np.ones(len(audit.articles), dtype=bool))
    same, _, (warning,) = usable_audit(drawn, None, None)
    assert same is drawn and len(usable_audit(drawn, None, [])[2]) == 1
    assert "measure neither precision nor recall" in warning and "without gaps" in warning
    begun = replace(drawn, skipped=0.0, unlabelled=0.1)
    (warning,) = usable_audit(begun, None, None)[2]
    assert warning.endswith("label more rows, in the order of the file, until every part has one")


def test_strata_that_have_no_label_yet_count_with_the_rest_of_their_kind(tmp_path):
    """Flagged texts are few, so that most of their languages may lack a label where hardly any traffic does."""
    articles = [Article("", f"text {i}", id=f"a{i}", language=f"l{i % 12 if i < 60 else 0}") for i in range(5_000)]
    scores = np.where(np.arange(5_000) < 60, 0.9, 0.1)
    rows = audit_sample(articles, np.ones(5_000, int), scores, 0.5, (40, 40), 0)
    labelled = [{**row, "label": int(row["why"] == "flagged") if i < 20 else None} for i, row in enumerate(rows)]
    audit = read_audit(write_jsonl(tmp_path / "a.jsonl", labelled))
    assert audit.random and 0 < audit.unlabelled < 0.02
    assert sorted(audit.sample.sizes.tolist()) == [60, 4_940]
    assert audit.sample.weights[audit.flags].sum() == pytest.approx(60)


def audit_of_1000(tmp_path, n_flagged):
    """The rows of an audit in which most of the commerce is missed, and what their labels would be."""
    articles = [Article("", f"text {i}", id=f"a{i}", language="en") for i in range(1_000)]
    scores = np.where(np.arange(1_000) < n_flagged, 0.9, 0.1)
    rows = audit_sample(articles, np.ones(1_000, int), scores, 0.5, (20, 100), 0)
    return [{**row, "label": int(int(row["id"][1:]) < 200)} for row in rows]


@pytest.mark.parametrize(
    "given_back",
    [
        lambda rows: [row for row in rows if row["why"] == "flagged"],
        lambda rows: [row for row in rows if row["why"] == "flagged" or not row["label"]],
        lambda rows: sorted(
            ({**row, "label": row["label"] if row["why"] == "flagged" or not row["label"] else None} for row in rows),
            key=lambda row: row["label"] is None,
        ),
        lambda rows: [{**row, "label": None if row["why"] == "flagged" else row["label"]} for row in rows],
    ],
    ids=["flagged alone", "labelled alone", "sorted", "none of the few flagged"],
)
def test_rows_that_are_left_out_do_not_go_unnoticed(tmp_path, given_back):
    rows = audit_of_1000(tmp_path, 14)
    assert read_audit(write_jsonl(tmp_path / "all.jsonl", rows)).random
    assert read_audit(write_jsonl(tmp_path / "shuffled.jsonl", rows[::-1])).random
    audit = read_audit(write_jsonl(tmp_path / "some.jsonl", given_back(rows)))
    assert not audit.random
    (doubt,) = usable_audit(replace(audit, flags=np.ones(len(audit.articles), bool)), None, None)[2]
    assert "pass the whole file" in doubt
    assert ("such as all that is" in doubt) == bool(audit.without)


def test_labels_drawn_by_an_earlier_version_still_count(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("position", "texts")} for row in audit_of_1000(tmp_path, 100)]
    assert read_audit(write_jsonl(tmp_path / "all.jsonl", rows)).random


def test_a_rare_language_drawn_as_often_as_a_common_one_does_not_decide(tmp_path):
    """By the labels alone the first model is right in 70 of 100 disputed articles, in the traffic in half of them."""
    base = {"title": "t", "copies": 1, "why": "models disagree"}
    rows = [
        {**base, "content": f"{part} {i}", "stratum": part, "stratum_size": size, "label": int(i < right)}
        for part, size, right in (("en", 1_500, 25), ("el", 80, 45))
        for i in range(50)
    ]
    audit = read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    first = np.full(100, 0.9)
    (pair,) = audit_section(audit, {"a": first, "b": 1 - first}, {"a": 0.5, "b": 0.5}, "en", True, 0)["pairs"]
    assert pair["p"] < 0.001 and pair["better"] is None


def test_better_needs_the_weights_to_agree(tmp_path):
    """Ten disputed articles of a stratum drawn whole do not outweigh three of one that stands for a thousand."""
    base = {"title": "t", "copies": 1, "language": "en"}
    rows = [
        {**base, "content": f"x{i}", "why": "flagged", "stratum": "f", "stratum_size": 10, "label": 1}
        for i in range(10)
    ]
    rows += [{**base, "content": f"y{i}", "why": "not flagged", "stratum": "n", "stratum_size": 1_000, "label": 1}
             for i in range(2)]  # fmt: skip
    audit = read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    first = np.array([0.9] * 10 + [0.1] * 2)
    (pair,) = audit_section(audit, {"a": first, "b": 1 - first}, {"a": 0.5, "b": 0.5}, "en", True, 0)["pairs"]
    assert pair["p"] < 0.05 and (pair["only_first_right"], pair["only_second_right"]) == (10, 2)
    assert pair["better"] is None


@pytest.mark.slow
def test_of_two_equally_good_models_the_one_that_drew_the_sample_is_not_better(monkeypatch):
    """Each flags 300 texts that the other does not, 80 % of them commerce, and only those of the first are oversampled:
    by McNemar's test on the labels alone it would be better in half of the samples.
    """
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 800)
    rng, runs = np.random.default_rng(4), 300
    n = np.arange(20_000)
    commerce = (n < 1_000) & (n % 5 > 0)
    first, second = (n < 300) | (n >= 600) & (n < 1_000), (n >= 300) & (n < 1_000)
    strata = [np.flatnonzero(first), np.flatnonzero(~first)]
    stratum, sizes = np.repeat([0, 1], 200), np.array([len(members) for members in strata])
    shown, told = 0, 0
    for seed in range(runs):
        units = np.concatenate([rng.choice(members, 200, replace=False) for members in strata])
        sample, right = (
            Sample(stratum, sizes, np.ones(400)),
            [flags[units] == commerce[units] for flags in (first, second)],
        )
        low, high = difference(sample, stratum, *right, seed)
        shown += low > 0 or high < 0
        # A model that flags none of the commerce is worse, and is found to be.
        low, high = difference(sample, stratum, right[0], ~commerce[units], seed)
        told += low > 0
    assert shown <= 0.07 * runs and told == runs, (shown, told)


def test_the_slices_of_an_audit_are_the_worst_first(tmp_path):
    rows = [
        {"title": "t", "content": f"x{i}", "copies": 1, "language": "el" if i < 40 else "en" if i < 160 else "hu",
         "why": "all", "stratum": "all", "stratum_size": 165, "label": int(i % 10 == 0)}
        for i in range(165)
    ]  # fmt: skip
    audit = read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    scores = np.where(np.arange(165) < 30, 0.9, 0.1) + np.where(np.arange(165) >= 160, 0.8, 0)
    slices = audit_section(audit, {"m": scores}, {"m": 0.5}, "en", True, 0)["models"]["m"]["slices"]
    languages = [row["value"] for row in slices if row["by"] == "language"]
    assert languages == ["el", "en", "hu"]  # the third blocks everything, but has five articles
    blocked = [row["false_positive_rate"] for row in slices if row["enough"]]
    assert blocked == sorted(blocked, reverse=True)


def test_an_audit_counts_what_is_in_each_slice(tmp_path):
    rows = [
        {"title": "t", "content": f"x{i}", "copies": 1, "language": "el" if i < 40 else "en", "why": "all",
         "stratum": "all", "stratum_size": 100, "label": int(i % 10 == 0)}
        for i in range(100)
    ]  # fmt: skip
    audit = read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    flagged = np.isin(np.arange(100), [0, 1, 50, 60, 70])
    found = audit_section(audit, {"m": np.where(flagged, 0.9, 0.1)}, {"m": 0.5}, "en", True, 0)["models"]["m"]
    parts = {row["value"]: row for row in found["slices"] if row["by"] == "language"} | {"all": found}
    counts = {name: (row["n"], row["n_commerce"], row["n_flagged"]) for name, row in parts.items()}
    assert counts == {"el": (40, 4, 2), "en": (60, 6, 3), "all": (100, 10, 5)}
    assert (found["precision"], found["recall"]) == pytest.approx((0.8, 0.4))
    assert found["f1"] == pytest.approx(2 * 4 / (10 + 5)) and parts["el"]["f1"] == pytest.approx(2 / 6)
