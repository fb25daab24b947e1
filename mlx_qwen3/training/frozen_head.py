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
FOLDS, FEWER_FOLDS = 5, 3
"""Folds of cross-validation, up to 200 rows and beyond."""
CROSS_VALIDATED_ROWS = 512
"""Rows that penalty and pooling are chosen on, at most."""

Array = np.ndarray


@dataclass(frozen=True)
class Validation:
    """The L2 penalty that cross-validation chose.

    Attributes:
        penalty: for as many rows as were cross-validated.
        rows: how many those were.
        score: the mean held-out loss per row: cross entropy in nats, or half the squared error; NaN below 4 rows.
        accuracy: the share of held-out rows that are right; None for numbers.
    """

    penalty: float
    rows: int
    score: float = float("nan")
    accuracy: float | None = None


@dataclass(frozen=True)
class LinearHead:
    """A fitted head.

    Attributes:
        weight: (labels, M).
        penalty: the L2 penalty of the mean loss.
        validation: how it was chosen.
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
    """Fit a head to features (N, M).

    Args:
        targets: (N,) label ids, (N, classes) zeros and ones, or (N,) or (N, classes) numbers, as `problem` says.
        problem: "single_label_classification", "multi_label_classification" or "regression".
        classes: rows of the head.
        weights: (N,) weights of the rows.
        penalty: of the mean loss, in units of the features' mean square; by default what `validation` chose.
        validation: what `cross_validate` returned for these rows; by default it is called.
        seed: of the folds.
    """
    x, scale, y, rows = _arrays(features, targets, problem, classes, weights)
    if penalty is None:
        validation = validation or cross_validate(
            features, targets, problem, classes=classes, weights=weights, seed=seed
        )
        # the penalty of the summed loss is a prior, which more rows do not change
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
    """Return the penalty with the lowest held-out loss, on a sample of the rows; arguments as `fit_linear_head`.

    All penalties of a fold are fitted at the same time, in the basis of the principal components of the rows that
    are not held out, in which their second moments are diagonal.
    """
    chosen = np.random.default_rng(seed).permutation(len(features))[:CROSS_VALIDATED_ROWS]
    weights = None if weights is None else np.asarray(weights)[chosen]
    x, _, y, rows = _arrays(np.asarray(features)[chosen], np.asarray(targets)[chosen], problem, classes, weights)
    if len(x) < 4 or len(penalties) == 1:
        return Validation(penalties[len(penalties) // 2], len(x))
    strengths = np.array(penalties, np.float32)
    losses, right = np.zeros(len(strengths)), np.zeros(len(strengths))
    products = x @ x.T if len(x) < x.shape[1] else None
    folds = _folds(y, problem)
    for fold in np.unique(folds):
        held = folds == fold
        train_x, held_x, squares = _principal_components(x, products, held)
        weight = _fit_together(train_x, y[~held], rows[~held], strengths, problem, squares)
        logits = (held_x @ weight.reshape(len(weight), -1)).reshape(len(held_x), len(strengths), -1)
        losses += (_losses(logits, y[held][:, None], problem)[0] * rows[held][:, None]).sum(0)
        if problem == "single_label_classification":
            right += (logits.argmax(-1) == y[held].argmax(1)[:, None]).sum(0)
        elif problem == "multi_label_classification":
            right += ((logits > 0) == (y[held][:, None] > 0.5)).all(-1).sum(0)
    best = int(losses.argmin())
    accuracy = None if problem == "regression" else float(right[best] / len(x))
    return Validation(float(penalties[best]), len(x), float(losses[best] / rows.sum()), accuracy)


def _arrays(
    features: Array, targets: Array, problem: str, classes: int, weights: Array | None
) -> tuple[Array, float, Array, Array]:
    """Return features with a mean square of 1, their scale, targets (N, classes) and row weights (N,), in float32."""
    x = np.ascontiguousarray(features, dtype=np.float32)
    scale = float(np.sqrt(np.vdot(x, x) / max(x.size, 1))) or 1.0
    rows = np.ones(len(x), np.float32) if weights is None else np.asarray(weights, np.float32)
    return x / scale, scale, _targets(targets, problem, classes), rows


def _principal_components(x: Array, products: Array | None, held: Array) -> tuple[Array, Array, Array]:
    """Return rows (N, M) in the basis of the principal components of those that are not held out.

    Args:
        products: x·xᵀ (N, N) where that is smaller than xᵀ·x; None otherwise.

    Returns:
        The rows that are not held out, those that are, and the squared length of each component.
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


