"""Every figure of a benchmark's row, computed by hand from two rounds over two articles."""

import numpy as np
import pytest

from prefilter_common.benchmark.fidelity import Tolerance
from prefilter_common.benchmark.rows import Configuration, Reference, judge, row_of
from prefilter_common.benchmark.stages.cascade import Cascade
from prefilter_common.benchmark.timing import Bulk, Single
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.scoring.engines.interface import REFERENCE, EngineName

STAGE = Stage("linear", 1.0, 0.2, 0.8, coverage=0.5, sha256="0" * 64)
INT8 = EngineName("onnxruntime", "int8")
SHAPES = [(0, 1, 10), (1, 1, 10), (0, 1, 20)]


@pytest.fixture
def reference():
    """Three test articles, the last of them a copy of the second, and 400 others, of which stages know half."""
    others = np.where(np.arange(400) % 2, 0.9, 0.1)
    return Reference(
        contract=Contract(max_length=64),
        scores=np.array([0.1, 0.9, 0.9]),
        labels=np.array([0, 1, 1]),
        n_tokens=np.array([10, 20, 20]),
        operations=lambda shape: 1e8 * shape[2],
        cascade=Cascade((), {}),
        more=others,
        unseen=np.arange(400) < 200,
        distinct=np.array([0, 1]),
    )


def test_the_figures_of_a_row(reference):
    rounds = [
        Single(np.array([0.001, 0.003]), np.array([[0.002, 0.0], [0.002, 0.006]]), SHAPES),
        Single(np.array([0.001, 0.001]), np.array([[0.001, 0.0], [0.001, 0.002]]), SHAPES),
    ]
    scores = np.array([0.1, 0.9, 0.0])
    by = np.array([0, 1, 2])  # the last article is not read at all
    facts = {"precision": "int8+fp32", "engine_sha256": None, "load_s": 1.0, "disk_mib": 2.0}
    facts |= {"peak_memory_mib": 3, "peak_memory_bulk_mib": 4}
    row = row_of(
        Configuration(INT8, 64, (STAGE,)), rounds, {16: Bulk(0.5, scores, by), 4: Bulk(1.0, scores, by)}, reference,
        [70.0, 60.0], {"int8": 100.0, "fp32": 50.0}, Tolerance(), facts, reference.more,
    )  # fmt: skip
    # Articles take 3 and 11 ms, then 2 and 4; on average 7 and 3, where the reference takes 70 and 60.
    assert (row["avg_ms"], row["min_ms"], row["max_ms"]) == pytest.approx((5, 2, 11))
    assert (row["tokenize"]["avg_ms"], row["forward"]["avg_ms"]) == pytest.approx((1.5, 3.5))
    assert (row["relative_speed"], row["relative_speed_rounds"]) == (13.0, [10.0, 20.0])
    assert row["articles_per_second"] == {"16": 4.0, "4": 2.0} and row["bulk_relative_speed"] == 0.26
    # 4e9 operations for two articles, at 1e11 a second.
    assert (row["gflop_per_article"], row["bound_ms"], row["share_of_bound"]) == (2.0, 20.0, 5.714)
    assert row["stage_costs"] == [
        {"name": "first stage", "decides": 0.3333, "ms": 1.5},
        {"name": "full read", "decides": 0.3333, "ms": 4.0},
    ]
    assert row["f1"] == pytest.approx(2 / 3)
    assert facts.items() <= row.items() and (row["engine"], row["stages"]) == ("onnxruntime-int8", ["first stage"])


@pytest.mark.parametrize(("stages", "n"), [((), 402), ((STAGE,), 202)])
def test_stages_are_judged_on_what_they_do_not_know_and_each_text_once(reference, stages, n):
    fidelity, _ = judge(Configuration(INT8, 64, stages), reference, reference.scores, reference.more, Tolerance())
    assert fidelity["points"]["default"]["n"] == n


@pytest.mark.parametrize(("max_length", "refused"), [(64, "3.0% of decisions changed at default"), (32, None)])
def test_the_tolerance_of_changes_is_for_what_reads_everything(reference, max_length, refused):
    """What reads less is judged by F1, which these changes can hardly lower."""
    more = np.where(np.arange(400) < 12, 1 - reference.more, reference.more)
    tolerance = Tolerance(f1_loss=0.9)
    assert judge(Configuration(INT8, max_length), reference, reference.scores, more, tolerance)[1] == refused
    assert judge(Configuration(REFERENCE, 64), reference, reference.scores, more, tolerance)[1] is None
