import pytest

from prefilter_common.evaluation.choice.rules import choose, state_of


def model(precision, recall, cpu_ms=None, low=0.0, point="default"):
    f1 = 2 * precision * recall / (precision + recall)
    quality = {"f1": f1, "precision": precision, "recall": recall}
    metrics = {**quality, "intervals": {key: [value - low, value] for key, value in quality.items()}}
    return {
        "operating_points": {point: metrics},
        "cpu_ms": cpu_ms,
        "timed_on": "x",
        "timed_with": None,
        "beats_floor": True,
    }


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
def test_too_slow_is_out_and_a_faster_engine_is_the_fix(ms):
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


def test_figures_of_another_engine_than_the_latency_are_a_caution():
    other = "onnxruntime-int8 after first stage (F1 91.0% in the benchmark)"
    choice = choose({"a": {**model(0.96, 0.96, 10), "timed_with": other}})
    assert choice["selected"] == "a" and any(other in caution for caution in choice["cautions"])
    untimed = choose({"a": {**model(0.96, 0.96), "timed_with": other}})  # its stages are gone
    assert not any(other in caution for caution in untimed["cautions"])


def test_a_model_is_judged_at_its_default_point_not_at_the_best_on_test():
    both = model(0.89, 0.97, 10)
    both["operating_points"] |= model(0.97, 0.93, point="high_precision")["operating_points"]
    assert choose({"a": both})["selected"] is None


def traffic(differ, part="language and length el, short", uncovered=(), share=0.0):
    verdict = "a and b DIFFER" if differ else "no difference shown"
    slices = [{"by": "language and length", "value": "el, short", "rates": [0.08, 0.01], "only_first": 30,
               "only_second": 1}]  # fmt: skip
    point = {"differ": differ, "verdict": verdict, "worst_slice": part if differ else None, "rates": [0.052, 0.021],
             "only_first": 35, "only_second": 4, "slices": slices}  # fmt: skip
    pair = {"models": ["a", "b"], "points": {"default": point}}
    return {"pairs": [pair], "uncovered": list(uncovered), "uncovered_share": share}


SLOW_AND_FAST = {"a": model(0.97, 0.97, 40), "b": model(0.97, 0.97, 10)}
QUEUES = {name: f"results/review_queue_{name}.jsonl" for name in "ab"}


def test_speed_decides_nothing_between_latencies_of_other_articles_or_machines():
    fast, slow = model(0.96, 0.95, 5), model(0.97, 0.95, 9)
    assert choose({"a": fast, "b": slow})["selected"] == "a"
    choice = choose({"a": {**fast, "timed_on": "articles of 125 characters"}, "b": slow})
    assert choice["selected"] == "b" and "fastest" not in choice["reason"]
    assert any("a: articles of 125 characters; b: x" in caution for caution in choice["cautions"])
    tied = {"a": {**slow, "cpu_ms": 30, "timed_on": None}, "b": slow}
    assert choose(tied)["selected"] == "a"  # the first of two that nothing tells apart


def test_models_that_differ_on_the_traffic_are_never_decided_by_speed():
    """The disaster: equal F1, and the faster flags 2.1 % of the traffic against 5.2 %."""
    assert choose(SLOW_AND_FAST, traffic=traffic(False))["selected"] == "b"
    choice = choose(SLOW_AND_FAST, traffic=traffic(True), queues=QUEUES)
    assert choice["selected"] is None and choice["tier"] == "undecided"
    assert choice["reason"].startswith("None yet") and "fastest" not in choice["reason"]
    assert "none of the 2 that do has a higher precision" in choice["reason"]
    (objection,) = choice["objections"]
    assert "b misses commerce in language and length el, short or a blocks" in objection["suspect"]
    assert objection["to_label"] == 20 and objection["file"] == QUEUES["a"]
    # labels in the folder that the same command writes to would be lost
    assert "move the labelled file out of the results folder" in objection["remedy"]
    assert objection["remedy"].endswith("--audited review_queue_a.jsonl")


def test_a_weighted_share_that_rounding_puts_below_the_minimum_meets_it():
    """18 of 20, each for 34 / 20 texts, make 0.8999999999999999."""
    found = audit((0.8999999999999999, 0.95), (0.8999999999999999, 0.95), 30)
    choice = choose(SLOW_AND_FAST, audit=found)
    assert choice["models"]["a"]["source"] == "audit" and "precision" not in choice["models"]["a"]["misses"]["minimum"]


