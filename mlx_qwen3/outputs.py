"""Model outputs: fields by attribute, by key and by index, in the Hugging Face order.

Fields that are None are omitted from the mapping and the tuple, as in the reference.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

_ALWAYS_SET: Any = None
"""Default of fields that every model sets, so that type checkers require no test for None."""


@dataclass
class ModelOutput(Mapping):
    """An immutable mapping of results. `output.logits`, `output["logits"]` and `output[0]` are the same."""

    def _present(self) -> dict[str, Any]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._present()[key]
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]  # Mapping defines none; outputs are compared by identity
        return id(self)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(self._present().values())


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """`last_hidden_state` (B, L, M); `attentions` has one entry per layer, `hidden_states` one more: the embeddings."""

    last_hidden_state: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """A decoder's output. `hidden_states` has num_layers + 1 entries, the last one after the final norm."""

    last_hidden_state: mx.array = _ALWAYS_SET
    past_key_values: Any = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """BERT's output. `pooler_output` (B, M) comes from the first token."""

    last_hidden_state: mx.array = _ALWAYS_SET
    pooler_output: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    past_key_values: Any = None
    attentions: tuple[mx.array, ...] | None = None
    cross_attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """`loss` a scalar; `logits` (B, L, V), or those of the requested positions."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    past_key_values: Any = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """As `CausalLMOutputWithPast`, with the attention to the encoder's states."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    past_key_values: Any = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    cross_attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class MaskedLMOutput(ModelOutput):
    """`logits` (B, L, V)."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class SequenceClassifierOutput(ModelOutput):
    """`logits` (B, num_labels)."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """`logits` (B, num_labels), from a decoder that may also return its cache."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    past_key_values: Any = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class TokenClassifierOutput(ModelOutput):
    """`logits` (B, L, num_labels)."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits` (B, L)."""

    loss: mx.array | None = None
    start_logits: mx.array = _ALWAYS_SET
    end_logits: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class MultipleChoiceModelOutput(ModelOutput):
    """`logits` (B, choices)."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class NextSentencePredictorOutput(ModelOutput):
    """`logits` (B, 2): the second sentence is the next one, or a random one."""

    loss: mx.array | None = None
    logits: mx.array = _ALWAYS_SET
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
