"""Training objectives of the tasks: batches, losses and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.heads import last_token, mean_of_tokens
from .forward import chunked_cross_entropy, hidden_states, summed_cross_entropy
from .metrics import classification_metrics, multi_label_metrics, regression_metrics

IGNORED = -100
Batch = dict[str, mx.array]
Marks = list[mx.array] | None


@dataclass
class Example:
    """One row of training data.

    Attributes:
        ids: token ids.
        target: a label id, numbers (labels,), one label id per token, (first, last) token of an answer, or for text
            generation the index of the first token that counts in the loss.
        weight: weight of the row in the loss.
    """

    ids: list[int]
    target: Any
    weight: float = 1.0


@dataclass
class Objective:
    """Base class of the objectives.

    Attributes:
        pad: padding id; does not affect results.
        labels: names of the labels, if any.
        checkpoint: whether layers are recomputed in the backward pass.
        step: padded lengths are multiples of this, so that few shapes are compiled.
    """

    pad: int = 0
    labels: list[str] = field(default_factory=list)
    checkpoint: bool = False
    step: int = 1

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Return the padded arrays of a minibatch of B examples, e.g. `ids` (B, L)."""
        longest = max(len(example.ids) for example in examples)
        width = -(-longest // self.step) * self.step
        ids = np.full((len(examples), width), self.pad, dtype=np.int32)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = example.ids
        last = np.array([len(example.ids) - 1 for example in examples], dtype=np.int32)
        weights = np.array([example.weight for example in examples], dtype=np.float32)
        arrays = {"ids": ids, "last": last, "weights": weights, **self._make_targets(examples, width)}
        return {name: mx.array(array) for name, array in arrays.items()}

    def _make_targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch, marks: Marks = None) -> tuple[mx.array, mx.array]:
        """Return the summed loss and its divisor, the sum of the weights.

        Args:
            marks: receives arrays in the order in which they should be evaluated before the loss, to save memory.
        """
        raise NotImplementedError

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        """Return the arrays of a batch that `metrics` needs, with one row per example."""
        return ()

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        """Return the metrics of an evaluation besides the loss."""
        return {}

    def chance(self, examples: Sequence[Example]) -> float:
        """Estimate the loss of a model that predicts at random; 0 if unknown."""
        return math.log(max(len(self.labels), 1))

    def _compute_hidden(self, model: Any, batch: Batch) -> mx.array:
        return hidden_states(model.base_model, batch["ids"], self.checkpoint)


@dataclass
class SequenceObjective(Objective):
    """Objective with one label, several labels or numbers per text.

    Attributes:
        problem: `problem_type` of the configuration.
    """

    problem: str = "single_label_classification"

    def _make_targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        kind = np.int32 if self.problem == "single_label_classification" else np.float32
        return {"targets": np.array([example.target for example in examples], dtype=kind)}

    def _compute_logits(self, model: Any, batch: Batch) -> mx.array:
        hidden = self._compute_hidden(model, batch)
        mean = getattr(model.config, "classifier_pooling", None) == "mean"
        pooled = (mean_of_tokens if mean else last_token)(model.config, hidden, None, batch["last"])
        return model.score(model.dropout(pooled)).astype(mx.float32)

    def loss(self, model: Any, batch: Batch, marks: Marks = None) -> tuple[mx.array, mx.array]:
        """Return the weighted sum of cross entropy, binary cross entropy or squared error, and the sum of weights."""
        logits, targets, weights = self._compute_logits(model, batch), batch["targets"], batch["weights"]
        if self.problem == "single_label_classification":
            total = summed_cross_entropy(logits, targets, weights)
        elif self.problem == "multi_label_classification":
            losses = mx.maximum(logits, 0) - logits * targets + mx.log1p(mx.exp(-mx.abs(logits)))
            total = mx.sum(mx.mean(losses, axis=-1) * weights)
        else:
            total = mx.sum(mx.mean(mx.square(logits - targets.reshape(logits.shape)), axis=-1) * weights)
        return total, mx.sum(weights)

    def chance(self, examples: Sequence[Example]) -> float:
        """Return the entropy of uniformly distributed labels, or the variance of numbers."""
        if self.problem == "regression":
            return float(np.var([example.target for example in examples]))
        return math.log(2) if self.problem == "multi_label_classification" else super().chance(examples)

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        return (self._compute_logits(model, batch),)

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        logits = np.stack([row[0] for row in outputs])
        targets = np.array([example.target for example in examples])
        if self.problem == "single_label_classification":
            return classification_metrics(targets, logits.argmax(1), self.labels)
        if self.problem == "multi_label_classification":
            return multi_label_metrics(targets > 0.5, logits > 0)
        return regression_metrics(targets.reshape(logits.shape), logits)


