"""The QDQBert classes with a head.

Source: transformers 4.50 `modeling_qdqbert.py`. Calls shared with Qwen3 are in `models/heads.py`.
"""

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config.qdqbert import QDQBertConfig
from ..errors import ConfigError, InputError
from ..generation.mixin import GenerationMixin
from ..generation.results import GenerateOutput
from ..layers.activations import activation
from ..layers.arguments import as_array
from ..models.heads import (
    CausalLM,
    Head,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)
from ..models.losses import cross_entropy
from ..outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    SequenceClassifierOutput,
)
from .model import QDQBertModel
from .pretrained import QDQBertPreTrainedModel

logger = logging.getLogger(__name__)

BY_CHOICE = {"input_ids": 3, "attention_mask": 3, "token_type_ids": 3, "position_ids": 3, "inputs_embeds": 4}
"""The arguments with an axis of choices, and their number of axes."""


def dropout_before_head(config: QDQBertConfig) -> float:
    """Return BERT's `classifier_dropout`, else `hidden_dropout_prob`."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


class QDQBertWithHead(QDQBertPreTrainedModel):
    """The base model under its name on disk, `bert`, with or without the pooler."""

    pooled: bool = True
    model: Any = property(lambda self: self.bert)
    """The base model, for the calls in `models/heads.py`."""

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.bert = QDQBertModel(config, add_pooling_layer=self.pooled)


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


class QDQBertPredictsVocabulary(QDQBertWithHead):
    """Base of the masked and the causal language model: `cls.predictions`."""

    pooled = False
    cls: Any

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.cls = nn.Module()
        self.cls.predictions = Predictions(config)
        self.post_init()

    def logits(self, hidden: mx.array) -> mx.array:
        """Map hidden states (..., M) to logits (..., V)."""
        return self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.as_linear)


class QDQBertLMHeadModel(GenerationMixin, CausalLM, QDQBertPredictsVocabulary):
    """QDQBert that predicts the next token. Attention is causal only if `config.is_decoder`."""

    output_class = CausalLMOutputWithCrossAttentions
    counts_positions_by_mask = False

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        if not config.is_decoder:
            logger.warning("QDQBertLMHeadModel is bidirectional: pass is_decoder=True for causal attention")

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Return logits (B, L, V), and with `labels` the shifted loss and no cache.

        Args:
            **inputs: `labels` (B, L), `logits_to_keep`, and the arguments of the base model's call.
        """
        if inputs.get("labels") is not None:
            inputs["use_cache"] = False
        return super().__call__(*args, **inputs)

    def generate(self, input_ids: Any = None, *args: Any, **options: Any) -> mx.array | GenerateOutput:
        """Generate from prompts (B, L); see `GenerationMixin.generate`.

        Raises:
            ConfigError: the config is not that of a decoder.
        """
        if not self.config.is_decoder:
            raise ConfigError(
                "config field 'is_decoder' is false: only a decoder generates. Load with is_decoder=True."
            )
        return super().generate(input_ids, *args, **options)


class QDQBertForMaskedLM(Head, QDQBertPredictsVocabulary):
    """QDQBert that fills in masked words; `labels` are not shifted."""

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return logits (B, L, V), and with `labels` (B, L) the loss; −100 marks ignored positions."""
        base = self.model(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self.logits(base.last_hidden_state)
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(MaskedLMOutput, base, return_dict, loss=loss, logits=logits)


class QDQBertForNextSentencePrediction(Head, QDQBertWithHead):
    """QDQBert that classifies whether the second sentence follows the first: logit 0 yes, logit 1 random."""

    cls: Any

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.cls = nn.Module()
        self.cls.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return logits (B, 2), and with `labels` (B,), 0 or 1, the loss."""
        labels = inputs.pop("next_sentence_label", None) if labels is None else labels  # the older name
        base = self.model(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self.cls.seq_relationship(base.pooler_output)
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(NextSentencePredictorOutput, base, return_dict, loss=loss, logits=logits)


class QDQBertForMultipleChoice(Head, QDQBertWithHead):
    """QDQBert that picks one of several texts: the choices of all questions form one batch."""

    classifier: Any

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(dropout_before_head(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return logits (B, choices) and, with `labels` (B,), the index of the right choice, the loss.

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
                raise InputError(f"{name} has the shape {tuple(array.shape)}, expected (batch, choices, …).")
            choices = choices or array.shape[1]
            inputs[name] = array.reshape(-1, *array.shape[2:])
        base = self.model(return_dict=True, **inputs)
        logits = self.classifier(self.dropout(base.pooler_output)).reshape(-1, choices)
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(MultipleChoiceModelOutput, base, return_dict, loss=loss, logits=logits)


class QDQBertForSequenceClassification(SequenceClassification, QDQBertWithHead):
    """QDQBert that labels a sequence by its pooled first token."""

    output_class = SequenceClassifierOutput
    score: Any = property(lambda self: self.classifier)
    """The head's layer, for the call in `models/heads.py`."""

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(dropout_before_head(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def pool(
        self,
        base: Any,
        input_ids: mx.array | None,
        last_positions: mx.array | None,
        attention_mask: mx.array | None = None,
    ) -> mx.array:
        """Return the pooled vector of each sequence, (B, M)."""
        return base.pooler_output


class QDQBertForTokenClassification(TokenClassification, QDQBertWithHead):
    """QDQBert that labels every token."""

    pooled = False
    score: Any = property(lambda self: self.classifier)
    """The head's layer, for the call in `models/heads.py`."""

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(dropout_before_head(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class QDQBertForQuestionAnswering(QuestionAnswering, QDQBertWithHead):
    """QDQBert that marks the span of an answer."""

    pooled = False

    def __init__(self, config: QDQBertConfig):
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()
