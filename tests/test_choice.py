import pytest

from prefilter_common.choice import choose


def model(precision, recall, cpu_ms=None, low=0.0, point="default"):
    f1 = 2 * precision * recall / (precision + recall)
    quality = {"f1": f1, "precision": precision, "recall": recall}
    metrics = {**quality, "intervals": {key: [value - low, value] for key, value in quality.items()}}
    return {"operating_points": {point: metrics}, "cpu_ms": cpu_ms, "beats_floor": True}


def test_of_several_that_meet_the_targets_the_fastest():
    choice = choose({"a": model(0.99, 0.97, 40), "b": model(0.96, 0.95, 20), "c": model(0.92, 0.99, 1)})
    assert (choice["selected"], choice["tier"]) == ("b", "target")
    assert "the fastest of the 2" in choice["reason"] and choice["cautions"] == []


def test_otherwise_the_highest_precision_of_those_that_meet_the_minimum():
    choice = choose({"a": model(0.92, 0.99, 1), "b": model(0.94, 0.90, 99), "c": model(0.89, 0.99, 1)})
    assert (choice["selected"], choice["tier"]) == ("b", "minimum")
    assert "target for" in choice["reason"] and choice["models"]["c"]["misses"]["minimum"] == ["precision"]


@pytest.mark.parametrize("ms", [100, 250])
def test_too_slow_is_out_and_a_faster_engine_is_the_mend(ms):
    choice = choose({"a": model(0.99, 0.99, ms)})
    assert choice["selected"] is None and "a faster engine is needed" in choice["reason"]


def test_none_meets_the_minimum():
    choice = choose({"a": model(0.7, 0.9, 10), "b": model(0.89, 0.95, 10)})
    assert choice["selected"] is None and choice["tier"] == "none"
    assert "more data is needed" in choice["reason"] and "Closest is b" in choice["reason"]
    assert choose({})["reason"] == "No model could be evaluated."


def test_what_was_not_measured_or_not_certain_is_a_caution():
    choice = choose({"a": {**model(0.96, 0.96, low=0.1), "beats_floor": False}})
    assert choice["selected"] == "a" and len(choice["cautions"]) == 4
    assert "CPU latency not measured" in choice["reason"]


def test_a_model_is_judged_at_its_default_point_not_at_the_best_on_test():
    both = model(0.89, 0.97, 10)
    both["operating_points"] |= model(0.97, 0.93, point="high_precision")["operating_points"]
    assert choose({"a": both})["selected"] is None
