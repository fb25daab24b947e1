"""Several sequences at once, ids only: left-padded rows that share every pass until each has ended.

Rows of one wave end at the same slot. A longer row starts first and shorter ones join on the way, so that hardly any
padding is computed. A row that has ended stays where it is until half of the rows have; then the rest moves together,
which copies the cache at most once over in all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from ..layers.devices import on_cuda
from .context import MOVING_FREQUENCIES, new_cache
from .sampling import Sampler, needs_logprobs

T = TypeVar("T")

STAGES = 8
"""How many times, at most, rows may join while a wave's prompts are computed."""

CUDA_STAGES = 2
"""The same on CUDA, where eight stages took 189 ms and two 126 (benchmarks/RESULTS.md); one keeps all padding."""

SHORTEST_STAGE = 32
"""Slots: rows whose lengths differ by less start together."""

TOLERATED_PADDING = 4096
"""Slots of padding in a wave's cache that need no reason; more than that must stay below the real tokens."""


class BatchModel(Protocol):
    """What the loop asks of a model."""

    config: Any

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """ids (B, L) → logits (B, keep, V) of the newest positions; keys and values go into the cache."""
        ...


@dataclass(frozen=True)
class RowToken:
    """The next token of a sequence, by its place among the prompts."""

    row: int
    token: int


def decode_rows(
    model: BatchModel,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    samplers: Sequence[Sampler],
    ended: Callable[[RowToken], bool],
    *,
    wave_size: int = 32,
    prefill_tokens: int = 8192,
    **cache_options: Any,
) -> Iterator[RowToken]:
    """The new tokens of all prompts, as they come; the tokens of one prompt in their order.

    Args:
        prompts: ids of each, none empty.
        budgets: tokens to generate for each, at least one.
        samplers: logits (B, V) → tokens (B,), one a prompt; rows with the same object are sampled together.
        ended: tells of each token whether its sequence is over; asked before the token is yielded.
        wave_size: sequences in a pass.
        prefill_tokens: tokens in one pass over the prompts.
        **cache_options: `kv_bits`, `kv_group_size`, `quantized_kv_start`.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") in MOVING_FREQUENCIES:
        # another row, or another length of a pass, would move a row's frequencies
        wave_size, prefill_tokens = 1, max(map(len, prompts), default=1)
    for rows in waves([len(prompt) for prompt in prompts], wave_size):
        wave = _Wave(model, [prompts[i] for i in rows], new_cache(model.config, **cache_options), prefill_tokens)
        yield from wave.run(rows, [budgets[i] for i in rows], [samplers[i] for i in rows], ended)


def waves(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Prompts in groups of at most `size`, longest first, each group with little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for row in order:
        group = groups[-1] if groups else []
        real = sum(lengths[i] for i in group) + lengths[row]
        padding = (len(group) + 1) * lengths[group[0]] - real if group else 0
        if not group or len(group) == size or padding > max(real, TOLERATED_PADDING):
            groups.append([])
        groups[-1].append(row)
    return groups


class _Wave:
    """Rows that end at one slot. `padding` is each row's number of slots before its first token."""

    def __init__(self, model: BatchModel, prompts: list[Sequence[int]], cache: Any, prefill_tokens: int):
        self.model, self.cache, self.prefill_tokens = model, cache, prefill_tokens
        self.length = len(prompts[0])
        self.padding = np.array([self.length - len(prompt) for prompt in prompts], dtype=np.int32)
        self.ids = np.zeros((len(prompts), self.length), dtype=np.int32)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[self.length - len(prompt) :] = prompt

    def run(
        self, rows: list[int], budgets: list[int], samplers: list[Sampler], ended: Callable[[RowToken], bool]
    ) -> Iterator[RowToken]:
        """The tokens of these rows until all have ended."""
        left, alive = list(budgets), [True] * len(rows)
        tokens = _sample(self._prefill(), samplers)
        mx.async_eval(tokens)
        while True:
            following = None
            if any(on and n > 1 for on, n in zip(alive, left, strict=True)):
                following = _sample(self._step(tokens), samplers)
                mx.async_eval(following)
            for i, token in enumerate(np.asarray(tokens).tolist()):
                if not alive[i]:
                    continue
                left[i] -= 1
                found = RowToken(rows[i], token)
                alive[i] = not ended(found) and left[i] > 0
                yield found
            if following is None or not any(alive):
                return
            tokens = following
            if 2 * sum(alive) <= len(alive):
                kept = [i for i, on in enumerate(alive) if on]
                self.cache.select_rows(kept)
                self.padding, tokens = self.padding[kept], tokens[mx.array(kept)]
                rows, left, samplers = _those(rows, kept), _those(left, kept), _those(samplers, kept)
                alive = [True] * len(kept)

    def _prefill(self) -> mx.array:
        """Computes the prompts; the logits of each row's last token (B, V)."""
        shortest = max(SHORTEST_STAGE, -(-self.length // (CUDA_STAGES if on_cuda() else STAGES)))
        joins = self.padding // shortest * shortest
        starts = sorted(set(joins.tolist()))
        logits: mx.array | None = None
        present = 0
        for start, stop in zip(starts, [*starts[1:], self.length], strict=True):
            count = int((joins <= start).sum())
            if present and count > present:
                # what the new rows get for the slots before their first token is hidden by the mask
                self.cache.select_rows([*range(present), *[0] * (count - present)])
            present = count
            width = max(1, self.prefill_tokens // count)
            for first in range(start, stop, width):
                last = min(first + width, stop)
                logits = self._pass(mx.array(self.ids[:count, first:last]), first, last)
                if last < self.length:
                    mx.eval(self.cache.arrays)
                    mx.clear_cache()
        assert logits is not None
        return logits

    def _step(self, tokens: mx.array) -> mx.array:
        slot = self.cache.offset
        return self._pass(tokens[:, None], slot, slot + 1)

    def _pass(self, ids: mx.array, first: int, last: int) -> mx.array:
        """Slots first … last−1 of the rows that ids (B, L) has; logits (B, V) of the last one."""
        padding = self.padding[: ids.shape[0]]
        mask = positions = None
        if padding.any():
            slots = np.arange(last, dtype=np.int32)
            mask = mx.array((slots >= padding[:, None]).astype(np.int32))
            positions = mx.array(np.maximum(slots[first:] - padding[:, None], 0))
        return self.model.step_logits(ids, self.cache, 1, mask, positions)[:, -1]


def _those(values: list[T], kept: list[int]) -> list[T]:
    return [values[i] for i in kept]


def _sample(logits: mx.array, samplers: Sequence[Sampler]) -> mx.array:
    """One token a row (B,), each by its own sampler."""
    first = samplers[0]
    if all(sampler is first for sampler in samplers):
        if needs_logprobs(first):
            logits = logits.astype(mx.float32)
            logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return first(logits)
    drawn: dict[int, mx.array] = {}
    for sampler in {id(sampler): sampler for sampler in samplers}.values():
        own = [i for i, other in enumerate(samplers) if other is sampler]
        tokens = _sample(logits[mx.array(own)], [sampler])
        drawn.update(zip(own, mx.split(tokens, len(own)), strict=True))
    return mx.concatenate([drawn[i] for i in range(len(samplers))])
