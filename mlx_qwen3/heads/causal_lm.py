"""The next token: hidden states → logits over the vocabulary, and the shifted loss."""

from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import InputError
from ..layers.arguments import as_array, check_range
from ..outputs import CausalLMOutputWithPast, ModelOutput
from .backbone import OnBackbone
from .losses import shifted_cross_entropy


class CausalLM(OnBackbone):
    """A decoder with `lm_head` on top, or with its embedding used as the head when the two are tied."""

    output_class: ClassVar[type[ModelOutput]] = CausalLMOutputWithPast

    def __init__(self, config: Any):
        super().__init__(config)
        self._add_head(config)

    def _add_head(self, config: Any) -> None:
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states (..., M) → logits (..., V)."""
        if "lm_head" in self:
            return self.lm_head(hidden)
        return self.backbone.embed_tokens.as_linear(hidden)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Any = None,
        logits_to_keep: Any = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
        shift_labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with `labels` the loss, as `CausalLMOutputWithPast`.

        Args:
            labels: (B, L) token ids, −100 where a position does not count; position i predicts label i + 1.
            logits_to_keep: n for the last n positions (0 for all), or the positions themselves: (n,) for every row,
                (B, n) by row, or booleans (L,).
            num_items_in_batch: divide the summed loss by this.
            shift_labels: labels that are shifted already; `labels` must be given as well.
            The others: see the backbone's call.
        """
        base = self.backbone(
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
        logits = self.logits(kept_positions(base.last_hidden_state, logits_to_keep))
        loss = None
        targets = as_array(labels, "labels")
        if targets is not None:
            count = as_array(num_items_in_batch, "num_items_in_batch")
            loss = shifted_cross_entropy(logits, targets, as_array(shift_labels, "shift_labels"), count)
        return self._output(self.output_class, base, return_dict, loss=loss, logits=logits)


def kept_positions(hidden: mx.array, keep: Any) -> mx.array:
    """The positions of hidden (B, L, M) that `logits_to_keep` names."""
    if isinstance(keep, int) and not isinstance(keep, bool):
        if keep < 0:
            raise InputError(f"logits_to_keep is {keep}, expected 0 or more, or a list of positions")
        return hidden[:, -keep:] if 0 < keep < hidden.shape[1] else hidden
    positions = as_array(keep, "logits_to_keep")
    if positions is None or positions.ndim not in (1, 2):
        raise InputError("logits_to_keep must be a number, or a list of positions")
    if positions.dtype == mx.bool_:
        chosen = np.array(positions if positions.ndim == 1 else positions[0])
        positions = mx.array(np.flatnonzero(chosen).astype(np.int32))
    length = hidden.shape[1]
    check_range(positions, -length, length, "logits_to_keep", f"the {length} positions")
    if positions.ndim == 1:
        return hidden[:, positions]
    return mx.take_along_axis(hidden, positions[..., None], axis=1)
