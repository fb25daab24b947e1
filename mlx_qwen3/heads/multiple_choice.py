"""One of several texts: each choice's pooled state → one logit; the choices of a question compete.

Source: transformers 4.50 `modeling_qdqbert.py`, QDQBertForMultipleChoice.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import mlx.nn as nn

from ..errors import InputError
from ..layers.arguments import as_array
from ..outputs import MultipleChoiceModelOutput
from .backbone import OnBackbone
from .losses import cross_entropy
from .token_classification import classifier_dropout

BY_CHOICE = {"input_ids": 3, "attention_mask": 3, "token_type_ids": 3, "position_ids": 3, "inputs_embeds": 4}
"""The arguments that have an axis of choices, and how many axes they have with it."""


class MultipleChoice(OnBackbone):
    """Questions and choices become the rows of one batch."""

    head_name: ClassVar[str] = "classifier"
    dropout_of: ClassVar[Callable[[Any], float]] = staticmethod(classifier_dropout)

    def __init__(self, config: Any):
        super().__init__(config)
        self.dropout = nn.Dropout(type(self).dropout_of(config))
        setattr(self, self.head_name, nn.Linear(config.hidden_size, 1))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits (B, choices), and with `labels` (B,), the number of the right choice, the loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, choices, L).
            inputs_embeds: (B, choices, L, M).

        Raises:
            InputError: an argument without the axis of choices.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        choices = 0
        for name, axes in BY_CHOICE.items():
            array = as_array(inputs.get(name), name)
            if array is None:
                continue
            if array.ndim != axes:
                raise InputError(f"{name} has the shape {tuple(array.shape)}, expected (batch, choices, …)")
            choices = choices or array.shape[1]
            inputs[name] = array.reshape(-1, *array.shape[2:])
        base = self.backbone(return_dict=True, **inputs)
        logits = self[self.head_name](self.dropout(base.pooler_output)).reshape(-1, choices)
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(MultipleChoiceModelOutput, base, return_dict, loss=loss, logits=logits)
