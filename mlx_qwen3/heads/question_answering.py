"""A span of the sequence: where the answer starts and where it ends."""

from typing import Any, ClassVar

import mlx.nn as nn

from ..layers.arguments import as_array
from ..outputs import QuestionAnsweringModelOutput
from .backbone import OnBackbone
from .losses import span_loss


class QuestionAnswering(OnBackbone):
    """A linear layer with two outputs on every hidden state."""

    head_name: ClassVar[str] = "qa_outputs"

    def __init__(self, config: Any):
        super().__init__(config)
        setattr(self, self.head_name, nn.Linear(config.hidden_size, 2))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        start_positions: Any = None,
        end_positions: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """`start_logits` and `end_logits` (B, L); with both positions (B,), the loss.

        A position beyond the sequence is ignored; a negative one counts as 0.
        """
        base = self.backbone(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self[self.head_name](base.last_hidden_state)
        starts, ends = as_array(start_positions, "start_positions"), as_array(end_positions, "end_positions")
        loss = None
        if starts is not None and ends is not None:
            loss = span_loss(logits[..., 0], logits[..., 1], starts, ends)
        return self._output(
            QuestionAnsweringModelOutput,
            base,
            return_dict,
            loss=loss,
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
        )
