"""The calls of the heads, shared by both model families.

A head class precedes the base class of the family in the bases. It uses `self.model` and `self.score`,
`self.qa_outputs` or `self.logits`, which the constructor of the family's class creates.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..layers.arguments import ArrayLike, as_array, check_range
from ..outputs import (
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from .losses import binary_cross_entropy, cross_entropy, mean_squared_error, shifted_cross_entropy, span_loss

if TYPE_CHECKING:
    from .pretrained import PreTrainedModel as Base
else:
    Base = object


class Head(Base):
    """Base of the heads, mixed into classes that create `self.model` and the layers of the head."""

    model: Any

    def _output(self, kind: type[ModelOutput], base: ModelOutput, return_dict: bool | None, **results: Any) -> Any:
        """Return `kind` with the results of the head and the fields of the decoder's output with the same names."""
        fields = kind.__dataclass_fields__
        shared = {name: getattr(base, name) for name in fields if name not in results and hasattr(base, name)}
        output = kind(**results, **shared)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class CausalLM(Head):
    """Predict the next token."""

    output_class: ClassVar[type[ModelOutput]] = CausalLMOutputWithPast

    if TYPE_CHECKING:

        def logits(self, hidden: mx.array) -> mx.array: ...

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any, ...]: ...
    @overload
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        past_key_values: Any = None,
        inputs_embeds: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Any = None,
        logits_to_keep: Any = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
        shift_labels: ArrayLike | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast: ...
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        past_key_values: Any = None,
        inputs_embeds: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Any = None,
        logits_to_keep: Any = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
        shift_labels: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return logits and, with `labels`, the loss, as `CausalLMOutputWithPast`.

        Args:
            labels: (B, L) token ids, −100 for ignored positions; position i predicts label i + 1.
            logits_to_keep: n for the last n positions (0 for all), or the positions themselves: (n,) for every row,
                (B, n) by row, or booleans (L,).
            num_items_in_batch: divide the summed loss by this.
            shift_labels: labels that are already shifted; `labels` is required as well.
            The others: see the decoder's call.
        """
        base = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
            return_dict=True,
            **kwargs,
        )
        logits = self.logits(select_positions(base.last_hidden_state, logits_to_keep))
        loss = None
        targets = as_array(labels, "labels")
        if targets is not None:
            count = as_array(num_items_in_batch, "num_items_in_batch")
            loss = shifted_cross_entropy(logits, targets, as_array(shift_labels, "shift_labels"), count)
        return self._output(self.output_class, base, return_dict, loss=loss, logits=logits)


class SequenceClassification(Head):
    """Classify a sequence: one label, several labels, or regression."""

    output_class: ClassVar[type[ModelOutput]] = SequenceClassifierOutputWithPast
    score: Any
    dropout: Any

    def pool(
        self,
        base: Any,
        input_ids: mx.array | None,
        last_positions: mx.array | None,
        attention_mask: mx.array | None = None,
    ) -> mx.array:
        """Return one vector per sequence, (B, M): that of the last token, or the mean if `classifier_pooling` asks for
        it.
        """
        hidden = base.last_hidden_state
        if getattr(self.config, "classifier_pooling", None) == "mean":
            return mean_of_tokens(self.config, hidden, input_ids, last_positions, attention_mask)
        return last_token(self.config, hidden, input_ids, last_positions)

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any, ...]: ...
    @overload
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        labels: ArrayLike | None = None,
        last_positions: ArrayLike | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutputWithPast: ...
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        labels: ArrayLike | None = None,
        last_positions: ArrayLike | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return logits (B, num_labels), and with `labels` the loss.

        Args:
            labels: (B,) numbers for regression or label ids; (B, num_labels) zeros and ones for several labels.
                `config.problem_type` decides; when unset, one label means regression, integer labels one class, and
                float labels several classes.
            last_positions: (B,) index of the last token of each row; by default that of the rightmost id
                that is not padding.
            **inputs: arguments of the decoder's call.
        """
        ids = as_array(input_ids, "input_ids")
        base = self.model(ids, attention_mask=attention_mask, return_dict=True, **inputs)
        vector = self.pool(
            base, ids, as_array(last_positions, "last_positions"), as_array(attention_mask, "attention_mask")
        )
        logits = self.score(self.dropout(vector))
        targets = as_array(labels, "labels")
        loss = None if targets is None else self.loss(logits, targets)
        return self._output(self.output_class, base, return_dict, loss=loss, logits=logits)

    def loss(self, logits: mx.array, labels: mx.array) -> mx.array:
        """Return the loss named by `config.problem_type`, or implied by the dtype and shape of the labels."""
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


