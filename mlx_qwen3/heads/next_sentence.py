"""Does the second sentence follow the first: pooled state → two logits, and the loss.

Source: transformers 4.50 `modeling_qdqbert.py`, QDQBertForNextSentencePrediction.
"""

from typing import Any

import mlx.nn as nn

from ..layers.arguments import as_array
from ..outputs import NextSentencePredictorOutput
from .backbone import OnBackbone
from .losses import cross_entropy


class NextSentencePrediction(OnBackbone):
    """Logit 0: sentence B continues sentence A; logit 1: it is a random one."""

    cls: Any

    def __init__(self, config: Any):
        super().__init__(config)
        self.cls = nn.Module()
        self.cls.seq_relationship = nn.Linear(config.hidden_size, 2)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits (B, 2), and with `labels` (B,), 0 or 1, the loss."""
        labels = inputs.pop("next_sentence_label", None) if labels is None else labels  # the older name
        base = self.backbone(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self.cls.seq_relationship(base.pooler_output)
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(NextSentencePredictorOutput, base, return_dict, loss=loss, logits=logits)
