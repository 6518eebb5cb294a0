"""From a labelled stratified sample to precision and recall in production."""

import numpy as np
import pytest
from conftest import write_jsonl

from prefilter_common.articles import Article
from prefilter_common.errors import InputError
from prefilter_common.evaluation.traffic.audit import audit_section, read_audit
from prefilter_common.evaluation.traffic.labelling import audit_sample
from prefilter_common.statistics.survey import Sample, allocate, production


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


def test_the_estimates_are_unbiased_and_the_intervals_hold_the_truth(monkeypatch):
    """400 audits of one traffic, drawn by the first model's flags; the second model is judged on them too."""
    monkeypatch.setattr("prefilter_common.statistics.survey.DRAWS", 800)
    rng, runs = np.random.default_rng(5), 400
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
            found = production(sample, (stratum >= 4).astype(int), commerce[units], flags[units], seed)
            for rate, true in truth[name].items():
                low, high = found["intervals"][rate]
                held[name][rate] += low - 1e-4 <= true <= high + 1e-4
                values[name][rate].append(found[rate])
    assert all(0.91 <= n / runs <= 0.995 for rates in held.values() for n in rates.values()), held
    for name, rates in values.items():
        for rate, found in rates.items():
            assert np.mean(found) == pytest.approx(truth[name][rate], abs=0.02, rel=0.05), (name, rate)


def test_a_miss_that_was_not_drawn_is_not_no_miss():
    stratum = np.repeat([0, 1], [50, 100])
    commerce, flagged = stratum == 0, stratum == 0
    sample = Sample(stratum, np.array([50, 5_000]), np.ones(150))
    found = production(sample, stratum, commerce, flagged, 0)
    assert found["recall"] == 1 and found["intervals"]["recall"][0] < 0.5  # 1 of 100 would be 50 of 5,000
    assert found["precision"] == 1 and found["intervals"]["precision"] == [1, 1]  # all of them were labelled


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
    section = audit_section(audit, {"m": scores[where], "n": 1 - scores[where]}, {"m": 0.5, "n": 0.5}, 0)
    found = section["models"]["m"]
    assert found["precision"] == pytest.approx(truth[scores > 0.5].mean(), abs=0.1)
    assert found["intervals"]["recall"][0] <= (scores > 0.5)[truth].mean() <= found["intervals"]["recall"][1]
    assert {row["by"] for row in found["slices"]} == {"language", "characters", "language and length"}
    (pair,) = section["pairs"]
    assert pair["better"] == "m" and pair["n_disputed"] == 300
    # half of the labels, in the order of the file, are a sample too
    half = read_audit(write_jsonl(tmp_path / "half.jsonl", labelled[:150] + rows[150:]))
    assert len(half.articles) == 150 and half.sample.weights.sum() == pytest.approx(2_000, rel=0.02)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"title": "t", "content": "c", "label": 1}], "article 1 (line-1) has no valid stratum"),
        ([{"title": "t", "content": "c", "label": None, "stratum": "x", "stratum_size": 3, "copies": 1, "why": "w"}],
         "needs articles of both labels"),
    ],
)  # fmt: skip
def test_a_file_that_was_not_drawn_or_not_labelled_is_refused(tmp_path, rows, words):
    with pytest.raises(InputError) as error:
        read_audit(write_jsonl(tmp_path / "a.jsonl", rows))
    assert words in str(error.value)