def _targets(targets: Array, problem: str, classes: int) -> Array:
    targets = np.asarray(targets)
    if problem == "single_label_classification":
        return np.eye(classes, dtype=np.float32)[targets.astype(np.int64)]
    return targets.reshape(len(targets), -1).astype(np.float32)


def _folds(y: Array, problem: str) -> Array:
    """Return the fold of each row, labels spread evenly over the folds."""
    count = min(FOLDS if len(y) <= 200 else FEWER_FOLDS, len(y))
    if problem != "single_label_classification":
        return np.arange(len(y)) % count
    order = np.argsort(y.argmax(1), kind="stable")
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = np.arange(len(y)) % count
    return folds


def _losses(logits: Array, y: Array, problem: str) -> tuple[Array, Array]:
    """Return the loss of each row and its gradient with respect to the logits (..., classes)."""
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
    solve = _solver(weighted, CURVATURES[problem] / total * (float(rows[0]) if equal else 1), penalty)
    if problem == "regression":
        return solve(x.T @ (y * rows[:, None]) / total)

    def value_and_gradient(weight: Array) -> tuple[Array, Array]:
        losses, change = _losses(x @ weight[:, 0], y, problem)
        value = losses @ rows / total + penalty / 2 * np.square(weight).sum()
        gradient = x.T @ (change * rows[:, None]) / total + penalty * weight[:, 0]
        return np.array([value]), gradient[:, None]

    start = np.zeros((x.shape[1], 1, y.shape[1]), np.float32)
    return minimize(value_and_gradient, start, lambda g: solve(g[:, 0])[:, None])[:, 0]


def _fit_together(x: Array, y: Array, rows: Array, penalties: Array, problem: str, squares: Array) -> Array:
    """Return the weights (M, P, classes) of one fit per penalty (P,).

    Args:
        x: (N, M) with orthogonal columns of squared length `squares` (M,).
    """
    total = float(rows.sum()) or 1.0
    count, width, problems = len(x), x.shape[1], len(penalties)
    scales = (1 / (CURVATURES[problem] / total * squares[:, None] + penalties)).astype(np.float32)[..., None]

    def value_and_gradient(weight: Array) -> tuple[Array, Array]:
        logits = (x @ weight.reshape(width, -1)).reshape(count, problems, -1)
        losses, change = _losses(logits, y[:, None], problem)
        values = rows @ losses / total + penalties / 2 * np.square(weight).sum((0, 2))
        change *= rows[:, None, None] / total
        gradient = (x.T @ change.reshape(count, -1)).reshape(weight.shape)
        return values, gradient + penalties[:, None] * weight

    start = np.zeros((width, problems, y.shape[1]), np.float32)
    return minimize(value_and_gradient, start, lambda g: scales * g, tolerance=1e-2, max_steps=30)


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
        value_and_gradient: points (M, P, classes) -> values (P,) and gradients.
        precondition: gradient -> step of a rough inverse of the curvature.
        tolerance: a problem ends when the largest entry of its gradient has shrunk by this share of its start.

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
        step = -_direction(gradient, pairs, precondition, dot)
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
            active &= ~too_long  # rounding: no step makes it smaller
            length = np.where(too_long, 0, length)
            candidate = point + length[:, None] * step
            new_value, new_gradient = value_and_gradient(candidate)
        moved, change = candidate - point, new_gradient - gradient
        product = dot(moved, change)
        pairs = [*pairs[1 - memory :], (moved, change, np.where(product > 1e-12, product, np.inf))]
        active &= value - new_value > 1e-7 * np.maximum(np.abs(value), 1e-3)
        point, value, gradient = candidate, new_value, new_gradient
    return point


def _direction(
    gradient: Array,
    pairs: list[tuple[Array, Array, Array]],
    precondition: Callable[[Array], Array],
    dot: Callable[[Array, Array], Array],
) -> Array:
    """Return the product of the gradient and the inverse curvature; a pair with an infinite product is left out."""
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
