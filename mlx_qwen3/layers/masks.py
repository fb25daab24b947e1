"""Attention masks: causal order, sliding windows, padding and packed sequences.

A slot is an index into the cached sequence, padding included; windows and causal order count slots, not position ids,
as the reference does. Masks made here are boolean. Additive masks given by the caller are clipped (`additive`), because
an infinite value turns a fully masked row into NaN. A fully masked row attends to itself.
"""

import mlx.core as mx

from ..errors import InputError

Mask = mx.array | str | None
"""(B or 1, 1, L, S) booleans or additive numbers; "causal"; or None, where every key may be seen."""

SlotRanges = tuple[tuple[int, int], ...]
"""Half-open ranges of slots, ascending: the slots of a layer's keys."""

HIDDEN = -32752.0
"""An additive mask hides a key at or below this number, half of the least float16, in every dtype."""


def additive(mask: mx.array, dtype: mx.Dtype) -> mx.array:
    """Convert a mask to additive numbers in `dtype` that stay finite when a kernel multiplies them by log2(e).

    Metal's attention kernel multiplies so for more than 8 queries: finfo.min would become −inf, and a row of
    −inf NaN. Half of finfo.min stays finite.
    """
    return mx.maximum(mask.astype(dtype), mx.array(mx.finfo(dtype).min / 2, dtype))


def as_bias(mask: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return a mask as numbers in `dtype` to add to scores; additive masks in this dtype are returned unchanged."""
    if mask.dtype == mx.bool_:
        return mx.where(mask, mx.array(0, dtype), mx.array(mx.finfo(dtype).min / 2, dtype))
    return mask if mask.dtype == dtype else additive(mask, dtype)


def key_slots(ranges: SlotRanges) -> mx.array:
    """Return the slot of each key (S,)."""
    return mx.concatenate([mx.arange(a, b) for a, b in ranges]) if len(ranges) != 1 else mx.arange(*ranges[0])


def check_padding_mask(attention_mask: mx.array, batch: int, past: int, length: int) -> None:
    """Raise `InputError` unless the mask is (B, past + L) or four-dimensional."""
    if attention_mask.ndim == 4:
        if attention_mask.shape[0] not in (1, batch) or attention_mask.shape[2] not in (1, length):
            raise InputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, "
                f"expected ({batch}, 1, {length}, {past + length})."
            )
        return
    if attention_mask.ndim != 2 or attention_mask.shape[0] not in (1, batch):
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected ({batch}, {past + length})."
        )
    if attention_mask.shape[1] != past + length:
        raise InputError(
            f"attention_mask covers {attention_mask.shape[1]} tokens, expected {past + length} "
            f"({past} cached and {length} new)."
        )


def decoder_mask(
    length: int,
    past: int,
    ranges: SlotRanges,
    window: int | None = None,
    attention_mask: mx.array | None = None,
    segments: mx.array | None = None,
    sinks: int = 0,
    dtype: mx.Dtype | None = None,
    causal: bool = True,
) -> Mask:
    """Return the mask for one type of layer.

    Args:
        length: L, the new tokens; their slots are past … past+L−1.
        ranges: the slots of the layer's keys: one range, or the sinks and the rest.
        window: number of slots that a query sees, itself included; None for all before it.
        attention_mask: (B, past + L), nonzero for real tokens; or (B, 1, L, S), used unchanged.
        segments: (B, L) numbers of packed sequences; attention stays within one. Needs past = 0.
        sinks: number of first slots that every query sees regardless of the window.
        dtype: the dtype of the scores; additive masks are converted to it.
        causal: hide the slots after a query; otherwise the window extends `window` slots in both directions.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return _crop_mask(attention_mask, ranges, past, length, dtype)
    first, last = ranges[0][0], ranges[-1][1]
    contiguous = len(ranges) == 1
    oldest = max(ranges[-1][0], sinks)  # the first key that the window may hide: earlier ranges hold sinks
    windowed = window is not None and last - oldest > window
    if attention_mask is None and segments is None and contiguous and not windowed:
        return None if length == 1 or not causal else "causal"
    if attention_mask is None and segments is None and length == 1 and not windowed:
        return None
    queries, keys = mx.arange(past, past + length)[:, None], key_slots(ranges)[None, :]
    allowed = keys <= queries if causal else keys >= 0
    if not causal and allowed.shape != (length, keys.shape[1]):
        allowed = mx.broadcast_to(allowed, (length, keys.shape[1]))
    if window is not None:
        inside = keys > queries - window if causal else mx.abs(keys - queries) <= window
        allowed = allowed & (inside | (keys < sinks) if sinks else inside)
    if segments is not None:
        allowed = allowed & (segments[:, :, None] == segments[:, None, :])
    if attention_mask is None:
        return allowed[None, None] if allowed.ndim == 2 else allowed[:, None]
    seen = attention_mask if attention_mask.dtype == mx.bool_ else attention_mask != 0
    if contiguous:
        seen = seen[:, first:last]
    else:
        seen = mx.concatenate([seen[:, a:b] for a, b in ranges], axis=1)
    allowed = (allowed if allowed.ndim == 3 else allowed[None]) & seen[:, None, :]
    blind = mx.logical_not(mx.any(allowed, axis=-1, keepdims=True))
    return (allowed | (blind & (keys == queries)))[:, None]


def with_hidden_slots(mask: Mask, length: int, slots: int, hidden: int) -> mx.array:
    """Extend the mask for L new tokens and S slots by `hidden` slots that no token may see."""
    if isinstance(mask, mx.array):
        mask = mx.broadcast_to(mask, (*mask.shape[:-1], slots))
        no = mx.array(False) if mask.dtype == mx.bool_ else mx.array(mx.finfo(mask.dtype).min / 2, mask.dtype)
        return mx.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, hidden)], constant_values=no)
    newest = slots - 1 if mask is None else mx.arange(slots - length, slots)[:, None]
    return mx.arange(slots + hidden)[None] <= newest


def packed_segments(position_ids: mx.array) -> mx.array:
    """Number the sequences packed into a row (B, L): a step of position ids other than 1 starts the next one."""
    ids = position_ids if position_ids.ndim == 2 else position_ids[None]
    steps = (ids[:, 1:] - ids[:, :-1]) != 1
    start = mx.zeros((ids.shape[0], 1), dtype=mx.int32)
    return mx.concatenate([start, mx.cumsum(steps.astype(mx.int32), axis=1)], axis=1)


def _crop_mask(mask: mx.array, ranges: SlotRanges, past: int, length: int, dtype: mx.Dtype | None) -> mx.array:
    """Return a 4-D mask cropped to the keys that the layer still has; fully masked rows attend to themselves."""
    total = past + length
    if mask.shape[-1] == total and ranges != ((0, total),):
        mask = mx.concatenate([mask[..., a:b] for a, b in ranges], axis=-1)
    keys = sum(b - a for a, b in ranges)
    if mask.shape[-1] not in (1, keys):
        raise InputError(
            f"attention_mask covers {mask.shape[-1]} keys, expected {total} (or the {keys} that are kept)."
        )
    itself = mx.arange(past, total)[:, None] == key_slots(ranges)[None, :]
    if mx.issubdtype(mask.dtype, mx.floating):
        blind = mx.max(mask, axis=-1, keepdims=True) <= HIDDEN
        mask = mx.where(blind & itself, mx.array(0, mask.dtype), mask)
        return additive(mask, dtype or mask.dtype)
    allowed = mask if mask.dtype == mx.bool_ else mask != 0
    return allowed | (mx.logical_not(mx.any(allowed, axis=-1, keepdims=True)) & itself)
