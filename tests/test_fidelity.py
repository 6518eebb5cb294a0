import numpy as np
import pytest

from prefilter_common.benchmark.fidelity import (
    Tolerance,
    _worst_f1_difference,
    compare_scores,
    refusal,
    unchanged_needed,
)
from prefilter_common.statistics.intervals import clopper_pearson

THRESHOLDS = {"default": 0.5, "high_precision": 0.9}
TOLERANCE = Tolerance()


@pytest.fixture
def articles():
    """Labels and scores of 1,000 articles, all decided rightly at both thresholds."""
    labels = np.arange(1000) % 2
    return labels, np.where(labels == 1, 0.95, 0.05)


def test_the_same_scores_are_inside(articles):
    labels, scores = articles
    found = compare_scores(labels, scores, scores, THRESHOLDS, 0)
    assert found["max_score_difference"] == found["mean_score_difference"] == 0
    point = found["points"]["default"]
    assert point["changed"] == point["f1_difference"] == 0 and point["n"] == 1000
    assert refusal(found, TOLERANCE, reads_less=False) is None


def test_where_the_reference_finds_no_commerce_a_shorter_read_is_not_judged_by_f1(articles):
    labels, scores = articles
    low = 0.5 * scores
    found = compare_scores(labels, low, 1 - low, THRESHOLDS, 0)
    assert refusal(found, TOLERANCE, reads_less=True) == "no commerce found at default to judge it on"
    assert "of decisions changed" in refusal(found, TOLERANCE, reads_less=False)
    same = compare_scores(labels, low, low, THRESHOLDS, 0)
    assert refusal(same, TOLERANCE, reads_less=False) is None and refusal(same, TOLERANCE, reads_less=True)


def test_no_changed_decision_among_60_articles_is_not_none_of_all():
    """0 of 60 may be 6 % of all; 0 of 400, training articles counted, is less than 1 %."""
    labels = np.repeat([0, 1], 30)
    scores = np.where(labels == 1, 0.95, 0.05)
    found = compare_scores(labels, scores, scores, THRESHOLDS, 0)
    assert found["points"]["default"]["changed_interval"] == [0.0, 0.0596]
    assert found["points"]["default"]["interval"][0] < 0 < found["points"]["default"]["interval"][1]
    why = refusal(found, TOLERANCE, reads_less=False)
    assert why.startswith("0 of 60 decisions changed at default, so up to 6.0% of all may")
    assert why.endswith("takes 368 without one")
    train = np.where(np.arange(340) % 2, 0.97, 0.03)
    found = compare_scores(labels, scores, scores, THRESHOLDS, 0, (train, train))
    assert found["points"]["default"]["n"] == 400 and found["points"]["default"]["f1_limit"] > -0.01
    assert refusal(found, TOLERANCE, False) is None and refusal(found, TOLERANCE, True) is None
    few = "1 of 400 decisions changed at default, so up to 1.4% of all may; to show fewer than 1.0% at this share takes"
    for n, words in ((8, "2.0% of decisions changed"), (1, few)):
        changed = np.where(np.arange(340) < n, 1 - train, train)
        found = compare_scores(labels, scores, scores, THRESHOLDS, 0, (train, changed))
        assert words in refusal(found, TOLERANCE, reads_less=False)


@pytest.mark.parametrize(("changed", "n"), [(1, 400), (5, 700), (9, 1000)])
def test_as_many_articles_as_are_said_to_be_needed_at_the_share_seen_are_enough(articles, changed, n):
    def judged(n, changed):
        scores = np.full(n, 0.05)
        other = np.where(np.arange(n) < changed, 0.95, scores)
        return refusal(compare_scores(None, scores, other, {"default": 0.5}, 0), TOLERANCE, reads_less=False)

    needed = int(judged(n, changed).split()[-1].replace(",", ""))
    assert judged(needed, int(changed / n * needed)) is None
    assert judged(int(0.95 * needed), int(np.ceil(changed / n * 0.95 * needed))) is not None


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_where_no_number_of_articles_would_do(articles, tolerance):
    labels, scores = articles
    found = compare_scores(labels, scores, 1 - scores if tolerance else scores, {"default": 0.5}, 0)
    why = refusal(found, Tolerance(changed=tolerance), reads_less=False)
    assert why == "100.0% of decisions changed at default" if tolerance else "no number of articles would" in why
    why = refusal(compare_scores(labels, scores, scores, {"default": 0.5}, 0), Tolerance(f1_loss=0.0), reads_less=True)
    assert "no number of articles would" in why
    assert unchanged_needed(tolerance) == 0


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_how_many_articles_show_that_f1_is_not_lower(share):
    """The rarer commerce is, the more a changed decision costs, and the more articles it takes."""
    labels = np.arange(100) < 100 * share
    scores = np.where(labels, 0.95, 0.05)
    scores[-2:] = 0.95  # so that F1 is not the same in every resample
    other = np.where(np.arange(100) < 1, 0.05, scores)
    point = compare_scores(labels, scores, other, {"default": 0.5}, 0)["points"]["default"]
    assert point["f1_limit"] < -0.01
    why = refusal({"points": {"default": point}}, TOLERANCE, reads_less=True)
    needed = int(why.split("without a changed decision ")[1].split()[0].replace(",", ""))
    for n, inside in ((needed, True), (int(0.95 * needed), False)):
        more = np.full(n - 100, 0.05)
        found = compare_scores(labels, scores, scores, {"default": 0.5}, 0, (more, more))
        worst = _worst_f1_difference(labels, scores >= 0.5, found["points"]["default"]["changed_interval"][1])
        assert (worst > -0.01) == inside, n


