"""Scaled dot-product attention: the fused kernel, and the plain form that also gives the weights."""

import mlx.core as mx

from .masks import Mask


def attend(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """softmax(q·kᵀ·scale)·v through `mx.fast` (Metal on a Mac).

    Args:
        queries: (B, H, L, D). keys, values: (B, K, S, D) with K dividing H; query head h uses h // (H/K).

    Returns:
        (B, H, L, D).
    """
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        mask = mask.astype(queries.dtype)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def attend_with_weights(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: Mask,
    dropout: float = 0.0,
) -> tuple[mx.array, mx.array]:
    """The same, step by step: also returns the weights (B, H, L, S). The softmax is computed in float32.

    dropout: probability of dropping a weight; pass 0 outside training.
    """
    batch, heads, length, size = queries.shape
    groups = heads // keys.shape[1]
    grouped = queries.reshape(batch, keys.shape[1], groups, length, size)
    scores = (grouped * scale) @ mx.expand_dims(keys, 2).swapaxes(-1, -2)
    scores = scores.reshape(batch, heads, length, keys.shape[2])
    if isinstance(mask, str):
        slots = mx.arange(keys.shape[2])
        mask = slots[None] <= slots[keys.shape[2] - length :, None]
    if mask is not None and mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask.astype(scores.dtype)
    weights = mx.softmax(scores.astype(mx.float32), axis=-1).astype(queries.dtype)
    if dropout:
        kept = mx.random.bernoulli(1 - dropout, weights.shape)
        weights = mx.where(kept, weights / (1 - dropout), 0)
    mixed = weights.reshape(batch, keys.shape[1], groups, length, -1) @ mx.expand_dims(values, 2)
    return mixed.reshape(batch, heads, length, size), weights
