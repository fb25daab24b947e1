"""Metrics of predictions: accuracy, macro F1, confusion matrix, regression errors."""

from __future__ import annotations

from typing import Any

import numpy as np


def classification_metrics(expected: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Compute accuracy, macro F1 over the labels that occur, and the confusion matrix (rows: expected).

    Args:
        expected, predicted: (N,) label ids.
    """
    count = len(labels)
    matrix = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix, (expected, predicted), 1)
    right, expected_counts, predicted_counts = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    occurs = (expected_counts + predicted_counts) > 0
    f1 = 2 * right[occurs] / (expected_counts[occurs] + predicted_counts[occurs])
    return {
        "accuracy": float(right.sum() / max(matrix.sum(), 1)),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        "labels": labels,
        "confusion_matrix": matrix.tolist(),
    }


def multi_label_metrics(expected: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Compute the share of rows with exactly the right labels, and macro F1; inputs are (N, labels) booleans."""
    right = (expected & predicted).sum(0)
    total = expected.sum(0) + predicted.sum(0)
    f1 = 2 * right[total > 0] / total[total > 0]
    return {
        "accuracy": float((expected == predicted).all(1).mean()),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
    }


def regression_metrics(expected: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Compute the mean absolute error, the root mean squared error, and R²; inputs are (N, outputs)."""
    error = predicted - expected
    spread = float(np.square(expected - expected.mean(0)).sum())
    return {
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_squared_error": float(np.sqrt(np.square(error).mean())),
        "r2": 1 - float(np.square(error).sum()) / spread if spread else 0.0,
    }


def confusion_table(matrix: list[list[int]], labels: list[str]) -> str:
    """Format a confusion matrix as text: one row per expected label, one column per predicted label."""
    names = [label if len(label) <= 16 else f"{label[:15]}…" for label in labels]
    width = max(max(map(len, names), default=1), 5)
    lines = [" " * width + "  " + " ".join(f"{name:>{width}}" for name in names)]
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"{name:<{width}}  " + " ".join(f"{count:>{width}}" for count in row))
    return "\n".join(lines)