@pytest.mark.parametrize("quality", [(0.97, 0.97), (0.92, 0.97)])
def test_speed_does_not_break_a_tie_between_models_that_differ(quality):
    """Whichever comes first, and whether they meet the targets or the minimum."""
    for slow, fast in (("a", "b"), ("b", "a")):
        models = {slow: model(*quality, 40), fast: model(*quality, 10)}
        assert choose(models, traffic=traffic(True))["favourite"] == slow == next(iter(models))
        assert choose(models, traffic=traffic(False))["favourite"] == fast


def test_the_fastest_of_models_whose_speed_is_unknown_is_not_named():
    choice = choose({"a": model(0.96, 0.96), "b": model(0.97, 0.96)})
    assert choice["selected"] == "b" and "fastest" not in choice["reason"]
    choice = choose({"a": model(0.96, 0.96, 49), "b": model(0.97, 0.96), "c": model(0.96, 0.95)})
    assert choice["selected"] == "b" and "fastest" not in choice["reason"]
    assert any("latency was not measured (b, c)" in text for text in choice["cautions"])


def audit(a, b, in_slice, better=None, elsewhere=0, random=True):
    def row(precision, recall):
        return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall),
                "enough": True,
                "intervals": {"precision": [precision - 0.03, 1], "recall": [recall - 0.03, 1]}}  # fmt: skip

    by_slice = {"language and length el, short": in_slice, "language and length en, long": elsewhere}
    pair = {"models": ["a", "b"], "n_disputed": in_slice + elsewhere, "disputed_by_slice": by_slice, "better": better}
    drew = {"drew_sample": False}
    models = {"a": row(*a) | drew, "b": row(*b) | drew} if random else {}
    return {"models": models, "pairs": [pair], "of_traffic": True}


def test_an_audit_does_not_rank_the_model_that_drew_it_and_another():
    """Of what the other alone flags the sample has next to nothing, so that its precision is mostly put too high."""
    models = {"a": model(0.97, 0.97, 10), "b": model(0.95, 0.97, 10)}
    seen = audit((0.96, 0.95), (0.99, 0.95), 0)
    assert choose(models, traffic=traffic(False), audit=seen)["favourite"] == "b"
    seen["models"]["a"]["drew_sample"] = True
    choice = choose(models, traffic=traffic(False), audit=seen)
    assert choice["favourite"] == "a" and choice["models"]["a"]["source"] == "audit"
    assert "precision 97.0%" in choice["reason"] and "in the audit" not in choice["reason"]


def test_the_only_one_left_is_not_said_to_be_the_only_one_that_meets_the_targets():
    models = {"a": model(0.97, 0.97, 10), "b": model(0.97, 0.97, 10), "c": model(0.92, 0.97, 10)}
    seen = audit((0.97, 0.97), (0.97, 0.97), 30, better="c", random=False)
    seen["pairs"][0]["models"] = ["b", "c"]
    reason = choose(models, traffic=traffic(False), audit=seen)["reason"]
    assert "and is the only one of the 2 that do which the labelled articles do not show to be wrong more" in reason


def test_the_interval_of_the_audits_f1_encloses_it():
    """Precision 0.99, recall 0.5; and where nothing that was flagged need be commerce."""
    seen = audit((0.99, 0.5), (0.97, 0.4), 0)
    seen["models"]["a"]["intervals"] = {"precision": [0.98, 0.995], "recall": [0.3, 0.6]}
    seen["models"]["b"]["intervals"] = {"precision": [0, 1], "recall": [0, 1]}
    found = choose(SLOW_AND_FAST, audit=seen)["models"]
    assert found["a"]["f1"] == pytest.approx(0.664, abs=1e-3)
    assert found["a"]["intervals"]["f1"] == pytest.approx([0.459, 0.749], abs=1e-3)
    assert found["b"]["intervals"]["f1"] == [0, 1]


def test_labels_of_what_they_dispute_settle_it_and_go_before_the_test_set():
    seen = audit((0.96, 0.95), (0.97, 0.4), 25)
    choice = choose(SLOW_AND_FAST, traffic=traffic(True), audit=seen)
    assert choice["selected"] == "a" and "in the audit" in choice["reason"]
    assert choice["models"]["b"]["source"] == "audit" and choice["models"]["b"]["misses"]["minimum"] == ["f1", "recall"]
    shown = audit((0.95, 0.95), (0.96, 0.95), 30, better="a")
    choice = choose(SLOW_AND_FAST, traffic=traffic(True), audit=shown)
    assert (
        choice["selected"] == "a"
        and "according to the labelled articles is right more often than b" in choice["reason"]
    )


