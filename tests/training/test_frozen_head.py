"""Fitting a linear head: the result is the optimum and equals that of other solvers."""

import numpy as np
import pytest

from mlx_qwen3.training.frozen_head import fit_linear_head


def data(rows: int = 60, width: int = 12, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, width)) + 1.0
    y = (x @ rng.normal(size=(width, classes)) + rng.normal(size=(rows, classes))).argmax(1)
    return x.astype(np.float32), y


@pytest.mark.parametrize("width", [12, 200])
def test_the_gradient_is_zero_at_the_fitted_weights(width: int):
    x, y = data(width=width)
    head = fit_linear_head(x, y, "single_label_classification", classes=3, penalty=1e-2)
    scale = np.sqrt(np.mean(x**2))
    logits = x @ head.weight.T
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (x / scale).T @ (probabilities - np.eye(3)[y]) / len(x) + 1e-2 * head.weight.T * scale
    start = np.abs((x / scale).T @ (1 / 3 - np.eye(3)[y]) / len(x)).max()
    assert np.abs(gradient).max() < 2e-3 * start


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_rows_with_a_large_common_part_are_separated_with_a_small_penalty(problem: str):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(16, 256)) + 30 * rng.normal(size=256)).astype(np.float32)
    y = np.arange(16) % 2
    targets = y if problem == "single_label_classification" else np.eye(2)[y]
    head = fit_linear_head(x, targets, problem, classes=2, penalty=1e-5)
    assert ((x @ head.weight.T).argmax(1) == y).all()


def test_ridge_regression_equals_the_closed_form():
    x, _ = data()
    y = x @ np.arange(12.0) + 3
    head = fit_linear_head(x, y, "regression", classes=1, penalty=1e-3)
    scaled = x / np.sqrt(np.mean(x**2))
    expected = np.linalg.solve(scaled.T @ scaled / len(x) + 1e-3 * np.eye(12), scaled.T @ y / len(x))
    np.testing.assert_allclose(head.weight[0] * np.sqrt(np.mean(x**2)), expected, rtol=1e-2, atol=1e-2)


def test_several_labels_are_fitted_independently():
    x, y = data()
    several = np.eye(3)[y]
    joint = fit_linear_head(x, several, "multi_label_classification", classes=3, penalty=1e-2)
    alone = fit_linear_head(x, several[:, :1], "multi_label_classification", classes=1, penalty=1e-2)
    np.testing.assert_allclose(joint.weight[0], alone.weight[0], atol=2e-2)


def test_weights_count_as_repeated_rows():
    x, y = data(rows=20)
    weights = np.where(y == 0, 2.0, 1.0)
    repeated = np.concatenate([x, x[y == 0]]), np.concatenate([y, y[y == 0]])
    a = fit_linear_head(x, y, "single_label_classification", classes=3, weights=weights, penalty=1e-1)
    b = fit_linear_head(*repeated, "single_label_classification", classes=3, penalty=1e-1)
    np.testing.assert_allclose(x @ a.weight.T, x @ b.weight.T, atol=0.1)


def test_cross_validation_prefers_a_strong_penalty_for_noise():
    rng = np.random.default_rng(1)
    noise, labels = rng.normal(size=(40, 100)), rng.integers(0, 2, 40)
    head = fit_linear_head(noise, labels, "single_label_classification", classes=2)
    assert head.penalty == 1.0
    x, y = data(rows=200)
    accuracy = fit_linear_head(x, y, "single_label_classification", classes=3).validation.accuracy
    assert accuracy is not None
    assert accuracy > 0.7
