import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from prefilter_common.statistics.comparison import (
    articles_to_tell_apart,
    compare_with_best,
    detectable_difference,
    holm,
    mcnemar,
    paired_f1_difference,
)


def test_mcnemar_known_answers():
    # 2 · (1 + 10 + 45) / 1024: two discordant articles against eight
    assert mcnemar(2, 8) == pytest.approx(112 / 1024)
    assert mcnemar(8, 2) == mcnemar(2, 8)
    assert mcnemar(0, 5) == pytest.approx(2 / 32) and mcnemar(0, 0) == 1 and mcnemar(4, 4) == 1
    # Agresti, Categorical Data Analysis, table 10.1: 86 and 150 discordant, z² = 17.36
    assert mcnemar(86, 150) == pytest.approx(2 * norm.sf(np.sqrt(17.36)), rel=0.3)


def test_holm_known_answer():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1] and holm([]).tolist() == []


@pytest.mark.slow
def test_the_bootstrap_of_the_difference_is_that_of_whole_articles():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 150)
    a, b = (np.where(rng.random(150) < error, 1 - labels, labels).astype(bool) for error in (0.08, 0.2))
    gap, interval, p = paired_f1_difference(labels, a, b, seed=0)
    assert gap == pytest.approx(f1_score(labels, a) - f1_score(labels, b))
    drawn = []
    for _ in range(400):
        i = np.concatenate([rng.choice(np.flatnonzero(labels == k), (labels == k).sum()) for k in (0, 1)])
        drawn.append(f1_score(labels[i], a[i]) - f1_score(labels[i], b[i]))
    assert interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert 0 < p < 0.05
    assert paired_f1_difference(labels, a, b, seed=0) == (gap, interval, p)


def test_no_difference_seen_is_not_no_difference():
    labels = np.repeat([0, 1], 30)
    gap, (low, high), p = paired_f1_difference(labels, labels == 1, labels == 1, seed=0)
    assert gap == 0 and p > 0.5 and -0.047 < low < -0.02 and 0.02 < high < 0.047


# Per setting: articles, share of decisions that differ, share of these that only the second model gets right.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "differ", "worse", "least", "most"),
    [
        (190, 0.02, 0.5, 0.93, 0.97),  # four decisions are expected to differ
        (190, 0.02, 0.8, 0.93, 0.97),
        (190, 0.012, 1.0, 0.93, 0.995),  # two or three, all for the worse: too narrow an interval shows here
        (190, 0.0145, 1.0, 0.93, 0.98),
        (190, 0.08, 0.5, 0.93, 0.97),
        (190, 0.10, 0.7, 0.93, 0.97),
        (1_000, 0.005, 0.5, 0.93, 0.97),
        (1_000, 0.005, 1.0, 0.93, 0.97),
        (1_000, 0.02, 0.8, 0.93, 0.97),
        (1_000, 0.10, 0.5, 0.93, 0.97),
        (60, 0.10, 0.5, 0.93, 0.985),
        (60, 0.02, 0.5, 0.98, 1.0),  # one: an interval that does not collapse then holds the truth nearly always
    ],
)
def test_95_of_100_intervals_of_the_f1_difference_hold_the_truth(monkeypatch, n, differ, worse, least, most):
    monkeypatch.setattr("prefilter_common.statistics.comparison.PAIRED_DRAWS", 1_000)
    rng, runs = np.random.default_rng(2), 1_500
    both_wrong, lost, gained = 0.02, differ * worse, differ * (1 - worse)
    sizes = n - round(0.47 * n), round(0.47 * n)
    outcomes = {  # neither flags, only b, only a, both
        0: [1 - differ - both_wrong, gained, lost, both_wrong],
        1: [both_wrong, lost, gained, 1 - differ - both_wrong],
    }

    def f1(recall, false_alarms):
        return 2 * sizes[1] * recall / (sizes[1] * (1 + recall) + sizes[0] * false_alarms)

    truth = f1(1 - both_wrong - lost, both_wrong + lost) - f1(1 - both_wrong - gained, both_wrong + gained)
    labels, held = np.repeat([0, 1], sizes), 0
    for seed in range(runs):
        drawn = [np.repeat(range(4), rng.multinomial(sizes[label], outcomes[label])) for label in (0, 1)]
        kind = np.concatenate(drawn)
        _, (low, high), _ = paired_f1_difference(labels, kind >= 2, kind % 2 == 1, seed)
        assert low < high
        held += low <= truth <= high
    noise = 2 * np.sqrt(0.05 * 0.95 / runs)
    assert least - noise <= held / runs <= most + noise


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(3, 3, 300), (15, 12, 1_000), (1, 0, 50)])
def test_the_difference_that_would_have_been_seen_is_seen_in_80_of_100(only_a, only_b, n):
    gap = detectable_difference(only_a, only_b, n, alpha=0.025)
    share = max((only_a + only_b) / n, gap)
    a, b, _ = np.random.default_rng(0).multinomial(n, [(share + gap) / 2, (share - gap) / 2, 1 - share], 2_000).T
    found = np.mean([mcnemar(*pair) <= 0.025 for pair in zip(a, b, strict=True)])
    assert 0.77 < found < 0.84
    assert detectable_difference(0, 0, 5) == 1


