"""Masks of tokens, as a `Matcher` computes them, on a model's scores."""

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

Mask = np.ndarray
"""Bits of uint32 words (ceil(V / 32),), lowest bit first: 1 where a token may come next."""

LOWEST = -1e9
"""Score that an allowed token has at least, so that no bias or penalty can forbid every allowed token."""

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(bool)


def apply_masks(scores: mx.array, masks: Sequence[Mask | None]) -> mx.array:
    """Forbid tokens: scores (B, V), one mask or None per row → scores (B, V) in float32."""
    size = scores.shape[-1]
    width = -(-size // 32)
    words = np.full((len(masks), width), 0xFFFFFFFF, np.uint32)
    for row, mask in zip(words, masks, strict=True):
        if mask is not None:
            row[: len(mask)] = mask[:width]
            row[len(mask) :] = 0
    allowed = mx.array(_BITS)[mx.array(words.view(np.uint8))].reshape(len(masks), -1)[:, :size]
    limited = mx.array([mask is not None for mask in masks])[:, None]
    scores = scores.astype(mx.float32)
    scores = mx.where(limited, mx.maximum(scores, LOWEST), scores)
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