@dataclass
class TokenObjective(Objective):
    """Objective with one label per token; tokens with −100 are ignored."""

    def _make_targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        targets = np.full((len(examples), width), IGNORED, dtype=np.int32)
        for row, example in enumerate(examples):
            targets[row, : len(example.target)] = example.target
        return {"targets": targets}

    def _compute_logits(self, model: Any, batch: Batch) -> mx.array:
        return model.score(model.dropout(self._compute_hidden(model, batch))).astype(mx.float32)

    def loss(self, model: Any, batch: Batch, marks: Marks = None) -> tuple[mx.array, mx.array]:
        """Return the summed cross entropy of labelled tokens, and the sum of their weights."""
        logits, targets = self._compute_logits(model, batch), batch["targets"]
        counts = targets != IGNORED
        weights = counts.astype(mx.float32) * batch["weights"][:, None]
        labels = mx.where(counts, targets, 0).reshape(-1)
        total = summed_cross_entropy(logits.reshape(labels.size, -1), labels, weights.reshape(-1))
        return total, mx.sum(weights)

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        return (mx.argmax(self._compute_logits(model, batch), axis=-1),)

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        expected = np.concatenate([example.target for example in examples])
        predicted = np.concatenate([row[0][: len(e.target)] for e, row in zip(examples, outputs, strict=True)])
        counts = expected != IGNORED
        return classification_metrics(expected[counts], predicted[counts], self.labels)


@dataclass
class SpanObjective(Objective):
    """Objective with the first and the last token of an answer; (0, 0) for no answer."""

    def _make_targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        return {"targets": np.array([example.target for example in examples], dtype=np.int32)}

    def _compute_logits(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        both = model.qa_outputs(self._compute_hidden(model, batch)).astype(mx.float32)
        real = mx.arange(both.shape[1]) <= batch["last"][:, None]
        lowest = mx.finfo(mx.float32).min / 2
        return mx.where(real, both[..., 0], lowest), mx.where(real, both[..., 1], lowest)

    def loss(self, model: Any, batch: Batch, marks: Marks = None) -> tuple[mx.array, mx.array]:
        """Return the mean of both cross entropies, summed over rows, and the sum of the weights."""
        starts, ends = self._compute_logits(model, batch)
        targets, weights = batch["targets"], batch["weights"]
        total = summed_cross_entropy(starts, targets[:, 0], weights) + summed_cross_entropy(
            ends, targets[:, 1], weights
        )
        return total / 2, mx.sum(weights)

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        return tuple(mx.argmax(logits, axis=-1) for logits in self._compute_logits(model, batch))

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        found = np.array([[int(start), int(end)] for start, end in outputs])
        expected = np.array([example.target for example in examples])
        return {"exact_match": float((found == expected).all(1).mean())}


@dataclass
class LanguageObjective(Objective):
    """Objective of next-token prediction, from the example's first token that counts.

    Attributes:
        frozen_head: whether the output head is not trained, as with LoRA on other layers.
    """

    frozen_head: bool = True

    def _make_targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        positions, labels, weights = [], [], []
        for row, example in enumerate(examples):
            first = max(int(example.target), 1)
            positions += range(row * width + first - 1, row * width + len(example.ids) - 1)
            labels += example.ids[first:]
            weights += [example.weight] * (len(example.ids) - first)
        # round up the size, so that few shapes are compiled
        size = -(-max(len(labels), 1) // (16 * self.step)) * 16 * self.step
        fill = size - len(labels)
        return {
            "positions": np.array(positions + [0] * fill, dtype=np.int32),
            "targets": np.array(labels + [0] * fill, dtype=np.int32),
            "token_weights": np.array(weights + [0.0] * fill, dtype=np.float32),
        }

    def loss(self, model: Any, batch: Batch, marks: Marks = None) -> tuple[mx.array, mx.array]:
        """Return the summed cross entropy of the tokens that count, and the sum of their weights."""
        hidden = self._compute_hidden(model, batch)
        rows = hidden.reshape(-1, hidden.shape[-1])[batch["positions"]]
        weights = batch["token_weights"]
        head = model.lm_head if "lm_head" in model else model.base_model.embed_tokens
        trained = None if self.frozen_head else head
        total = chunked_cross_entropy(model.logits, rows, batch["targets"], weights, trained, marks)
        return total, mx.sum(weights)