def test_labels_count_where_the_models_differ_most_unless_they_decide():
    same = (0.96, 0.95), (0.95, 0.95)
    few = choose(SLOW_AND_FAST, traffic=traffic(True), audit=audit(*same, 5, elsewhere=40), queues=QUEUES)
    assert few["selected"] is None and few["objections"][0]["to_label"] == 15
    assert "at least 15 more of the articles" in few["objections"][0]["remedy"]
    assert choose(SLOW_AND_FAST, traffic=traffic(True), audit=audit(*same, 20))["selected"] == "a"
    assert choose(SLOW_AND_FAST, traffic=traffic(True), audit=audit(*same, 5, better="a"))["selected"] == "a"


def test_a_favourite_that_the_labels_show_to_be_wrong_is_not_selected():
    """The other one, which is right more often, misses the minimum."""
    models = {"a": model(0.97, 0.97, 40), "b": model(0.97, 0.7, 10)}
    choice = choose(models, traffic=traffic(True), audit=audit((0.97, 0.97), (0.97, 0.7), 60, better="b"))
    assert choice["favourite"] == "a" and choice["selected"] is None
    assert "b is right more often, though it misses the minimum for F1, recall" in choice["objections"][0]["suspect"]
    assert choice["objections"][0]["to_label"] == 0


def test_a_handful_of_audited_articles_does_not_replace_the_test_set():
    tiny = audit((0.5, 0.5), (0.5, 0.5), 0)
    for row in tiny["models"].values():
        row["enough"] = False
    uncovered = choose(SLOW_AND_FAST, traffic={**traffic(False), "uncovered_share": 0.9}, audit=tiny)
    assert any("do not cover" in row["suspect"] for row in uncovered["objections"])
    choice = choose(SLOW_AND_FAST, audit=tiny)
    assert choice["selected"] == "b" and choice["models"]["b"]["source"] == "test"
    choice = choose(SLOW_AND_FAST, traffic=traffic(False), audit=tiny)
    assert any("its precision in production was not measured" in text for text in choice["cautions"])


def test_a_model_that_flags_none_of_the_audited_commerce_is_not_selected():
    seen = audit((0.97, 0.97), (0.97, 0.97), 0)
    nothing = {"precision": None, "recall": 0.0, "f1": 0.0, "intervals": {"precision": [0, 1], "recall": [0, 0.2]}}
    seen["models"]["b"] |= nothing
    choice = choose(SLOW_AND_FAST, traffic=traffic(False), audit=seen)
    assert choice["selected"] == "a" and choice["models"]["b"]["misses"]["minimum"] == ["f1", "precision", "recall"]


def test_a_model_is_not_beaten_by_one_that_cannot_be_shipped():
    """c is right more often than a, but too slow; b, the less precise, has beaten nobody."""
    models = {"a": model(0.97, 0.97, 40), "b": model(0.92, 0.92, 10), "c": model(0.99, 0.99, 150)}
    pair = {"models": ["a", "c"], "n_disputed": 30, "disputed_by_slice": {}, "better": "c"}
    seen = {"models": {}, "pairs": [pair], "of_traffic": True}
    choice = choose(models, audit=seen)
    assert choice["selected"] == "a" and "right more often" not in choice["reason"]
    assert any("c is right more often, though it misses the minimum for CPU latency" in t for t in choice["cautions"])
    assert choose(models | {"c": model(0.96, 0.96, 45)}, audit=seen)["selected"] == "c"


def test_an_audit_of_other_traffic_covers_nothing():
    other = audit((0.96, 0.96), (0.96, 0.96), 0) | {"of_traffic": False}
    choice = choose({"a": SLOW_AND_FAST["a"]}, traffic=traffic(False, share=0.6), audit=other)
    assert choice["selected"] is None and "60% of the traffic" in choice["objections"][0]["suspect"]


def test_a_model_that_was_compared_with_no_other_on_the_traffic_is_not_chosen():
    """--traffic-models names two of three models."""
    models = SLOW_AND_FAST | {"c": model(0.98, 0.98, 5)}
    choice = choose(models, traffic=traffic(False))
    assert choice["favourite"] == "c" and choice["selected"] is None
    assert "c was not compared with a, b on the traffic" in choice["objections"][0]["suspect"]
    choice = choose(SLOW_AND_FAST | {"c": model(0.7, 0.7, 5)}, traffic=traffic(False))
    assert choice["selected"] == "b"  # c is no rival
    assert choose(SLOW_AND_FAST, traffic=traffic(False))["selected"] == "b"


