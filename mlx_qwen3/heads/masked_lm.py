"""The word behind a mask: hidden states → a transform → logits over the vocabulary, and the loss.

Source: transformers 4.50 `modeling_qdqbert.py`, QDQBertLMPredictionHead.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..layers.activations import activation
from ..layers.arguments import as_array
from ..outputs import MaskedLMOutput
from .backbone import OnBackbone
from .losses import cross_entropy


class PredictionTransform(nn.Module):
    """A dense layer, the model's activation and LayerNorm."""

    def __init__(self, config: Any):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, hidden: mx.array) -> mx.array:
        return self.LayerNorm(self.activation(self.dense(hidden)))


class Predictions(nn.Module):
    """The transform and the projection to the vocabulary; tied, it projects with the word embeddings."""

    def __init__(self, config: Any):
        super().__init__()
        self.transform = PredictionTransform(config)
        self.bias = mx.zeros((config.vocab_size,))
        if not config.tie_word_embeddings:
            self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, hidden: mx.array, project_tied: Callable[[mx.array], mx.array]) -> mx.array:
        hidden = self.transform(hidden)
        project = self.decoder if "decoder" in self else project_tied
        return project(hidden) + self.bias


class PredictsVocabulary(OnBackbone):
    """What the masked and the causal language model of the BERT family share: `cls.predictions`."""

    cls: Any

    def _add_head(self, config: Any) -> None:
        self.cls = nn.Module()
        self.cls.predictions = Predictions(config)

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states (..., M) → logits (..., V)."""
        return self.cls.predictions(hidden, self.backbone.embeddings.word_embeddings.as_linear)


class MaskedLM(PredictsVocabulary):
    """A word for every position; `labels` are not shifted."""

    def __init__(self, config: Any):
        super().__init__(config)
        self._add_head(config)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits (B, L, V), and with `labels` (B, L) the loss; −100 marks a position that does not count."""
        base = self.backbone(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self.logits(base.last_hidden_state)
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(MaskedLMOutput, base, return_dict, loss=loss, logits=logits)
