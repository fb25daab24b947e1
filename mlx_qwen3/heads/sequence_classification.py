"""One answer a sequence: a label, several labels, or numbers."""

from collections.abc import Callable
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..layers.arguments import as_array
from ..outputs import ModelOutput, SequenceClassifierOutputWithPast
from .backbone import OnBackbone
from .losses import binary_cross_entropy, cross_entropy, mean_squared_error

Pooling = Callable[[Any, ModelOutput, mx.array | None, mx.array | None], mx.array]
"""(config, backbone's output, input ids, positions of the last tokens) → one vector a sequence (B, M)."""


def last_token(config: Any, base: Any, input_ids: mx.array | None, last_positions: mx.array | None) -> mx.array:
    """The hidden state of the rightmost token that is not padding, or at `last_positions` (B,).

    Without those it looks at the ids, never at the attention mask; a row of nothing but padding uses its first
    position. Without a padding id, or with embeddings instead of ids, the last position; without a padding id a batch
    is refused.
    Source: transformers 5.23 `modeling_layers.py`, GenericForSequenceClassification.
    """
    hidden = base.last_hidden_state
    batch, length, _ = hidden.shape
    if last_positions is not None:
        return hidden[mx.arange(batch), last_positions]
    if config.pad_token_id is None and batch != 1:
        raise InputError("cannot handle a batch of more than one row without a padding token: set config.pad_token_id")
    if config.pad_token_id is None or input_ids is None:
        return hidden[:, -1]
    places = mx.where(input_ids != config.pad_token_id, mx.arange(length), 0)
    return hidden[mx.arange(batch), mx.max(places, axis=-1)]


def pooled(config: Any, base: Any, input_ids: mx.array | None, last_positions: mx.array | None) -> mx.array:
    """What the backbone's own pooler made of the sequence."""
    return base.pooler_output


class SequenceClassification(OnBackbone):
    """A linear layer on one vector a sequence."""

    head_name: ClassVar[str] = "score"
    head_bias: ClassVar[bool] = False
    pooling: ClassVar[Any] = staticmethod(last_token)
    output_class: ClassVar[type[ModelOutput]] = SequenceClassifierOutputWithPast
    dropout_of: ClassVar[Any] = staticmethod(lambda config: 0.0)

    def __init__(self, config: Any):
        super().__init__(config)
        self.dropout = nn.Dropout(self.dropout_of(config))
        setattr(self, self.head_name, nn.Linear(config.hidden_size, config.num_labels, bias=self.head_bias))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        last_positions: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits (B, num_labels), and with `labels` the loss.

        Args:
            labels: (B,) numbers for regression or label ids; (B, num_labels) zeros and ones for several labels.
                `config.problem_type` says which; when unset, one label means regression, whole numbers one label,
                and fractions several.
            last_positions: (B,) where each row's last token stands, for a caller who knows; by default the rightmost
                id that is not padding.
            **inputs: what the backbone's call takes.
        """
        ids = as_array(input_ids, "input_ids")
        base = self.backbone(ids, attention_mask=attention_mask, return_dict=True, **inputs)
        vector = self.pooling(self.config, base, ids, as_array(last_positions, "last_positions"))
        logits = self[self.head_name](self.dropout(vector))
        targets = as_array(labels, "labels")
        loss = None if targets is None else self.loss(logits, targets)
        return self._output(self.output_class, base, return_dict, loss=loss, logits=logits)

    def loss(self, logits: mx.array, labels: mx.array) -> mx.array:
        """The loss that `config.problem_type` names, or the one that the labels' type and number imply."""
        problem = self.config.problem_type
        if problem is None:
            whole = mx.issubdtype(labels.dtype, mx.integer)
            problem = "single_label_classification" if whole else "multi_label_classification"
            problem = "regression" if self.config.num_labels == 1 else problem
        if problem == "regression":
            return mean_squared_error(logits, labels)
        if problem == "single_label_classification":
            return cross_entropy(logits, labels)
        return binary_cross_entropy(logits, labels)
