import pytest

from prefilter_common.evaluation.choice.rules import choose, state_of


def model(precision, recall, cpu_ms=None, low=0.0, point="default"):
    f1 = 2 * precision * recall / (precision + recall)
    quality = {"f1": f1, "precision": precision, "recall": recall}
    metrics = {**quality, "intervals": {key: [value - low, value] for key, value in quality.items()}}
    return {"operating_points": {point: metrics}, "cpu_ms": cpu_ms, "beats_floor": True}


def test_of_several_that_meet_the_targets_the_fastest():
    choice = choose({"a": model(0.99, 0.97, 40), "b": model(0.96, 0.95, 20), "c": model(0.92, 0.99, 1)})
    assert (choice["selected"], choice["tier"]) == ("b", "target")
    assert "the fastest of the 2" in choice["reason"]
    assert [text.split(":")[0] for text in choice["cautions"]] == ["it was judged on test articles only"]


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
    assert choice["selected"] == "a" and len(choice["cautions"]) == 5
    assert "CPU latency not measured" in choice["reason"]


def test_a_model_is_judged_at_its_default_point_not_at_the_best_on_test():
    both = model(0.89, 0.97, 10)
    both["operating_points"] |= model(0.97, 0.93, point="high_precision")["operating_points"]
    assert choose({"a": both})["selected"] is None


def traffic(differ, part="language and length el, short", uncovered=(), share=0.0):
    verdict = "a and b DIFFER" if differ else "no difference shown"
    slices = [{"by": "language and length", "value": "el, short", "rates": [0.08, 0.01]}]
    point = {"differ": differ, "verdict": verdict, "worst_slice": part if differ else None, "rates": [0.052, 0.021],
             "only_first": 35, "only_second": 4, "slices": slices}  # fmt: skip
    pair = {"models": ["a", "b"], "points": {"default": point}}
    return {"pairs": [pair], "uncovered": list(uncovered), "uncovered_share": share}


SLOW_AND_FAST = {"a": model(0.97, 0.97, 40), "b": model(0.97, 0.97, 10)}
QUEUES = {name: f"results/review_queue_{name}.jsonl" for name in "ab"}


def test_models_that_differ_on_the_traffic_are_never_decided_by_speed():
    """The disaster: equal F1, and the faster flags 2.1 % of the traffic against 5.2 %."""
    assert choose(SLOW_AND_FAST, traffic=traffic(False))["selected"] == "b"
    choice = choose(SLOW_AND_FAST, traffic=traffic(True), queues=QUEUES)
    assert choice["selected"] is None and choice["tier"] == "undecided"
    assert choice["reason"].startswith("None yet") and "fastest" not in choice["reason"]
    (objection,) = choice["objections"]
    assert "b misses commerce in language and length el, short or a blocks" in objection["suspect"]
    assert objection["to_label"] == 20 and "review_queue_" in objection["file"]
    assert f"--audited {objection['file']}" in objection["remedy"]


def audit(a, b, n_disputed, better=None):
    def row(precision, recall):
        return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall),
                "intervals": {"precision": [precision - 0.03, 1], "recall": [recall - 0.03, 1]}}  # fmt: skip

    pair = {"models": ["a", "b"], "n_disputed": n_disputed, "better": better}
    return {"models": {"a": row(*a), "b": row(*b)}, "pairs": [pair]}


def test_labels_of_what_they_dispute_settle_it_and_go_before_the_test_set():
    seen = audit((0.96, 0.95), (0.97, 0.4), 25)
    choice = choose(SLOW_AND_FAST, traffic=traffic(True), audit=seen)
    assert choice["selected"] == "a" and "in the audit" in choice["reason"]
    assert choice["models"]["b"]["source"] == "audit" and choice["models"]["b"]["misses"]["minimum"] == ["f1", "recall"]
    too_few = audit((0.96, 0.95), (0.95, 0.95), 5)
    assert choose(SLOW_AND_FAST, traffic=traffic(True), audit=too_few)["selected"] is None
    shown = audit((0.95, 0.95), (0.96, 0.95), 30, better="a")
    assert choose(SLOW_AND_FAST, traffic=traffic(True), audit=shown)["selected"] == "a"


def test_a_model_known_to_be_worse_explains_a_difference_where_the_test_set_covers_it():
    models = {"a": model(0.97, 0.97, 40), "b": model(0.7, 0.97, 10)}
    assert choose(models, traffic=traffic(True))["selected"] == "a"
    gap = {"by": "language and length", "value": "el, short", "lacks": "has none of it", "n_traffic": 300,
           "traffic_share": 0.3, "to_label": 20}  # fmt: skip
    assert choose(models, traffic=traffic(True, uncovered=[gap]))["selected"] is None


def test_nothing_is_chosen_where_most_of_the_traffic_is_not_covered():
    gap = {"by": "language and length", "value": "el, short", "lacks": "has none of it", "n_traffic": 600,
           "traffic_share": 0.6, "to_label": 20}  # fmt: skip
    choice = choose({"a": SLOW_AND_FAST["a"]}, traffic=traffic(False, uncovered=[gap], share=0.6), queues=QUEUES)
    assert choice["selected"] is None and "60% of the traffic" in choice["objections"][0]["suspect"]
    assert "20 of el, short" in choice["objections"][0]["remedy"]


def test_a_point_above_the_minimum_is_not_shown_to_be_where_its_interval_is_not():
    assert state_of(0.96, [0.91, 0.99], 0.9) == "shown"
    assert state_of(0.96, [0.86, 0.99], 0.9) == "not shown"
    assert state_of(0.88, [0.80, 0.95], 0.9) == "missed"
    choice = choose({"a": model(0.96, 0.96, 10, low=0.1)})
    assert choice["selected"] == "a" and not choice["shown"]
    assert choice["models"]["a"]["states"] == {"f1": "not shown", "precision": "not shown", "recall": "shown"}
    assert choose({"a": model(0.96, 0.96, 10)})["shown"]


def test_a_single_model_is_not_the_only_one_that_does():
    assert "only one" not in choose({"a": model(0.96, 0.96, 10)})["reason"]
