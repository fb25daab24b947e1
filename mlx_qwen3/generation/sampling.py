"""Scores over the vocabulary → the next token: greedy, or drawn as the reference draws.

Order of the reference (transformers 5.23 `generation/utils.py`, `_get_logits_processor`): temperature, top-k, top-p,
min-p. The k best are taken out first, because temperature keeps the order of scores, so that with top-k neither a sort
nor a softmax runs over the whole vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import InputError

Sampler = Callable[[mx.array], mx.array]
"""Scores (B, V) → token ids (B,)."""


def greedy(scores: mx.array) -> mx.array:
    """The best token of each row: scores (B, V) → (B,)."""
    return mx.argmax(scores, axis=-1)


@dataclass
class RandomSampler:
    """Draws from softmax(scores / temperature), cut down to the k best, to a mass of top_p, to min_p of the best.

    Args:
        temperature: above 0.
        top_k: how many of the best tokens stay; 0 for all. Of equal scores at the border exactly k stay.
        top_p: the smallest set of best tokens with at least this probability stays; 1 for all.
        min_p: tokens below this share of the best one's probability go; 0 for none.
        seed: makes the draws repeatable without touching MLX's global state.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature is {self.temperature!r}, expected a number above 0 (0 means greedy)")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}, expected a whole number, 0 for no limit")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}, expected a number from 0 to 1")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise InputError(f"seed is {self.seed!r}, expected a whole number from 0 to 2^64 - 1")
        self._key = None if self.seed is None else mx.random.key(self.seed)

    def __call__(self, scores: mx.array) -> mx.array:
        """Scores (B, V) → token ids (B,)."""
        weights, ids = self.candidates(scores)
        key = None
        if self._key is not None:
            self._key, key = mx.random.split(self._key)
        drawn = mx.random.categorical(weights, key=key)
        return drawn if ids is None else mx.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]

    def candidates(self, scores: mx.array) -> tuple[mx.array, mx.array | None]:
        """What may be drawn: unnormalized log-probabilities (B, n), −inf where cut off, and their ids (B, n).

        Without top_k and top_p the ids are None: entry i is token i.
        """
        ids = None
        keep_best = max(self.top_k, self.min_tokens_to_keep) if self.top_k else 0
        if 0 < keep_best < scores.shape[-1]:
            ids = mx.argpartition(scores, kth=-keep_best, axis=-1)[..., -keep_best:]
            scores = mx.take_along_axis(scores, ids, axis=-1)
        scores = scores.astype(mx.float32) / self.temperature
        if self.top_p < 1:
            order = mx.argsort(-scores, axis=-1)
            scores = mx.take_along_axis(scores, order, axis=-1)
            ids = order if ids is None else mx.take_along_axis(ids, order, axis=-1)
            probabilities = mx.softmax(scores, axis=-1, precise=True)
            before = mx.cumsum(probabilities, axis=-1) - probabilities
            kept = before < self.top_p
            kept = kept | (mx.arange(scores.shape[-1]) < self.min_tokens_to_keep)
            scores = mx.where(kept, scores, -math.inf)
        if self.min_p > 0:
            # probabilities compare as differences of scores: p / p_best = exp(score − best)
            low = scores < mx.max(scores, axis=-1, keepdims=True) + math.log(self.min_p)
            if self.min_tokens_to_keep > 1:
                rank = mx.argsort(mx.argsort(-scores, axis=-1), axis=-1)
                low = low & (rank >= self.min_tokens_to_keep)
            scores = mx.where(low, -math.inf, scores)
        return scores, ids


def make_sampler(
    temp: float = 0.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    min_tokens_to_keep: int = 1,
    top_k: int = 0,
    seed: int | None = None,
) -> Sampler:
    """Greedy at temperature 0, else a `RandomSampler`. The argument names are mlx_lm's."""
    if temp == 0:
        return greedy
    return RandomSampler(temp, top_k, top_p, min_p, seed, min_tokens_to_keep)


def sampler_from(config: Any, seed: int | None = None) -> Sampler:
    """The sampler that a `GenerationConfig` asks for, with the reference's defaults (top_k 50 when sampling)."""
    if not config.do_sample or config.temperature == 0:
        return greedy
    return RandomSampler(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=50 if config.top_k is None else config.top_k,
        top_p=1.0 if config.top_p is None else config.top_p,
        min_p=config.min_p or 0.0,
        seed=seed,
    )


def needs_logprobs(sampler: Sampler | None) -> bool:
    """Whether a sampler is somebody else's, which may count on log-probabilities as mlx_lm's samplers do."""
    return sampler is not None and sampler is not greedy and not isinstance(sampler, RandomSampler)
