"""(labels, scores) -> numbers. Pure functions over numpy arrays."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

from prefilter_common.articles import COMMERCE, JOURNALISM


def classification_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> dict:
    """Accuracy, F1, precision and recall of commerce, ROC-AUC, and the confusion matrix.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) P(commerce); an article is called commerce at ``threshold`` or above.

    Returns:
        Fractions in [0, 1]; ``roc_auc`` is None where only one label occurs; ``confusion_matrix`` has rows true,
        columns predicted, journalism first.
    """
    decisions = scores >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(labels, decisions, average="binary", zero_division=0)
    both = len(np.unique(labels)) == 2
    return {
        "accuracy": float(accuracy_score(labels, decisions)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "roc_auc": float(roc_auc_score(labels, scores)) if both else None,
        "confusion_matrix": confusion_matrix(labels, decisions, labels=[JOURNALISM, COMMERCE]).tolist(),
    }


def latency_summary(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles (linear interpolation) and range in milliseconds."""
    ms = np.asarray(seconds) * 1000
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    values = {"avg": ms.mean(), "p50": p50, "p95": p95, "p99": p99, "min": ms.min(), "max": ms.max()}
    return {f"{name}_ms": round(float(value), 3) for name, value in values.items()}
