"""Choose the next token from scores over the vocabulary, greedily or by sampling as in the reference.

The order is the reference's (transformers 5.23 `generation/utils.py`, `_get_logits_processor`): temperature, top-k,
top-p, min-p. The k best scores are selected first, which is equivalent because temperature preserves the order of
scores. Therefore, with top-k, neither a sort nor a softmax runs over the whole vocabulary.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .checks import check_number, check_seed, check_whole_number, type_name

Sampler = Callable[[mx.array], mx.array]
"""Scores (B, V) → token ids (B,)."""


INVALID = -1
"""Marks a token that could not be chosen; `InputError` is raised when the token is read."""

_MASK = (1 << 64) - 1
_LARGEST = 3.4e38
_SMALLEST_TEMPERATURE = 1e-37

_categorical = mx.vmap(lambda weights, key: mx.random.categorical(weights, key=key))
"""Weights (B, n) and keys (B, 2) → one index per row (B,)."""


def mix_seed(seed: int, number: int) -> int:
    """Return element `number` of the pseudorandom 64-bit sequence of `seed` (SplitMix64, Steele et al. 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


def greedy(scores: mx.array) -> mx.array:
    """Return the token with the highest score per row: scores (B, V) → (B,)."""
    return mx.argmax(scores, axis=-1)


@dataclass
class RandomSampler:
    """Sample from softmax(scores / temperature), restricted by top-k, top-p and min-p.

    Each draw has its own key, computed from the seed and the number of the draw. Draws therefore depend neither on the
    other rows of a batch nor on the thread, and they can be undone.

    Args:
        temperature: above 0. Below 1e-37, the limit of float32, the best token is chosen.
        top_k: number of best tokens to keep; 0 for all. Exactly k are kept even if scores are equal.
        top_p: keep the smallest set of best tokens whose probabilities sum to at least this; 1 for all.
        min_p: drop tokens whose probability is below this fraction of the best token's; 0 for none.
        seed: makes the draws reproducible without changing MLX's global random state. Without it, the first draw
            obtains a seed from `mx.random`. Other threads than the main one add entropy from the operating system,
            because `mx.random` starts in the same state in each of them.
        min_tokens_to_keep: number of best tokens that the restrictions keep at least.

    Raises:
        InputError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0, hint="0 means greedy")
        check_whole_number("top_k", self.top_k, hint="0 for no limit")
        for name in ("top_p", "min_p"):
            check_number(name, getattr(self, name), least=0, most=1)
        check_seed(self.seed)
        self._base = self.seed
        self._drawn = 0

    @property
    def settings(self) -> tuple[float, int, float, float, int]:
        """All settings except the seed; samplers with equal settings are evaluated together."""
        return self.temperature, self.top_k, self.top_p, self.min_p, self.min_tokens_to_keep

    def __call__(self, scores: mx.array) -> mx.array:
        """Sample one token id per row: scores (B, V) → (B,). After n draws, row b is draw number n + b."""
        return self.draw(scores, self.take_keys(scores.shape[0]))

    def for_row(self, row: int) -> "RandomSampler":
        """Return a sampler with the same settings and independent draws; row 0 keeps the seed."""
        seed = self._seed()
        return replace(self, seed=seed if row == 0 else mix_seed(seed, ~row & _MASK))

    def take_keys(self, count: int) -> np.ndarray:
        """Return the keys of the next draws, (count, 2) uint32."""
        base, first = self._seed(), self._drawn
        self._drawn += count
        keys = [mix_seed(base, number) for number in range(first, first + count)]
        return np.array([[key >> 32, key & 0xFFFFFFFF] for key in keys], dtype=np.uint32).reshape(count, 2)

    def give_back(self, count: int) -> None:
        """Undo the newest `count` draws, whose tokens were rejected."""
        self._drawn -= count

    def draw(self, scores: mx.array, keys: np.ndarray) -> mx.array:
        """Sample one token id per row: scores (B, V) and one key per row (B, 2) → (B,)."""
        weights, ids = self.candidates(scores)
        drawn = _categorical(weights, mx.array(keys))
        return drawn if ids is None else mx.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]

    def _seed(self) -> int:
        if self._base is None:
            high, low = cast(list[int], mx.random.randint(0, 1 << 31, (2,)).tolist())
            self._base = high << 32 | low
            if threading.current_thread() is not threading.main_thread():
                self._base ^= int.from_bytes(os.urandom(8), "little")
        return self._base

    def candidates(self, scores: mx.array) -> tuple[mx.array, mx.array | None]:
        """Return unnormalized log-probabilities (B, n), −inf for dropped tokens, and the token ids (B, n).

        Without top_k and top_p the ids are None: entry i belongs to token i.
        """
        ids = None
        keep_best = max(self.top_k, self.min_tokens_to_keep) if self.top_k else 0
        if 0 < keep_best < scores.shape[-1]:
            ids = mx.argpartition(scores, kth=-keep_best, axis=-1)[..., -keep_best:]
            scores = mx.take_along_axis(scores, ids, axis=-1)
        scores = mx.minimum(scores.astype(mx.float32), _LARGEST)
        best = mx.max(scores, axis=-1, keepdims=True)
        if self.temperature < _SMALLEST_TEMPERATURE:
            scores = mx.where(scores == best, 0.0, -math.inf)
        else:
            scores = (scores - best) / float(self.temperature)
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
            # ratios of probabilities are differences of scores: p / p_best = exp(score − best)
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
    """Return `greedy` for temperature 0, else a `RandomSampler`. The arguments are mlx_lm's and `seed`."""
    if temp == 0:
        return greedy
    return RandomSampler(temp, top_k, top_p, min_p, seed, min_tokens_to_keep)


def needs_logprobs(sampler: Sampler | None) -> bool:
    """Return whether a sampler is user-defined; it may then expect log-probabilities, as mlx_lm's samplers do."""
    return sampler is not None and sampler is not greedy and not isinstance(sampler, RandomSampler)


def to_logprobs(logits: mx.array) -> mx.array:
    """Convert logits (B, V) to float32 log-probabilities (B, V)."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def mark_invalid(tokens: mx.array, scores: mx.array) -> mx.array:
    """Replace tokens (B,) by `INVALID` in rows of scores (B, V) in which every score is −inf or one is NaN."""
    return _mark_invalid(mx.max(scores, axis=-1), _check_tokens(tokens, scores.shape[0]))


@partial(mx.compile, shapeless=True)
def _mark_invalid(best: mx.array, tokens: mx.array) -> mx.array:
    return mx.where(best > -math.inf, tokens.astype(mx.int32), INVALID)


def _check_tokens(tokens: Any, rows: int) -> mx.array:
    """Return the result of a sampler; raise `InputError` unless it is one token id per row."""
    if isinstance(tokens, mx.array) and tokens.shape == (rows,):
        return tokens
    found = f"shape {tuple(tokens.shape)}" if isinstance(tokens, mx.array) else type_name(tokens)
    raise InputError(f"a sampler returned {found}, expected token ids of shape ({rows},).")


def sample_rows(logits: mx.array, samplers: Sequence[Sampler]) -> mx.array:
    """Return one token per row of logits (B, V), each chosen by the row's sampler.

    Rows whose samplers have equal settings are sampled together.
    """
    groups: dict[Any, list[int]] = {}
    for row, sampler in enumerate(samplers):
        groups.setdefault(sampler.settings if isinstance(sampler, RandomSampler) else id(sampler), []).append(row)
    drawn: list[mx.array] = []
    for rows in groups.values():
        sampler = samplers[rows[0]]
        own = logits if len(groups) == 1 else logits[mx.array(rows)]
        if isinstance(sampler, RandomSampler):
            keys = [samplers[row].take_keys(1) for row in rows]  # type: ignore[attr-defined]  # all of one class
            drawn.append(sampler.draw(own, np.concatenate(keys)))
        else:
            drawn.append(_check_tokens(sampler(to_logprobs(own) if needs_logprobs(sampler) else own), len(rows)))
    if len(groups) == 1:
        return drawn[0]
    order = [row for rows in groups.values() for row in rows]
    tokens = mx.concatenate([part.astype(mx.int32) for part in drawn])
    return tokens[mx.array(np.argsort(order))]
