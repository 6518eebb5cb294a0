import numpy as np
import pytest

from prefilter_common.metrics import classification_metrics, latency_summary


def test_known_answer():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    scores = np.array([0.9, 0.8, 0.5, 0.2, 0.7, 0.49, 0.1, 0.1, 0.1, 0.1])  # 3 of 4 found, 1 false alarm
    metrics = classification_metrics(labels, scores)
    assert metrics["confusion_matrix"] == [[5, 1], [1, 3]]  # rows true, journalism first
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.75, 0.75, 0.75)
    assert metrics["accuracy"] == 0.8
    assert metrics["roc_auc"] == pytest.approx(21 / 24)  # pairs ranked rightly


def test_degenerate_inputs_give_numbers_not_warnings():
    metrics = classification_metrics(np.array([0, 0]), np.array([0.1, 0.2]))
    assert metrics["f1"] == metrics["precision"] == 0 and metrics["roc_auc"] is None
    assert metrics["confusion_matrix"] == [[2, 0], [0, 0]]


def test_latency_is_in_milliseconds():
    summary = latency_summary([0.001, 0.002, 0.003, 0.010])
    expected = {"avg_ms": 4.0, "p50_ms": 2.5, "p95_ms": 8.95, "p99_ms": 9.79, "min_ms": 1.0, "max_ms": 10.0}
    assert summary == pytest.approx(expected)
