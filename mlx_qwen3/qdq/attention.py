"""BERT attention with a fake quantizer at every operand: self attention, cross attention, relative positions.

Source: transformers 4.50 `models/deprecated/qdqbert/modeling_qdqbert.py`, QDQBertSelfAttention.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..layers.attention import apply_mask, attend
from .fake_quantizer import TensorQuantizer
from .linear import LayerDescriptors, QuantLinear

KeysAndValues = tuple[mx.array, mx.array]
"""(B, H, S, D) each, not quantized: the quantizers run on all keys and values at every step."""


class QuantSelfAttention(nn.Module):
    """Attention of `num_heads` heads over `hidden_size` features.

    Args:
        position_embedding_type: 'absolute', 'relative_key' or 'relative_key_query'.
        max_positions: largest distance of relative positions.
        descriptors: descriptors of all fake quantizers of the layer.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        position_embedding_type: str,
        max_positions: int,
        descriptors: LayerDescriptors,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_size = hidden_size // num_heads
        self.query = QuantLinear(hidden_size, hidden_size, descriptors)
        self.key = QuantLinear(hidden_size, hidden_size, descriptors)
        self.value = QuantLinear(hidden_size, hidden_size, descriptors)
        self.dropout = nn.Dropout(dropout)
        self.dropout_probability = dropout
        self.position_embedding_type = position_embedding_type
        self.max_positions = max_positions
        if position_embedding_type != "absolute":
            self.distance_embedding = nn.Embedding(2 * max_positions - 1, self.head_size)
        self.matmul_q_input_quantizer = TensorQuantizer(descriptors.input)
        self.matmul_k_input_quantizer = TensorQuantizer(descriptors.input)
        self.matmul_v_input_quantizer = TensorQuantizer(descriptors.input)
        self.matmul_a_input_quantizer = TensorQuantizer(descriptors.input)

    def __call__(
        self,
        hidden_states: mx.array,
        mask: mx.array | None = None,
        *,
        head_mask: mx.array | None = None,
        encoder_hidden_states: mx.array | None = None,
        past: KeysAndValues | None = None,
        offset: int = 0,
        need_weights: bool = False,
    ) -> tuple[mx.array, mx.array | None, KeysAndValues]:
        """Return the attention output, the weights if requested, and the keys and values to cache.

        Args:
            hidden_states: (B, L, M).
            mask: added to the scores (B, 1, L or 1, S); None if no key is masked.
            head_mask: multiplies the weights, broadcast to (B, H, L, S).
            encoder_hidden_states: (B, S, M) for cross attention.
            past: keys and values of earlier tokens or of the encoder's states.
            offset: the position of the first query.

        Returns:
            (B, L, M); weights (B, H, L, S) after `head_mask`, not quantized, or None; keys and values.
        """
        queries = self._heads(self.query(hidden_states))
        if encoder_hidden_states is not None and past is not None:
            keys, values = past
        else:
            source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            keys, values = self._heads(self.key(source)), self._heads(self.value(source))
            if past is not None:
                keys = mx.concatenate([past[0], keys], axis=2)
                values = mx.concatenate([past[1], values], axis=2)
        if not need_weights and head_mask is None and self._can_fuse():
            mixed, weights = attend(queries, keys, values, 1 / math.sqrt(self.head_size), mask), None
        else:
            mixed, weights = self._attend(queries, keys, values, mask, head_mask, offset)
        batch, _, length, _ = mixed.shape
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, length, -1)
        return mixed, weights if need_weights else None, (keys, values)

    def _attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | None,
        head_mask: mx.array | None,
        offset: int,
    ) -> tuple[mx.array, mx.array]:
        scores = self.matmul_q_input_quantizer(queries) @ self.matmul_k_input_quantizer(keys.swapaxes(-1, -2))
        if self.position_embedding_type != "absolute":
            scores = scores + self._relative_scores(queries, keys, offset)
        scores = scores / math.sqrt(self.head_size)
        scores = apply_mask(scores, mask)
        weights = self.dropout(mx.softmax(scores, axis=-1, precise=True))
        if head_mask is not None:
            weights = weights * head_mask
        return self.matmul_a_input_quantizer(weights) @ self.matmul_v_input_quantizer(values), weights

    def _relative_scores(self, queries: mx.array, keys: mx.array, offset: int) -> mx.array:
        """Return q·E[i−j], plus k·E[i−j] for 'relative_key_query', of the unquantized q and k (B, H, L, S)."""
        length, size = queries.shape[2], keys.shape[2]
        if size > self.max_positions:
            raise InputError(
                f"{size} keys are more than the relative positions that 'max_position_embeddings' "
                f"{self.max_positions} allows."
            )
        distances = mx.arange(offset, offset + length)[:, None] - mx.arange(size)[None]
        embedded = self.distance_embedding(distances + self.max_positions - 1).astype(queries.dtype)
        scores = mx.einsum("bhld,lrd->bhlr", queries, embedded)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + mx.einsum("bhrd,lrd->bhlr", keys, embedded)
        return scores

    def _can_fuse(self) -> bool:
        quantizers = (
            self.matmul_q_input_quantizer,
            self.matmul_k_input_quantizer,
            self.matmul_v_input_quantizer,
            self.matmul_a_input_quantizer,
        )
        dropping = self.training and self.dropout_probability > 0
        return (
            self.position_embedding_type == "absolute"
            and not dropping
            and not any(quantizer.enabled for quantizer in quantizers)
        )

    def _heads(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.num_heads, self.head_size).transpose(0, 2, 1, 3)