@pytest.mark.parametrize("n", [100, 400])
def test_as_many_articles_as_are_said_to_be_needed_are_enough(n):
    needed = unchanged_needed(1 / n)
    assert clopper_pearson(0, needed)[1] < 1 / n <= clopper_pearson(0, needed - 1)[1]
    for k, inside in ((needed, True), (needed - 1, False)):
        found = compare_scores(None, np.zeros(k), np.zeros(k), {"default": 0.5}, 0)
        assert (refusal(found, Tolerance(changed=1 / n), reads_less=False) is None) == inside


def test_a_decision_changed_at_any_operating_point_counts(articles):
    labels, scores = articles
    other = scores.copy()
    other[labels == 1] -= 0.1  # over the higher threshold only
    found = compare_scores(labels, scores, other, THRESHOLDS, 0)
    assert found["points"]["default"]["changed"] == 0 and found["points"]["high_precision"]["changed"] == 0.5
    assert found["max_score_difference"] == pytest.approx(0.1)
    assert found["mean_score_difference"] == pytest.approx(0.05)
    assert refusal(found, TOLERANCE, reads_less=False) == "50.0% of decisions changed at high_precision"


def test_changes_for_the_better_are_still_changes_of_an_engine_but_not_of_a_shorter_read(articles):
    labels, right = articles
    reference = right.copy()
    reference[:20] = 1 - reference[:20]
    found = compare_scores(labels, reference, right, {"default": 0.5}, 0)
    assert found["points"]["default"]["f1_difference"] > 0
    assert refusal(found, TOLERANCE, reads_less=False) == "2.0% of decisions changed at default"
    assert refusal(found, TOLERANCE, reads_less=True) is None


def test_lost_f1_is_refused_by_its_interval_not_by_its_point(articles):
    labels, scores = articles
    other = scores.copy()
    other[1:16:2] = 0.05  # 8 of 500 commerce articles lost: F1 falls by 0.8 points, perhaps by more than one
    found = compare_scores(labels, scores, other, {"default": 0.5}, 0)
    assert -0.01 < found["points"]["default"]["f1_difference"] < 0
    assert "F1 at default may be 1." in refusal(found, TOLERANCE, reads_less=True)
    assert refusal(found, Tolerance(f1_loss=0.02), reads_less=True) is None


def test_many_easier_texts_do_not_outweigh_a_loss_that_the_labelled_ones_show(articles):
    labels, scores = (array[:200] for array in articles)
    other = scores.copy()
    other[1:13:2] = 0.05  # 6 of 100 commerce articles lost
    easy = np.full(6000, 0.05)
    found = compare_scores(labels, scores, other, {"default": 0.5}, 0, (easy, easy))
    point = found["points"]["default"]
    assert point["changed_interval"][1] < 0.005 and point["f1_limit"] == point["interval"][0] < -0.03
    assert refusal(found, TOLERANCE, reads_less=True).startswith("F1 at default may be")
    other[13:41:2] = 0.05
    found = compare_scores(labels, scores, other, {"default": 0.5}, 0, (easy, easy))
    expected = "F1 at default is 11.1 points lower, according to the labelled articles"
    assert refusal(found, TOLERANCE, reads_less=True) == expected


def test_without_labels_an_engine_is_judged_by_its_decisions_and_a_shorter_read_not_at_all(articles):
    _, scores = articles
    found = compare_scores(None, scores, scores, THRESHOLDS, 0)
    assert found["points"]["default"]["interval"] is None
    assert refusal(found, TOLERANCE, reads_less=False) is None
    assert refusal(found, TOLERANCE, reads_less=True) == "no labels to judge it on"
