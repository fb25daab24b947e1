"""One label a token."""

from typing import Any, ClassVar

import mlx.nn as nn

from ..layers.arguments import as_array
from ..outputs import TokenClassifierOutput
from .backbone import OnBackbone
from .losses import cross_entropy


def classifier_dropout(config: Any) -> float:
    """`classifier_dropout`, else `hidden_dropout`, else 0.1, as the reference's generic head."""
    for name in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return 0.1


class TokenClassification(OnBackbone):
    """A linear layer with a bias on every hidden state; dropout in training only."""

    head_name: ClassVar[str] = "score"
    dropout_of: ClassVar[Any] = staticmethod(classifier_dropout)

    def __init__(self, config: Any):
        super().__init__(config)
        self.dropout = nn.Dropout(self.dropout_of(config))
        setattr(self, self.head_name, nn.Linear(config.hidden_size, config.num_labels))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits (B, L, num_labels), and with `labels` (B, L) the loss; −100 marks a token that does not count."""
        base = self.backbone(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self[self.head_name](self.dropout(base.last_hidden_state))
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(TokenClassifierOutput, base, return_dict, loss=loss, logits=logits)
