import numpy as np
import pytest
from scipy.special import expit

from prefilter_common.benchmark.stages.limits import MARGINS, changed_share, choose_short_read, limits_of
from prefilter_common.scoring.reading import outside

THRESHOLDS = {"default": 0.5, "high_precision": 0.8}


def choose(labels, full, short, n_tokens, thresholds=THRESHOLDS):
    """The copies are as the articles."""
    twice = {length: np.tile(scores, 2) for length, scores in short.items()}
    return choose_short_read(labels, np.tile(full, 2), twice, np.tile(n_tokens, 2), thresholds, 0.001)


@pytest.fixture
def articles():
    """400 articles of 400 tokens: the full read is right, a short one unsure of a quarter and right on the rest."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    sign = np.where(labels == 1, 1, -1)
    hard = np.arange(400) % 8 < 2
    full = expit(6.0 * sign)
    short = expit(np.where(hard, rng.normal(0, 0.5, 400), 6 * sign))
    return labels, full, short, np.full(400, 400), hard


def test_the_share_that_a_stage_changes_counts_one_more_for_each_limit():
    """Of five texts it decides four, one as commerce that the full read calls journalism at 0.8, one the other way."""
    full, own = np.array([0.9, 0.7, 0.9, 0.1, 0.9]), np.array([0.9, 0.9, 0.1, 0.1, 0.1])
    decided = np.array([True, True, True, True, False])
    assert changed_share(full, own, decided, THRESHOLDS) == (2 + 2) / (5 + 1)
    assert changed_share(full, own, np.zeros(5, dtype=bool), THRESHOLDS) == 2 / 6


def test_nothing_is_beyond_a_limit_of_0_or_1():
    """Where no limit is wide enough; a score may be rounded to either."""
    scores = np.array([0.0, 0.2, 0.9, 1.0])
    assert outside(scores, 0.0, 1.0).tolist() == [False] * 4
    assert outside(scores, 0.2, 1.0).tolist() == [True, True, False, False]
    assert outside(scores, 0.0, 0.9).tolist() == [False, False, True, True]


def test_what_lies_between_two_operating_points_is_commerce_at_one_and_journalism_at_the_other():
    full, decided = np.array([0.6] * 9), np.ones(9, dtype=bool)
    for own in (0.001, 0.999):
        low, high = limits_of(full, np.full(9, own), decided, THRESHOLDS, 0.0)
        assert low < own < high
        assert changed_share(full, np.full(9, own), decided, THRESHOLDS) == (9 + 2) / (9 + 1)
    low, high = limits_of(full, full, decided, THRESHOLDS, 0.0)  # sure of nothing that could be wrong
    assert (low, high) == pytest.approx((expit(-0.25), expit(np.log(4) + 0.25)), abs=1e-6)


def test_a_stage_is_calibrated_on_what_it_cuts_before_its_limits_are_chosen(articles):
    """However much too sure it is, and whatever it says of articles that it reads in full."""
    labels, full, short, n_tokens, _ = articles
    sure = expit(3 * np.log(short / (1 - short)))
    stage, note = choose(labels, full, {64: short}, n_tokens)
    other, other_note = choose(labels, full, {64: sure}, n_tokens)
    assert other.temperature == pytest.approx(3 * stage.temperature, rel=0.01) and other_note == note
    whole = np.arange(400) >= 300
    partly = np.where(whole, 50, n_tokens)
    assert choose(labels, full, {64: short}, partly) == choose(labels, full, {64: np.where(whole, 0.5, short)}, partly)


@pytest.mark.parametrize(("n_cut", "step", "found"), [(19, 1, False), (20, 1, True), (20, 2, False)])
def test_twenty_articles_of_both_labels_that_are_cut_can_choose(articles, n_cut, step, found):
    labels, full, _, _, _ = articles
    n_tokens = np.full(400, 50)
    n_tokens[: step * n_cut : step] = 4000  # every second article is journalism
    assert (choose(labels, full, {64: full}, n_tokens)[0] is not None) == found


def test_only_the_unsure_articles_are_read_again(articles):
    labels, full, short, n_tokens, hard = articles
    stage, note = choose(labels, full, {64: short}, n_tokens)
    assert stage.max_length == 64
    assert stage.low < 0.5 and stage.high > 0.8
    assert 0.5 * hard.mean() < note["read_in_full"] <= hard.mean()
    assert note["tokens"] == pytest.approx(64 / 400 + note["read_in_full"])


def test_of_two_lengths_the_one_that_reads_less_in_all_is_chosen(articles):
    labels, full, short, n_tokens, _ = articles
    unsure_of_all = np.random.default_rng(1).uniform(0.4, 0.6, 400)
    assert choose(labels, full, {32: unsure_of_all, 96: short}, n_tokens)[0].max_length == 96


def test_a_first_read_that_knows_nothing_is_not_used(articles):
    labels, full, _, n_tokens, _ = articles
    wrong = expit(np.random.default_rng(1).normal(0, 6, 400))  # sure of itself, whatever the label
    stage, note = choose(labels, full, {64: wrong}, n_tokens)
    assert stage is None and "saves a tenth" in note["reason"]


def test_the_limits_leave_nothing_outside_that_is_wrong(articles):
    labels, full, short, n_tokens, _ = articles
    short = short.copy()
    short[[1, 3, 5, 7, 9, 11]] = expit(-3.0)  # commerce that looks like journalism, not quite as sure as the rest
    stage, _ = choose(labels, full, {64: short}, n_tokens)
    assert stage.low < expit(-3.0 / stage.temperature) < stage.high


def test_short_articles_cannot_choose(articles):
    labels, full, short, _, _ = articles
    assert choose(labels, full, {64: short}, np.full(400, 50))[0] is None


def test_thresholds_at_the_ends_are_no_accident(articles):
    labels, full, short, n_tokens, _ = articles
    assert choose(labels, full, {64: short}, n_tokens, {"default": 0.0, "never": 1.0})[0] is None


def test_an_article_that_is_wrong_moves_one_limit_alone(articles):
    labels, full, short, n_tokens, _ = articles
    stage, note = choose(labels, full, {64: short}, n_tokens)
    wrong = short.copy()
    wrong[1] = expit(-7.5)  # commerce that looks like journalism, surer than any other
    other, other_note = choose(labels, full, {64: wrong}, n_tokens)
    assert other.low < expit(-7.5 / other.temperature) and other.high == pytest.approx(stage.high, abs=0.02)
    assert note["tokens"] < other_note["tokens"] < 0.9


def test_a_share_of_the_decisions_may_change_on_each_side():
    n = 2000
    full, own, may = np.tile([0.02, 0.98], n // 2), np.tile([0.01, 0.99], n // 2), np.ones(n, bool)
    narrowest = [round(float(expit(sign * MARGINS[0])), 6) for sign in (-1, 1)]

    def limits(wrong):
        changed = own.copy()
        changed[1 : 2 * wrong : 2] = 0.001  # commerce that looks like journalism
        return list(limits_of(full, changed, may, {"default": 0.5}, 0.001))

    # Two of 2,000: one that is seen, and one that is to be expected on others.
    assert limits(0) == limits(1) == narrowest
    assert limits(2)[0] < 0.001 and limits(2)[1] == narrowest[1]
    low, high = limits_of(full, 1 - own, may, {"default": 0.5}, 0.001)  # always wrong, at log-odds of 4.6
    assert low < 0.01 and high > 0.99
