"""Accuracy, macro F1, confusion matrix and the like, from labels and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np


def classification_metrics(expected: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Return accuracy, macro F1 over the labels that occur, and the confusion matrix (rows: expected).

    Args:
        expected, predicted: (N,) label ids.
    """
    count = len(labels)
    matrix = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix, (expected, predicted), 1)
    right, of_label, said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    occurs = (of_label + said) > 0
    f1 = 2 * right[occurs] / (of_label[occurs] + said[occurs])
    return {
        "accuracy": float(right.sum() / max(matrix.sum(), 1)),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        "labels": labels,
        "confusion_matrix": matrix.tolist(),
    }


def multi_label_metrics(expected: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return the share of rows with exactly the right labels, and macro F1; (N, labels) booleans."""
    right = (expected & predicted).sum(0)
    total = expected.sum(0) + predicted.sum(0)
    f1 = 2 * right[total > 0] / total[total > 0]
    return {
        "accuracy": float((expected == predicted).all(1).mean()),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
    }


def regression_metrics(expected: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return the mean absolute error, the root of the mean squared error, and R²."""
    error = predicted - expected
    spread = float(np.square(expected - expected.mean(0)).sum())
    return {
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_squared_error": float(np.sqrt(np.square(error).mean())),
        "r2": 1 - float(np.square(error).sum()) / spread if spread else 0.0,
    }


def confusion_table(matrix: list[list[int]], labels: list[str]) -> str:
    """Return a confusion matrix as text: a row per expected label, a column per predicted one."""
    names = [label if len(label) <= 16 else f"{label[:15]}…" for label in labels]
    width = max(max(map(len, names), default=1), 5)
    lines = [" " * width + "  " + " ".join(f"{name:>{width}}" for name in names)]
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"{name:<{width}}  " + " ".join(f"{count:>{width}}" for count in row))
    return "\n".join(lines)