def test_labels_that_are_no_random_sample_say_only_who_is_right():
    choice = choose(SLOW_AND_FAST, traffic=traffic(True), audit=audit((0.5, 0.5), (0.5, 0.5), 30, "a", random=False))
    assert choice["selected"] == "a" and choice["models"]["a"]["source"] == "test"
    assert any("its precision in production was not measured" in text for text in choice["cautions"])


def test_a_model_known_to_be_worse_explains_a_difference_where_the_test_set_covers_it():
    models = {"a": model(0.97, 0.97, 40), "b": model(0.7, 0.97, 10)}
    assert choose(models, traffic=traffic(True))["selected"] == "a"
    gap = {"by": "language and length", "value": "el, short", "lacks": "have none of it", "n_traffic": 300,
           "traffic_share": 0.3, "to_label": 20}  # fmt: skip
    assert choose(models, traffic=traffic(True, uncovered=[gap]))["selected"] is None


def test_nothing_is_chosen_where_most_of_the_traffic_is_not_covered():
    gap = {"by": "language and length", "value": "el, short", "lacks": "have none of it", "n_traffic": 600,
           "traffic_share": 0.6, "to_label": 20}  # fmt: skip
    choice = choose({"a": SLOW_AND_FAST["a"]}, traffic=traffic(False, uncovered=[gap], share=0.6), queues=QUEUES)
    assert choice["selected"] is None and "60% of the traffic" in choice["objections"][0]["suspect"]
    assert "20 of el, short" in choice["objections"][0]["remedy"]
    measured = audit((0.96, 0.96), (0.96, 0.96), 0)
    assert choose({"a": SLOW_AND_FAST["a"]}, traffic=traffic(False, uncovered=[gap], share=0.6), audit=measured)[
        "selected"
    ]
    (objection,) = choose({"a": SLOW_AND_FAST["a"]}, traffic=traffic(False, share=0.7))["objections"]
    assert "each of them is less than 1% of it" in objection["suspect"]


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


def test_a_model_exactly_at_the_criteria_meets_them():
    exact = model(0.95, 0.95, 49)
    exact["operating_points"]["default"] |= {"f1": 0.95, "recall": 0.90}
    assert choose({"a": exact})["tier"] == "target"
    exact["operating_points"]["default"] |= {"f1": 0.90, "precision": 0.90, "recall": 0.85}
    assert choose({"a": exact})["tier"] == "minimum"


def test_of_equally_precise_models_the_one_with_the_higher_f1():
    assert choose({"a": model(0.93, 0.88, 60), "b": model(0.93, 0.92, 90)})["selected"] == "b"


def test_of_equally_fast_models_the_more_precise_one():
    assert choose({"a": model(0.96, 0.99, 10), "b": model(0.98, 0.95, 10)})["selected"] == "b"


def test_the_largest_part_that_is_not_covered_is_named_whatever_the_order():
    """Only parts by language and length at once: the others overlap with them."""
    small, large = (
        {"by": "language and length", "value": value, "lacks": f"have none of {value}", "n_traffic": n,
         "traffic_share": n / 1_000, "to_label": n // 20}
        for value, n in (("el, short", 200), ("hu, short", 400))
    )  # fmt: skip
    whole = {**large, "by": "language", "value": "hu", "n_traffic": 500}
    seen = traffic(False, uncovered=[small, whole, large], share=0.6)
    (objection,) = choose({"a": SLOW_AND_FAST["a"]}, traffic=seen)["objections"]
    assert "the largest part is hu, short; the labelled articles have none of hu, short" in objection["suspect"]
    assert (objection["part"], objection["to_label"]) == ("language and length hu, short", 20)
    assert "at least 20 of hu, short (40% of the traffic); 10 of el, short (20% of the traffic)" in objection["remedy"]


@pytest.mark.parametrize(
    ("best", "better", "selected"), [("a", True, "a"), ("a", False, None), ("b", True, None), ("c", True, None)]
)
def test_a_difference_on_the_traffic_is_explained_only_where_the_test_set_shows_which_is_better(best, better, selected):
    models = {"a": model(0.98, 0.97, 40), "b": model(0.97, 0.97, 10)}
    comparison = {"best": best, "models": {name: {"best_is_better": better} for name in "ab" if name != best}}
    assert choose(models, comparison, traffic(True))["selected"] == selected


def test_a_model_that_is_no_rival_does_not_keep_speed_from_deciding():
    """It differs from one of them on the traffic, but misses the minimum."""
    seen = traffic(False)
    seen["pairs"].append({**traffic(True)["pairs"][0], "models": ["a", "c"]})
    assert choose(SLOW_AND_FAST | {"c": model(0.7, 0.7, 5)}, traffic=seen)["favourite"] == "b"
