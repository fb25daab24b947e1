"""A linear head on frozen features, fitted to convergence: logistic and ridge regression, their L2 by cross-validation.

The problems are convex, so that one run finds the optimum: L-BFGS from a start at zero, preconditioned by the features'
second moments, which bound the curvature of the logistic loss (Böhning 1992). There is no intercept, because the head
of a Qwen3 has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0))
"""L2 penalties that are compared, in units of the features' mean square."""
FOLDS = 5
CROSS_VALIDATED_ROWS = 1000
"""Rows that the penalty is chosen on, at most: with more the penalty hardly matters."""

Array = np.ndarray


@dataclass(frozen=True)
class LinearHead:
    """A fitted head.

    Attributes:
        weight: (labels, M).
        penalty: the L2 penalty that cross-validation chose.
        score: its mean cross-validated loss per row: cross entropy in nats, or half the squared error.
        accuracy: the cross-validated share of rows that are right; None for numbers.
    """

    weight: Array
    penalty: float
    score: float
    accuracy: float | None


def fit_linear_head(
    features: Array,
    targets: Array,
    problem: str,
    *,
    classes: int,
    weights: Array | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> LinearHead:
    """Fit a head to features (N, M).

    Args:
        targets: (N,) label ids, (N, classes) zeros and ones, or (N,) or (N, classes) numbers, as `problem` says.
        problem: "single_label_classification", "multi_label_classification" or "regression".
        classes: rows of the head.
        weights: (N,) weights of the rows.
        penalties: candidates; one of them is used as it is.
        seed: of the folds.
    """
    x = np.ascontiguousarray(features, dtype=np.float32)
    y = _targets(targets, problem, classes)
    rows = np.ones(len(x), np.float32) if weights is None else np.asarray(weights, np.float32)
    scale = float(np.sqrt(np.mean(np.square(x)))) or 1.0
    x = x / scale
    chosen = _sample(y, problem, seed)
    scores = {}
    if len(penalties) > 1:
        scores = _cross_validate(x[chosen], y[chosen], rows[chosen], problem, penalties, seed)
    best = min(scores, key=lambda penalty: scores[penalty][0]) if scores else penalties[len(penalties) // 2]
    loss, accuracy = scores.get(best, (float("nan"), None))
    weight = _fit(x, y, rows, best, problem)
    return LinearHead((weight / scale).T.astype(np.float32), best, loss, accuracy)


def _targets(targets: Array, problem: str, classes: int) -> Array:
    targets = np.asarray(targets)
    if problem == "single_label_classification":
        return np.eye(classes, dtype=np.float32)[targets.astype(np.int64)]
    return targets.reshape(len(targets), -1).astype(np.float32)


def _sample(y: Array, problem: str, seed: int) -> Array:
    order = np.random.default_rng(seed).permutation(len(y))
    return order[:CROSS_VALIDATED_ROWS]


def _folds(y: Array, problem: str) -> Array:
    """Return the fold of each row, labels spread evenly over the folds."""
    count = min(FOLDS, len(y))
    if problem != "single_label_classification":
        return np.arange(len(y)) % count
    order = np.argsort(y.argmax(1), kind="stable")
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = np.arange(len(y)) % count
    return folds


def _cross_validate(
    x: Array, y: Array, rows: Array, problem: str, penalties: Sequence[float], seed: int
) -> dict[float, tuple[float, float | None]]:
    """Return penalty -> (mean loss of held-out rows, their accuracy)."""
    if len(x) < 4:
        return {}
    folds = _folds(y, problem)
    losses: dict[float, float] = dict.fromkeys(penalties, 0.0)
    right: dict[float, float] = dict.fromkeys(penalties, 0.0)
    for fold in np.unique(folds):
        held = folds == fold
        start = None
        for penalty in sorted(penalties, reverse=True):  # the strongest is the easiest, and starts the next
            start = _fit(x[~held], y[~held], rows[~held], penalty, problem, start)
            logits = x[held] @ start
            losses[penalty] += float(_loss(logits, y[held], rows[held], problem)[0])
            if problem == "single_label_classification":
                right[penalty] += float((logits.argmax(1) == y[held].argmax(1)).sum())
            elif problem == "multi_label_classification":
                right[penalty] += float(((logits > 0) == (y[held] > 0.5)).all(1).sum())
    total = float(rows.sum())
    has_accuracy = problem != "regression"
    return {p: (losses[p] / total, right[p] / len(x) if has_accuracy else None) for p in penalties}


def _loss(logits: Array, y: Array, rows: Array, problem: str) -> tuple[float, Array]:
    """Return the summed loss of the rows and its gradient with respect to the logits."""
    if problem == "single_label_classification":
        shifted = logits - logits.max(1, keepdims=True)
        powers = np.exp(shifted)
        totals = powers.sum(1, keepdims=True)
        losses = np.log(totals[:, 0]) - (shifted * y).sum(1)
        change = powers / totals - y
    elif problem == "multi_label_classification":
        losses = (np.logaddexp(0, logits) - logits * y).sum(1)
        change = 1 / (1 + np.exp(-np.clip(logits, -60, 60))) - y
    else:
        change = logits - y
        losses = np.square(change).sum(1) / 2
    return float((losses * rows).sum()), change * rows[:, None]


def _fit(x: Array, y: Array, rows: Array, penalty: float, problem: str, start: Array | None = None) -> Array:
    """Return the weight (M, classes) that minimizes the mean loss plus penalty/2·‖W‖²."""
    total = float(rows.sum()) or 1.0
    bound = {"single_label_classification": 0.5, "multi_label_classification": 0.25, "regression": 1.0}[problem]
    solve = _solver(x * np.sqrt(rows)[:, None], bound / total, penalty)
    if problem == "regression":
        return solve(x.T @ (y * rows[:, None]) / total)

    def value_and_gradient(weight: Array) -> tuple[float, Array]:
        loss, change = _loss(x @ weight, y, rows, problem)
        value = loss / total + penalty / 2 * float(np.square(weight).sum())
        return value, x.T @ change / total + penalty * weight

    first = np.zeros((x.shape[1], y.shape[1]), np.float32) if start is None else start
    return minimize(value_and_gradient, first, solve)


def _solver(x: Array, scale: float, penalty: float) -> Callable[[Array], Array]:
    """Return g -> (scale·xᵀx + penalty·I)⁻¹·g, by way of the smaller of the two Gram matrices."""
    count, width = x.shape
    if width <= count:
        moments = scale * (x.T @ x).astype(np.float64) + penalty * np.eye(width)
        inverse = np.linalg.inv(moments).astype(np.float32)
        return lambda g: inverse @ g
    # Woodbury: (p·I + s·xᵀx)⁻¹ = (I − s·xᵀ(p·I + s·xxᵀ)⁻¹x) / p
    gram = scale * (x @ x.T).astype(np.float64) + penalty * np.eye(count)
    inverse = (scale * np.linalg.inv(gram)).astype(np.float32)
    return lambda g: (g - x.T @ (inverse @ (x @ g))) / penalty


def minimize(
    value_and_gradient: Callable[[Array], tuple[float, Array]],
    start: Array,
    precondition: Callable[[Array], Array],
    *,
    memory: int = 10,
    tolerance: float = 1e-4,
    max_steps: int = 200,
) -> Array:
    """Minimize a smooth convex function by L-BFGS with backtracking.

    Args:
        precondition: gradient -> step of a rough inverse of the curvature.
        tolerance: ends when the largest entry of the gradient has shrunk by this share of its start.

    Source: Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.1.
    """
    point = start
    value, gradient = value_and_gradient(point)
    first = max(float(np.abs(gradient).max()), 1e-12)
    pairs: list[tuple[Array, Array, float]] = []
    for _ in range(max_steps):
        if float(np.abs(gradient).max()) <= max(tolerance * first, 1e-7):
            break
        step = -_direction(gradient, pairs, precondition)
        slope = float((step * gradient).sum())
        if slope >= 0:
            pairs, step = [], -precondition(gradient)
            slope = float((step * gradient).sum())
        length = 1.0
        for _ in range(30):
            candidate = point + length * step
            new_value, new_gradient = value_and_gradient(candidate)
            if new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break  # rounding: no step makes it smaller
        moved, turned = candidate - point, new_gradient - gradient
        product = float((moved * turned).sum())
        if product > 1e-12:
            pairs = [*pairs[1 - memory :], (moved, turned, product)]
        finished = value - new_value <= 1e-7 * max(abs(value), 1e-3)
        point, value, gradient = candidate, new_value, new_gradient
        if finished:
            break
    return point


def _direction(
    gradient: Array, pairs: list[tuple[Array, Array, float]], precondition: Callable[[Array], Array]
) -> Array:
    result = gradient
    shares = []
    for moved, turned, product in reversed(pairs):
        share = float((moved * result).sum()) / product
        shares.append(share)
        result = result - share * turned
    result = precondition(result)
    for (moved, turned, product), share in zip(pairs, reversed(shares), strict=True):
        result = result + (share - float((turned * result).sum()) / product) * moved
    return result