def missing(labels, n):
    """Decisions that miss the first ``n`` articles, and are else right."""
    return (labels == 1) & (np.arange(len(labels)) >= n)


def compared(labels, decisions):
    f1 = {name: f1_score(labels, decided) for name, decided in decisions.items()}
    return compare_with_best(labels, decisions, f1, seed=0)["models"]


def test_better_needs_both_tests_to_favour_the_same_model():
    """The one with the higher F1 misses no commerce, but is wrong more often on journalism; both are significant."""
    labels = np.array([1] * 100 + [0] * 900)
    row = compared(labels, {"eager": np.arange(1_000) < 200, "careful": missing(labels, 70)})["careful"]
    assert row["f1_difference"] > 0.2 and max(row["p_bootstrap"], row["p_mcnemar"]) < 0.03
    assert not row["best_is_better"] and "careful is right more often" in row["verdict"]


def test_better_needs_both_tests_and_a_correction_for_several_models():
    labels = np.array([1] * 90 + [0] * 100)
    right, poor = missing(labels, 0), missing(labels, 6)
    row = compared(labels, {"a": right, "b": missing(labels, 5)})["b"]
    assert row["p_bootstrap"] < 0.05 < row["p_mcnemar"] and not row["best_is_better"]
    row = compared(labels, {"a": right, "b": poor})["b"]
    assert row["p_adjusted"] == row["p_mcnemar"] == 2 / 64 and row["best_is_better"]
    rows = compared(labels, {"a": right, "b": poor, "c": poor})
    assert [row["p_adjusted"] for row in rows.values()] == [6 / 64] * 2  # three pairs
    assert not any(row["best_is_better"] for row in rows.values())


def test_as_many_articles_as_are_said_to_be_needed_give_the_power_of_80_percent():
    n = articles_to_tell_apart(12, 6, 200)
    only_a, only_b, _ = np.random.default_rng(0).multinomial(n, [0.06, 0.03, 0.91], size=2_000).T
    found = np.mean([mcnemar(a, b) < 0.05 for a, b in zip(only_a, only_b, strict=True)])
    assert 0.75 < found < 0.85
    assert articles_to_tell_apart(5, 5, 200) is None and articles_to_tell_apart(
        3, 1, 190, alpha=0.01
    ) > articles_to_tell_apart(3, 1, 190)


def test_better_is_said_only_where_it_is_supported():
    labels = np.array([1] * 89 + [0] * 101)
    best, close, poor = labels.copy(), labels.copy(), labels.copy()
    best[:2], close[3:6], poor[10:35] = 0, 0, 0
    decisions = {"close": close.astype(bool), "best": best.astype(bool), "poor": poor.astype(bool)}
    result = compare_with_best(labels, decisions, {n: f1_score(labels, d) for n, d in decisions.items()}, seed=0)
    assert result["best"] == "best" and set(result["models"]) == {"close", "poor"}
    close, poor = result["models"]["close"], result["models"]["poor"]
    assert poor["best_is_better"] and poor["verdict"].startswith("best is better than poor: ")
    assert not close["best_is_better"] and close["articles_needed"] > 190
    assert "best is not shown to be better than close on these 190 articles; about" in close["verdict"]
    assert compare_with_best(labels, {"a": best == 1}, {"a": 1}, seed=0)["models"] == {}


def test_the_articles_needed_are_those_of_the_corrected_test_and_more_than_there_were():
    labels = np.array([1] * 90 + [0] * 100)
    rows = compared(labels, {"a": missing(labels, 0), "b": missing(labels, 3), "c": missing(labels, 4)})
    assert rows["b"]["articles_needed"] == articles_to_tell_apart(3, 0, 190, alpha=0.05 / 3)
    assert articles_to_tell_apart(100, 0, 1_000) == 1_001  # 77 would be enough
