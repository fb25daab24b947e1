"""Compute features of texts with a frozen model, and fit a head on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..tasks.batches import Piece, Runner
from .frozen_head import LinearHead, cross_validate, fit_linear_head
from .objectives import Example

POOLINGS = ("last", "mean")
BATCH_TOKENS = {"cpu": 512, "gpu": 16384}


def embed(
    model: Any, rows: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda done: None
) -> dict[str, np.ndarray]:
    """Compute float32 features (N, M) of N rows of ids, for each pooling, in one pass over the data.

    Args:
        progress: called with the number of rows in each finished batch.

    Returns:
        The hidden states of the last tokens as "last", and the means over the tokens as "mean".
    """
    base = model.base_model
    runner = Runner(base, shares_prefix=False)

    def compute(call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        hidden = base(**call).last_hidden_state
        counts = (mx.arange(hidden.shape[1]) <= last[:, None])[..., None]
        mean = mx.sum(hidden.astype(mx.float32) * counts, axis=1) / (last + 1)[:, None]
        return hidden[mx.arange(hidden.shape[0]), last].astype(mx.float32), mean

    was_training = base.training
    base.eval()
    outputs = runner.run(
        [Piece(list(ids)) for ids in rows],
        compute,
        batch_tokens=BATCH_TOKENS[mx.default_device().type.name],
        finished=lambda indices: progress(len(indices)),
    )
    base.train(was_training)
    return {name: np.stack([row[i] for row in outputs]) for i, name in enumerate(POOLINGS)}


def fit_head(
    features: dict[str, np.ndarray], examples: Sequence[Example], problem: str, classes: int, pooling: str, seed: int
) -> tuple[str, LinearHead]:
    """Fit a head; with pooling "auto", use the one with the lower cross-validated loss, or "last" in a tie.

    Returns:
        The selected pooling and the head.
    """
    targets = np.array([example.target for example in examples])
    weights = np.array([example.weight for example in examples], dtype=np.float32)
    candidates = POOLINGS if pooling == "auto" else (pooling,)
    validations = {
        name: cross_validate(features[name], targets, problem, classes=classes, weights=weights, seed=seed)
        for name in candidates
    }
    best = min(candidates, key=lambda name: validations[name].score)  # "last" is the first candidate
    head = fit_linear_head(
        features[best], targets, problem, classes=classes, weights=weights, validation=validations[best]
    )
    return best, head
