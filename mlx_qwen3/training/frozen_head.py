"""Fit a linear head on frozen features: logistic or ridge regression with an L2 penalty from cross-validation.

The problems are convex, so one run of L-BFGS from zero finds the optimum. It is preconditioned by the second moments of
the features, which bound the curvature of the logistic loss (Böhning 1992). There is no intercept, because the heads of
Qwen3 models have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0))
"""Candidate L2 penalties, in units of the features' mean square."""
FOLDS, FEWER_FOLDS = 5, 3
"""Number of folds of cross-validation: up to 200 rows, and with more rows."""
CROSS_VALIDATED_ROWS = 512
"""Maximum number of rows for the choice of penalty and pooling."""

Array = np.ndarray


@dataclass(frozen=True)
class Validation:
    """Result of cross-validation.

    Attributes:
        penalty: selected L2 penalty, for this number of rows.
        rows: number of rows used.
        score: mean held-out loss per row: cross entropy in nats, or half the squared error; NaN below 4 rows.
        accuracy: share of correctly predicted held-out rows; None for regression.
    """

    penalty: float
    rows: int
    score: float = float("nan")
    accuracy: float | None = None


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear head.

    Attributes:
        weight: weight matrix (labels, M).
        penalty: L2 penalty of the mean loss.
        validation: the cross-validation that selected the penalty.
    """

    weight: Array
    penalty: float
    validation: Validation


def fit_linear_head(
    features: Array,
    targets: Array,
    problem: str,
    *,
    classes: int,
    weights: Array | None = None,
    penalty: float | None = None,
    validation: Validation | None = None,
    seed: int = 0,
) -> LinearHead:
    """Fit a linear head to features (N, M).

    Args:
        targets: depending on `problem`, (N,) label ids, (N, classes) zeros and ones, or (N,) or (N, classes) numbers.
        problem: "single_label_classification", "multi_label_classification" or "regression".
        classes: number of rows of the head.
        weights: (N,) weights of the rows.
        penalty: L2 penalty of the mean loss, in units of the features' mean square; default: that of `validation`.
        validation: result of `cross_validate` for these rows; default: call it.
        seed: seed of the sample of rows that are cross-validated.
    """
    x, scale, y, rows = _prepare_arrays(features, targets, problem, classes, weights)
    if penalty is None:
        validation = validation or cross_validate(
            features, targets, problem, classes=classes, weights=weights, seed=seed
        )
        # The penalty of the summed loss acts as a prior, so it does not depend on the number of rows.
        penalty = validation.penalty * validation.rows / len(x)
    weight = _fit(x, y, rows, penalty, problem)
    return LinearHead((weight / scale).T.astype(np.float32), penalty, validation or Validation(penalty, len(x)))


def cross_validate(
    features: Array,
    targets: Array,
    problem: str,
    *,
    classes: int,
    weights: Array | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Validation:
    """Select the penalty with the lowest held-out loss on a sample of the rows; see `fit_linear_head` for arguments.

    All penalties of a fold are fitted at the same time in the basis of the principal components of the training rows,
    in which their second moments are diagonal.
    """
    chosen = np.random.default_rng(seed).permutation(len(features))[:CROSS_VALIDATED_ROWS]
    weights = None if weights is None else np.asarray(weights)[chosen]
    x, _, y, rows = _prepare_arrays(
        np.asarray(features)[chosen], np.asarray(targets)[chosen], problem, classes, weights
    )
    if len(x) < 4 or len(penalties) == 1:
        return Validation(penalties[len(penalties) // 2], len(x))
    strengths = np.array(penalties, np.float32)
    losses, right = np.zeros(len(strengths)), np.zeros(len(strengths))
    products = x @ x.T if len(x) < x.shape[1] else None
    folds = _assign_folds(y, problem)
    for fold in np.unique(folds):
        held = folds == fold
        train_x, held_x, squares = _project(x, products, held)
        weight = _fit_penalties(train_x, y[~held], rows[~held], strengths, problem, squares)
        logits = (held_x @ weight.reshape(len(weight), -1)).reshape(len(held_x), len(strengths), -1)
        losses += (_compute_losses(logits, y[held][:, None], problem)[0] * rows[held][:, None]).sum(0)
        if problem == "single_label_classification":
            right += (logits.argmax(-1) == y[held].argmax(1)[:, None]).sum(0)
        elif problem == "multi_label_classification":
            right += ((logits > 0) == (y[held][:, None] > 0.5)).all(-1).sum(0)
    best = int(losses.argmin())
    accuracy = None if problem == "regression" else float(right[best] / len(x))
    return Validation(float(penalties[best]), len(x), float(losses[best] / rows.sum()), accuracy)


def _prepare_arrays(
    features: Array, targets: Array, problem: str, classes: int, weights: Array | None
) -> tuple[Array, float, Array, Array]:
    """Return features with a mean square of 1, their scale, targets (N, classes) and row weights (N,), in float32."""
    x = np.ascontiguousarray(features, dtype=np.float32)
    scale = float(np.sqrt(np.vdot(x, x) / max(x.size, 1))) or 1.0
    rows = np.ones(len(x), np.float32) if weights is None else np.asarray(weights, np.float32)
    return x / scale, scale, _encode_targets(targets, problem, classes), rows


def _project(x: Array, products: Array | None, held: Array) -> tuple[Array, Array, Array]:
    """Project rows (N, M) on the principal components of the rows that are not held out.

    Args:
        products: x·xᵀ (N, N) if it is smaller than xᵀ·x, else None.
        held: (N,) whether a row is held out.

    Returns:
        The projected training rows and held-out rows, and the squared length of each component.
    """
    if products is None:
        train = x[~held]
        squares, vectors = np.linalg.eigh((train.T @ train).astype(np.float64))
        vectors = vectors.astype(np.float32)
        return train @ vectors, x[held] @ vectors, np.maximum(squares, 0)
    squares, vectors = np.linalg.eigh(products[~held][:, ~held].astype(np.float64))
    squares, vectors = squares[squares > 1e-6 * squares[-1]], vectors[:, squares > 1e-6 * squares[-1]]
    lengths = np.sqrt(squares)
    train = (vectors * lengths).astype(np.float32)
    return train, products[held][:, ~held] @ (vectors / lengths).astype(np.float32), squares


def _encode_targets(targets: Array, problem: str, classes: int) -> Array:
    targets = np.asarray(targets)
    if problem == "single_label_classification":
        return np.eye(classes, dtype=np.float32)[targets.astype(np.int64)]
    return targets.reshape(len(targets), -1).astype(np.float32)


def _assign_folds(y: Array, problem: str) -> Array:
    """Return the fold of each row; labels are distributed evenly over the folds."""
    count = min(FOLDS if len(y) <= 200 else FEWER_FOLDS, len(y))
    if problem != "single_label_classification":
        return np.arange(len(y)) % count
    order = np.argsort(y.argmax(1), kind="stable")
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = np.arange(len(y)) % count
    return folds


def _compute_losses(logits: Array, y: Array, problem: str) -> tuple[Array, Array]:
    """Return the loss of each row, and its gradient with respect to the logits (..., classes)."""
    if problem == "single_label_classification":
        shifted = logits - logits.max(-1, keepdims=True)
        powers = np.exp(shifted)
        totals = powers.sum(-1, keepdims=True)
        return np.log(totals[..., 0]) - (shifted * y).sum(-1), powers / totals - y
    if problem == "multi_label_classification":
        return (np.logaddexp(0, logits) - logits * y).sum(-1), 1 / (1 + np.exp(-np.clip(logits, -60, 60))) - y
    change = logits - y
    return np.square(change).sum(-1) / 2, change


CURVATURES = {"single_label_classification": 0.5, "multi_label_classification": 0.25, "regression": 1.0}
"""Upper bounds of the second derivative of the loss with respect to the logits."""


def _fit(x: Array, y: Array, rows: Array, penalty: float, problem: str) -> Array:
    """Return the weight (M, classes) that minimizes the mean loss plus penalty/2·‖W‖²."""
    total = float(rows.sum()) or 1.0
    equal = bool((rows == rows[0]).all())
    weighted = x if equal else x * np.sqrt(rows)[:, None]
    solve = _make_solver(weighted, CURVATURES[problem] / total * (float(rows[0]) if equal else 1), penalty)
    if problem == "regression":
        return solve(x.T @ (y * rows[:, None]) / total)

    def value_and_gradient(weight: Array) -> tuple[Array, Array]:
        losses, change = _compute_losses(x @ weight[:, 0], y, problem)
        value = losses @ rows / total + penalty / 2 * np.square(weight).sum()
        gradient = x.T @ (change * rows[:, None]) / total + penalty * weight[:, 0]
        return np.array([value]), gradient[:, None]

    start = np.zeros((x.shape[1], 1, y.shape[1]), np.float32)
    return minimize(value_and_gradient, start, lambda g: solve(g[:, 0])[:, None])[:, 0]


def _fit_penalties(x: Array, y: Array, rows: Array, penalties: Array, problem: str, squares: Array) -> Array:
    """Fit one head for each of P penalties at the same time; return the weights (M, P, classes).

    Args:
        x: (N, M) with orthogonal columns of squared lengths `squares` (M,).
    """
    total = float(rows.sum()) or 1.0
    count, width, problems = len(x), x.shape[1], len(penalties)
    scales = (1 / (CURVATURES[problem] / total * squares[:, None] + penalties)).astype(np.float32)[..., None]

    def value_and_gradient(weight: Array) -> tuple[Array, Array]:
        logits = (x @ weight.reshape(width, -1)).reshape(count, problems, -1)
        losses, change = _compute_losses(logits, y[:, None], problem)
        values = rows @ losses / total + penalties / 2 * np.square(weight).sum((0, 2))
        change *= rows[:, None, None] / total
        gradient = (x.T @ change.reshape(count, -1)).reshape(weight.shape)
        return values, gradient + penalties[:, None] * weight

    start = np.zeros((width, problems, y.shape[1]), np.float32)
    return minimize(value_and_gradient, start, lambda g: scales * g, tolerance=1e-2, max_steps=30)


def _make_solver(x: Array, scale: float, penalty: float) -> Callable[[Array], Array]:
    """Return the function g -> (scale·xᵀx + penalty·I)⁻¹·g, using the smaller of both Gram matrices.

    All products are computed in float64: with a small penalty, the terms cancel almost completely.
    """
    count, width = x.shape
    if width <= count:
        moments = scale * (x.T @ x).astype(np.float64) + penalty * np.eye(width)
        inverse = np.linalg.inv(moments)
        return lambda g: (inverse @ g).astype(np.float32)
    # Woodbury: (p·I + s·xᵀx)⁻¹ = (I − s·xᵀ(p·I + s·xxᵀ)⁻¹x) / p
    exact = x.astype(np.float64)
    inverse = scale * np.linalg.inv(scale * (exact @ exact.T) + penalty * np.eye(count))
    return lambda g: ((g - exact.T @ (inverse @ (exact @ g))) / penalty).astype(np.float32)


def minimize(
    value_and_gradient: Callable[[Array], tuple[Array, Array]],
    start: Array,
    precondition: Callable[[Array], Array],
    *,
    memory: int = 10,
    tolerance: float = 1e-4,
    max_steps: int = 200,
) -> Array:
    """Minimize P independent smooth convex functions by L-BFGS with backtracking, all at the same time.

    Args:
        value_and_gradient: maps points (M, P, classes) to values (P,) and gradients.
        start: initial points (M, P, classes).
        precondition: multiplies a gradient with an approximate inverse of the curvature.
        memory: number of steps whose curvature is used.
        tolerance: a problem is finished when the largest entry of its gradient is below this share of the initial one.
        max_steps: maximum number of steps.

    Source: Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.1.
    """

    def dot(a: Array, b: Array) -> Array:
        return (a * b).sum((0, 2))

    point = start
    value, gradient = value_and_gradient(point)
    limit = np.maximum(tolerance * np.abs(gradient).max((0, 2)), 1e-7)
    active = np.ones(len(value), bool)
    pairs: list[tuple[Array, Array, Array]] = []
    for _ in range(max_steps):
        active &= np.abs(gradient).max((0, 2)) > limit
        if not active.any():
            break
        step = -_compute_direction(gradient, pairs, precondition, dot)
        slope = dot(step, gradient)
        uphill = slope >= 0
        if uphill.any():
            step = np.where(uphill[:, None], -precondition(gradient), step)
            slope = dot(step, gradient)
        length = active.astype(np.float32)
        too_long = ~active
        for _ in range(30):
            candidate = point + length[:, None] * step
            new_value, new_gradient = value_and_gradient(candidate)
            too_long = (length > 0) & ~(new_value <= value + 1e-4 * length * slope)
            if not too_long.any():
                break
            length = np.where(too_long, length / 2, length)
        else:
            active &= ~too_long  # rounding errors: no step reduces the value
            length = np.where(too_long, 0, length)
            candidate = point + length[:, None] * step
            new_value, new_gradient = value_and_gradient(candidate)
        moved, change = candidate - point, new_gradient - gradient
        product = dot(moved, change)
        pairs = [*pairs[1 - memory :], (moved, change, np.where(product > 1e-12, product, np.inf))]
        active &= value - new_value > 1e-7 * np.maximum(np.abs(value), 1e-3)
        point, value, gradient = candidate, new_value, new_gradient
    return point


def _compute_direction(
    gradient: Array,
    pairs: list[tuple[Array, Array, Array]],
    precondition: Callable[[Array], Array],
    dot: Callable[[Array, Array], Array],
) -> Array:
    """Multiply the gradient with the inverse curvature; pairs with an infinite product have no effect."""
    result = gradient
    shares = []
    for moved, change, product in reversed(pairs):
        share = dot(moved, result) / product
        shares.append(share)
        result = result - share[:, None] * change
    result = precondition(result)
    for (moved, change, product), share in zip(pairs, reversed(shares), strict=True):
        result = result + (share - dot(change, result) / product)[:, None] * moved
    return result
