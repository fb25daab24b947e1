"""Token masks, as computed by a `Matcher`, and their application to a model's scores."""

import functools
import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

Mask = np.ndarray
"""Bits of uint32 words (ceil(V / 32),), lowest bit first; 1 for allowed tokens."""

LOWEST = -1e9
"""Minimum score of allowed tokens, so that biases and penalties cannot forbid all of them."""


@functools.cache
def _make_bit_values() -> mx.array:
    """Return the values of the 32 bits of a word, lowest first (32,)."""
    values = mx.array((np.uint64(1) << np.arange(32, dtype=np.uint64)).astype(np.uint32))
    mx.eval(values)  # any thread may use them
    return values


def apply_masks(scores: mx.array, masks: Sequence[Mask | None], raised: bool = True) -> mx.array:
    """Set the scores (B, V) of forbidden tokens to −inf; the dtype is preserved.

    Args:
        masks: one mask per row; None allows all tokens.
        raised: whether to raise the scores of allowed tokens to at least `LOWEST`. This is only needed if processors
            have changed the scores of the model.
    """
    size = scores.shape[-1]
    width = -(-size // 32)
    words = np.empty((len(masks), width, 1), np.uint32)
    for row, mask in zip(words[:, :, 0], masks, strict=True):
        if mask is None:
            row[:] = 0xFFFFFFFF
        else:
            row[: len(mask)] = mask[:width]
            row[len(mask) :] = 0
    allowed = ((mx.array(words) & _make_bit_values()) != 0).reshape(len(masks), -1)
    if size != 32 * width:
        allowed = allowed[:, :size]
    if raised:
        limited = mx.maximum(scores, LOWEST)
        if any(mask is None for mask in masks):
            limited = mx.where(mx.array([mask is not None for mask in masks])[:, None], limited, scores)
        scores = limited
    return mx.where(allowed, scores, -math.inf)


def certain_logprobs(token: int, size: int) -> mx.array:
    """Return log-probabilities (V,) for a token that has no alternative: 0 for it, −inf for all others."""
    return mx.where(mx.arange(size) == token, 0.0, -math.inf)


def allows(mask: Mask | None, token: int) -> bool:
    """Return whether a mask allows a token."""
    return mask is None or (token >> 5 < len(mask) and bool(int(mask[token >> 5]) >> (token & 31) & 1))


def only(tokens: Sequence[int], size: int) -> Mask:
    """Return a mask for a vocabulary of `size` tokens that allows only the given tokens."""
    words = np.zeros(-(-size // 32), np.uint32)
    permit(words, tokens)
    return words


def permit(mask: Mask, tokens: Sequence[int]) -> None:
    """Allow tokens; the mask is changed in place."""
    for token in tokens:
        mask[token >> 5] |= np.uint32(1 << (token & 31))


def forbid(mask: Mask, tokens: Sequence[int]) -> None:
    """Forbid tokens; the mask is changed in place."""
    if len(tokens) > 64:
        ids = np.asarray(tokens)
        np.bitwise_and.at(mask, ids >> 5, ~(np.uint32(1) << (ids & 31).astype(np.uint32)))
        return
    for token in tokens:
        if token >> 5 < len(mask):
            mask[token >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (token & 31)))
