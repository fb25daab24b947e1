"""Masks of tokens, as a `Matcher` computes them, on a model's scores."""

import functools
import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

Mask = np.ndarray
"""Bits of uint32 words (ceil(V / 32),), lowest bit first: 1 where a token may come next."""

LOWEST = -1e9
"""Score that an allowed token has at least, so that no bias or penalty can forbid every allowed token."""


@functools.cache
def _places() -> mx.array:
    """The 32 bits of a word, lowest first (32,)."""
    places = mx.array((np.uint64(1) << np.arange(32, dtype=np.uint64)).astype(np.uint32))
    mx.eval(places)  # any thread may use them
    return places


def apply_masks(scores: mx.array, masks: Sequence[Mask | None], raised: bool = True) -> mx.array:
    """Forbid tokens: scores (B, V), one mask or None per row → scores (B, V) of the same dtype.

    Args:
        raised: whether allowed tokens get `LOWEST` at least; not needed where nothing but the model made the scores.
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
    allowed = ((mx.array(words) & _places()) != 0).reshape(len(masks), -1)
    if size != 32 * width:
        allowed = allowed[:, :size]
    if raised:
        limited = mx.maximum(scores, LOWEST)
        if any(mask is None for mask in masks):
            limited = mx.where(mx.array([mask is not None for mask in masks])[:, None], limited, scores)
        scores = limited
    return mx.where(allowed, scores, -math.inf)


def certain_logprobs(token: int, size: int) -> mx.array:
    """Return the log-probabilities (V,) of a token without an alternative."""
    return mx.where(mx.arange(size) == token, 0.0, -math.inf)


def allows(mask: Mask | None, token: int) -> bool:
    """Tell whether a mask allows a token."""
    return mask is None or (token >> 5 < len(mask) and bool(int(mask[token >> 5]) >> (token & 31) & 1))


def only(tokens: Sequence[int], size: int) -> Mask:
    """Return the mask of a vocabulary of `size` tokens that allows these."""
    words = np.zeros(-(-size // 32), np.uint32)
    permit(words, tokens)
    return words


def permit(mask: Mask, tokens: Sequence[int]) -> None:
    """Allow tokens, in place."""
    for token in tokens:
        mask[token >> 5] |= np.uint32(1 << (token & 31))


def forbid(mask: Mask, tokens: Sequence[int]) -> None:
    """Forbid tokens, in place."""
    if len(tokens) > 64:
        ids = np.asarray(tokens)
        np.bitwise_and.at(mask, ids >> 5, ~(np.uint32(1) << (ids & 31).astype(np.uint32)))
        return
    for token in tokens:
        if token >> 5 < len(mask):
            mask[token >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (token & 31)))
