"""What each task trains: how examples become a batch, what the loss is, and how it is evaluated."""

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


@dataclass
class Example:
    """One row for the model.

    Attributes:
        ids: its tokens.
        target: a label id, numbers (labels,), a label id per token, (first, last) of an answer, or for text generation
            the index of the first token that counts.
        weight: of the row in the loss.
    """

    ids: list[int]
    target: Any
    weight: float = 1.0


@dataclass
class Objective:
    """Base of the objectives.

    Attributes:
        pad: the id that fills a row; no result depends on it.
        labels: names, where there are some.
        checkpoint: whether layers are computed again in the backward pass.
        step: padded lengths are multiples of this, so that few shapes are compiled.
    """

    pad: int = 0
    labels: list[str] = field(default_factory=list)
    checkpoint: bool = False
    step: int = 1

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Return the arrays of some examples."""
        longest = max(len(example.ids) for example in examples)
        width = -(-longest // self.step) * self.step
        ids = np.full((len(examples), width), self.pad, dtype=np.int32)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = example.ids
        last = np.array([len(example.ids) - 1 for example in examples], dtype=np.int32)
        weights = np.array([example.weight for example in examples], dtype=np.float32)
        arrays = {"ids": ids, "last": last, "weights": weights, **self._targets(examples, width)}
        return {name: mx.array(array) for name, array in arrays.items()}

    def _targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the summed loss and what it has to be divided by."""
        raise NotImplementedError

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        """Return what `metrics` needs of a batch, a row per example."""
        return ()

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        """Return the figures of an evaluation besides the loss."""
        return {}

    def chance(self, examples: Sequence[Example]) -> float:
        """Return about the loss of a model that picks labels at random; 0 where that is not known."""
        return math.log(max(len(self.labels), 1))

    def _hidden(self, model: Any, batch: Batch) -> mx.array:
        return hidden_states(model.base_model, batch["ids"], self.checkpoint)


@dataclass
class SequenceObjective(Objective):
    """A label, labels or numbers per text.

    Attributes:
        problem: the configuration's `problem_type`.
    """

    problem: str = "single_label_classification"

    def _targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        kind = np.int32 if self.problem == "single_label_classification" else np.float32
        return {"targets": np.array([example.target for example in examples], dtype=kind)}

    def _logits(self, model: Any, batch: Batch) -> mx.array:
        hidden = self._hidden(model, batch)
        mean = getattr(model.config, "classifier_pooling", None) == "mean"
        pooled = (mean_of_tokens if mean else last_token)(model.config, hidden, None, batch["last"])
        return model.score(model.dropout(pooled)).astype(mx.float32)

    def loss(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the weighted cross entropy, binary cross entropy or squared error, and the sum of the weights."""
        logits, targets, weights = self._logits(model, batch), batch["targets"], batch["weights"]
        if self.problem == "single_label_classification":
            total = summed_cross_entropy(logits, targets, weights)
        elif self.problem == "multi_label_classification":
            losses = mx.maximum(logits, 0) - logits * targets + mx.log1p(mx.exp(-mx.abs(logits)))
            total = mx.sum(mx.mean(losses, axis=-1) * weights)
        else:
            total = mx.sum(mx.mean(mx.square(logits - targets.reshape(logits.shape)), axis=-1) * weights)
        return total, mx.sum(weights)

    def chance(self, examples: Sequence[Example]) -> float:
        """Return the entropy of equal labels, or the variance of numbers."""
        if self.problem == "regression":
            return float(np.var([example.target for example in examples]))
        return math.log(2) if self.problem == "multi_label_classification" else super().chance(examples)

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        return (self._logits(model, batch),)

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
    """A label per token; −100 where none counts."""

    def _targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        targets = np.full((len(examples), width), IGNORED, dtype=np.int32)
        for row, example in enumerate(examples):
            targets[row, : len(example.target)] = example.target
        return {"targets": targets}

    def _logits(self, model: Any, batch: Batch) -> mx.array:
        return model.score(model.dropout(self._hidden(model, batch))).astype(mx.float32)

    def loss(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the cross entropy of the tokens that count, and their number."""
        logits, targets = self._logits(model, batch), batch["targets"]
        counts = targets != IGNORED
        weights = counts.astype(mx.float32) * batch["weights"][:, None]
        labels = mx.where(counts, targets, 0).reshape(-1)
        total = summed_cross_entropy(logits.reshape(labels.size, -1), labels, weights.reshape(-1))
        return total, mx.sum(weights)

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        return (mx.argmax(self._logits(model, batch), axis=-1),)

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        expected = np.concatenate([example.target for example in examples])
        predicted = np.concatenate([row[0][: len(e.target)] for e, row in zip(examples, outputs, strict=True)])
        counts = expected != IGNORED
        return classification_metrics(expected[counts], predicted[counts], self.labels)


@dataclass
class SpanObjective(Objective):
    """The first and the last token of an answer; (0, 0) for none."""

    def _targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        return {"targets": np.array([example.target for example in examples], dtype=np.int32)}

    def _logits(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        both = model.qa_outputs(self._hidden(model, batch)).astype(mx.float32)
        real = mx.arange(both.shape[1]) <= batch["last"][:, None]
        lowest = mx.finfo(mx.float32).min / 2
        return mx.where(real, both[..., 0], lowest), mx.where(real, both[..., 1], lowest)

    def loss(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the mean of the two cross entropies, summed over the rows, and the sum of their weights."""
        starts, ends = self._logits(model, batch)
        targets, weights = batch["targets"], batch["weights"]
        total = summed_cross_entropy(starts, targets[:, 0], weights) + summed_cross_entropy(
            ends, targets[:, 1], weights
        )
        return total / 2, mx.sum(weights)

    def outputs(self, model: Any, batch: Batch) -> tuple[mx.array, ...]:
        return tuple(mx.argmax(logits, axis=-1) for logits in self._logits(model, batch))

    def metrics(self, examples: Sequence[Example], outputs: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        found = np.array([[int(start), int(end)] for start, end in outputs])
        expected = np.array([example.target for example in examples])
        return {"exact_match": float((found == expected).all(1).mean())}


@dataclass
class LanguageObjective(Objective):
    """The next token, from the first one that counts.

    Attributes:
        frozen_head: whether the output head stays as it is, as with LoRA on other layers.
    """

    frozen_head: bool = True

    def _targets(self, examples: Sequence[Example], width: int) -> dict[str, np.ndarray]:
        positions, labels, weights = [], [], []
        for row, example in enumerate(examples):
            first = max(int(example.target), 1)
            positions += range(row * width + first - 1, row * width + len(example.ids) - 1)
            labels += example.ids[first:]
            weights += [example.weight] * (len(example.ids) - first)
        # few different sizes, for the sake of compiled functions
        size = -(-max(len(labels), 1) // (16 * self.step)) * 16 * self.step
        fill = size - len(labels)
        return {
            "positions": np.array(positions + [0] * fill, dtype=np.int32),
            "targets": np.array(labels + [0] * fill, dtype=np.int32),
            "token_weights": np.array(weights + [0.0] * fill, dtype=np.float32),
        }

    def loss(self, model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the cross entropy of the tokens that count, and their number."""
        hidden = self._hidden(model, batch)
        rows = hidden.reshape(-1, hidden.shape[-1])[batch["positions"]]
        weights = batch["token_weights"]
        head = model.lm_head if "lm_head" in model else model.base_model.embed_tokens
        trained = None if self.frozen_head else head
        total = chunked_cross_entropy(model.logits, rows, batch["targets"], weights, trained)
        return total, mx.sum(weights)