class TokenClassification(Head):
    """Classify every token: a linear layer with a bias on every hidden state; dropout in training only."""

    score: Any
    dropout: Any

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any, ...]: ...
    @overload
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        labels: ArrayLike | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> TokenClassifierOutput: ...
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        labels: ArrayLike | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return logits (B, L, num_labels) and, with `labels` (B, L), the loss; −100 marks ignored tokens."""
        base = self.model(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self.score(self.dropout(base.last_hidden_state))
        targets = as_array(labels, "labels")
        loss = None if targets is None else cross_entropy(logits, targets)
        return self._output(TokenClassifierOutput, base, return_dict, loss=loss, logits=logits)


class QuestionAnswering(Head):
    """Predict the span of an answer: its start and its end."""

    qa_outputs: Any

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any, ...]: ...
    @overload
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        start_positions: ArrayLike | None = None,
        end_positions: ArrayLike | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> QuestionAnsweringModelOutput: ...
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        start_positions: ArrayLike | None = None,
        end_positions: ArrayLike | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return `start_logits` and `end_logits` (B, L) and, with both positions (B,), the loss.

        A position beyond the sequence is ignored; a negative one is clamped to 0.
        """
        base = self.model(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        logits = self.qa_outputs(base.last_hidden_state)
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


def select_positions(hidden: mx.array, keep: Any) -> mx.array:
    """Return the positions of hidden (B, L, M) selected by `logits_to_keep`."""
    if isinstance(keep, int) and not isinstance(keep, bool):
        if keep < 0:
            raise InputError(f"logits_to_keep is {keep}, expected 0 or more, or a list of positions.")
        return hidden[:, -keep:] if 0 < keep < hidden.shape[1] else hidden
    positions = as_array(keep, "logits_to_keep")
    if positions is None or positions.ndim not in (1, 2):
        raise InputError("logits_to_keep must be a number or a list of positions.")
    if positions.dtype == mx.bool_:
        chosen = np.array(positions if positions.ndim == 1 else positions[0])
        positions = mx.array(np.flatnonzero(chosen).astype(np.int32))
    length = hidden.shape[1]
    check_range(positions, -length, length, "logits_to_keep", f"the {length} positions")
    if positions.ndim == 1:
        return hidden[:, positions]
    return mx.take_along_axis(hidden, positions[..., None], axis=1)


def last_token(config: Any, hidden: mx.array, input_ids: mx.array | None, last_positions: mx.array | None) -> mx.array:
    """Return the state (B, M) of the rightmost token that is not padding, or of `last_positions` (B,).

    Padding is found by the ids, never by the attention mask; a row of only padding uses its first position. Without
    a padding id, or with embeddings instead of ids, the last position is used; without a padding id a batch raises.
    Source: transformers 5.23 `modeling_layers.py`, GenericForSequenceClassification.
    """
    batch = hidden.shape[0]
    if last_positions is None:
        last_positions = _last_positions(config, hidden, input_ids)
    return hidden[mx.arange(batch), last_positions]


def _last_positions(config: Any, hidden: mx.array, input_ids: mx.array | None) -> mx.array:
    batch, length, _ = hidden.shape
    if config.pad_token_id is None and batch != 1:
        raise InputError("cannot handle a batch of more than one row without a padding token. Set config.pad_token_id.")
    if config.pad_token_id is None or input_ids is None:
        return mx.full((batch,), length - 1)
    positions = mx.where(input_ids != config.pad_token_id, mx.arange(length), 0)
    return mx.max(positions, axis=-1)


def mean_of_tokens(
    config: Any,
    hidden: mx.array,
    input_ids: mx.array | None,
    last_positions: mx.array | None,
    attention_mask: mx.array | None = None,
) -> mx.array:
    """Return the mean of hidden (B, L, M) over the tokens of each row, (B, M), summed in float32.

    The tokens are those of a mask (B, L), or else all up to the last one, as in `last_token`.
    """
    length = hidden.shape[1]
    if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape[1] == length:
        counts = attention_mask != 0
    else:
        if last_positions is None:
            last_positions = _last_positions(config, hidden, input_ids)
        counts = mx.arange(length) <= last_positions[:, None]
    weights = counts[..., None].astype(mx.float32)
    total = mx.sum(hidden.astype(mx.float32) * weights, axis=1)
    return (total / mx.maximum(mx.sum(weights, axis=1), 1)).astype(hidden.dtype)


def classifier_dropout(config: Any) -> float:
    """Return `classifier_dropout`, else `hidden_dropout`, else 0.1, as the reference's generic head does."""
    for name in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return 0.1
