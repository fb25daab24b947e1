"""Features of texts from a frozen model, and a head fitted on them."""

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
    """Return pooling -> features (N, M) float32 of rows of ids: the last token's state and the mean over the tokens.

    One pass over the data gives both.
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
    """Fit a head, and choose the pooling where it is "auto": the better cross-validated loss, or "last" in a tie.

    Returns:
        The pooling and the head.
    """
    targets = np.array([example.target for example in examples])
    weights = np.array([example.weight for example in examples], dtype=np.float32)
    candidates = POOLINGS if pooling == "auto" else (pooling,)
    validations = {
        name: cross_validate(features[name], targets, problem, classes=classes, weights=weights, seed=seed)
        for name in candidates
    }
    best = min(candidates, key=lambda name: validations[name].score)  # "last" stands first
    head = fit_linear_head(
        features[best], targets, problem, classes=classes, weights=weights, validation=validations[best]
    )
    return best, head
