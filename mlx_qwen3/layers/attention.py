"""Scaled dot-product attention: the fused kernel, and the unfused version that also returns the weights."""

import mlx.core as mx

from .devices import on_cuda
from .masks import Mask, additive, as_bias

MOST_NEW_TOKENS = 128
"""On CUDA, up to this many tokens after a cache bypass cuDNN; see `attends_step_by_step`."""

MOST_SCORES = 1 << 26
"""Attention scores (B·H·L·S) per layer above which building a cuDNN plan pays off."""


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask, cached: bool = False
) -> mx.array:
    """Return softmax(q·kᵀ·scale)·v, computed by `mx.fast` unless other operations are faster.

    Args:
        queries: (B, H, L, D). keys, values: (B, K, S, D) with K dividing H; query head h uses h // (H/K).
        cached: whether the keys are those of a cache, whose number of slots is different in every call.

    Returns:
        (B, H, L, D).
    """
    padded = False
    if isinstance(mask, mx.array):
        padded = cached and on_cuda()
        same_for_all_heads = mask.ndim < 3 or mask.shape[-3] == 1
        if padded and queries.shape[2] == 1 and same_for_all_heads:
            return _attend_with_one_query(queries, keys, values, scale, mask)
        if mask.dtype != mx.bool_:
            mask = additive(mask, queries.dtype)
    if attends_step_by_step(queries, keys) or (padded and _count_scores(queries, keys) <= MOST_SCORES):
        return _attend_step_by_step(queries, keys, values, scale, mask)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def attends_step_by_step(queries: mx.array, keys: mx.array) -> bool:
    """Return whether unfused operations are faster than `mx.fast`, which uses cuDNN on CUDA.

    cuDNN builds a plan for each pair of lengths (about 50 ms on an H200, benchmarks/RESULTS.md). A few new tokens
    after a cache form a pair that rarely recurs: verified drafts, the next message of a chat. Batches of texts reuse a
        few shapes.
    """
    batch, _, length, _ = queries.shape
    new_lengths = 1 < length <= MOST_NEW_TOKENS and batch == 1 and length < keys.shape[2]
    return new_lengths and _count_scores(queries, keys) <= MOST_SCORES and on_cuda()


def _count_scores(queries: mx.array, keys: mx.array) -> int:
    batch, heads, length, _ = queries.shape
    return batch * heads * length * keys.shape[2]


def _attend_with_one_query(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array
) -> mx.array:
    """Return `attend` for one query per row with a mask, for which MLX has no kernel on CUDA.

    The query heads of one key head are rows of one product, which also adds the mask.
    """
    batch, heads, _, size = queries.shape
    rows = queries.reshape(batch, keys.shape[1], -1, size)
    scores = mx.addmm(as_bias(mask, queries.dtype), rows, keys.swapaxes(-1, -2), scale)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return (weights @ values).reshape(batch, heads, 1, size)


def _attend_step_by_step(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
    """Return `attend` with scores in float32; the queries of one key head are rows of one matmul.

    It is fastest with a number of slots rounded by `align_slots`; otherwise the rows of scores are misaligned for GPU
    loads.
    """
    batch, heads, length, size = queries.shape
    kv_heads, slots = keys.shape[1:3]
    rows = (queries.astype(mx.float32) * scale).reshape(batch, kv_heads, -1, size)
    scores = (rows @ keys.astype(mx.float32).swapaxes(-1, -2)).reshape(batch, heads, length, slots)
    weights = mx.softmax(apply_mask(scores, mask), axis=-1).astype(values.dtype)
    return (weights.reshape(batch, kv_heads, -1, slots) @ values).reshape(batch, heads, length, size)


def align_slots(slots: int) -> int:
    """Return the next multiple of 8: GPU matmuls load 8 16-bit values at a time."""
    return -(-slots // 8) * 8


def apply_mask(scores: mx.array, mask: Mask) -> mx.array:
    """Apply a mask to scores (B, H, L, S): numbers are added, False becomes half of the least finite number."""
    length, slots = scores.shape[-2:]
    if isinstance(mask, str):
        order = mx.arange(slots)
        mask = order[None] <= order[slots - length :, None]
    if mask is None:
        return scores
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.finfo(scores.dtype).min / 2)
    return scores + additive(mask, scores.dtype)


def attend_with_weights(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: Mask,
    dropout: float = 0.0,
) -> tuple[mx.array, mx.array]:
    """Return the attention and its weights (B, H, L, S). The softmax is computed in float32.

    dropout: probability of dropping a weight; 0 outside training.
    """
    batch, heads, length, size = queries.shape
    groups = heads // keys.shape[1]
    grouped = queries.reshape(batch, keys.shape[1], groups, length, size)
    scores = (grouped * scale) @ mx.expand_dims(keys, 2).swapaxes(-1, -2)
    scores = scores.reshape(batch, heads, length, keys.shape[2])
    scores = apply_mask(scores, mask)
    weights = mx.softmax(scores.astype(mx.float32), axis=-1).astype(queries.dtype)
    if dropout:
        kept = mx.random.bernoulli(1 - dropout, weights.shape)
        weights = mx.where(kept, weights / (1 - dropout), 0)
    mixed = weights.reshape(batch, keys.shape[1], groups, length, -1) @ mx.expand_dims(values, 2)
    return mixed.reshape(batch, heads, length, size), weights
