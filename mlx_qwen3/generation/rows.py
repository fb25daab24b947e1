"""Several sequences at once, ids only: left-padded rows that share every pass until each has ended.

Rows of one wave end at the same slot. A longer row starts first and shorter ones join on the way, so that hardly any
padding is computed. A row that has ended stays where it is until a quarter of the rows have: then prompts that wait
take those places, in a cache that keeps all tokens unpacked and until it would be mostly padding. From then on, when
half of the rows have ended, the rest moves together, which copies the cache at most once over in all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..layers.devices import on_cuda
from .context import MOVING_FREQUENCIES, new_cache
from .sampling import Sampler, needs_logprobs

STAGES = 8
"""How many times, at most, rows may join while a wave's prompts are computed."""

CUDA_STAGES = 2
"""The same on CUDA, where eight stages took 189 ms and two 126 (benchmarks/RESULTS.md); one keeps all padding."""

SHORTEST_STAGE = 32
"""Slots: rows whose lengths differ by less start together."""

JOINING_SHARE = 4
"""A wave takes in new rows once one in so many has ended: prompts are computed faster together."""

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
    waiting = [_Row(i, prompts[i], budgets[i], samplers[i]) for i in range(len(prompts))]
    waiting.sort(key=lambda row: -len(row.prompt))
    while waiting:
        rows = _taken(waiting, _together(waiting, wave_size))
        wave = _Wave(model, rows, lambda: new_cache(model.config, **cache_options), prefill_tokens)
        yield from wave.run(waiting, ended)


@dataclass
class _Row:
    """A sequence: its place among the prompts, its prompt's ids, how many tokens are left to it, whether it goes on."""

    place: int
    prompt: Sequence[int]
    left: int
    sampler: Sampler
    alive: bool = True


def _taken(waiting: list[_Row], count: int) -> list[_Row]:
    taken = waiting[:count]
    del waiting[:count]
    return taken


def _together(waiting: list[_Row], size: int) -> int:
    """How many of the first rows make a wave of at most `size`; rows are in falling order of length."""
    return _first_wave([len(row.prompt) for row in waiting[: size + 1]], size)


def waves(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Prompts in groups of at most `size`, longest first, each group with little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups = []
    while order:
        count = _first_wave([lengths[i] for i in order[: size + 1]], size)
        groups.append(order[:count])
        del order[:count]
    return groups


def _first_wave(lengths: Sequence[int], size: int) -> int:
    real = 0
    for count, length in enumerate(lengths):
        real += length
        padding = (count + 1) * lengths[0] - real
        if count == size or (count and _mostly(padding, real)):
            return count
    return len(lengths)


def _mostly(padding: int, real: int) -> bool:
    return padding > max(real, TOLERATED_PADDING)


class _Wave:
    """Rows that end at one slot. `padding` is each row's number of slots before its first token, `open` whether further
    rows may join.
    """

    def __init__(self, model: BatchModel, rows: list[_Row], empty: Callable[[], Any], prefill_tokens: int):
        self.model, self.rows, self.prefill_tokens = model, rows, prefill_tokens
        self.empty, self.cache = empty, empty()
        self.open = self.cache.takes_rows
        self.length = len(rows[0].prompt)
        self.padding = np.array([self.length - len(row.prompt) for row in rows], dtype=np.int32)
        self.ids = np.zeros((len(rows), self.length), dtype=np.int32)
        for row, ids in zip(rows, self.ids, strict=True):
            ids[self.length - len(row.prompt) :] = row.prompt

    def run(self, waiting: list[_Row], ended: Callable[[RowToken], bool]) -> Iterator[RowToken]:
        """The tokens of these rows, and of those that join them, until all have ended."""
        tokens = self._first_tokens()
        while True:
            following = None
            if any(row.alive and row.left > 1 for row in self.rows):
                following = self._chosen(self._step(tokens))
            for row, token in zip(self.rows, np.asarray(tokens).tolist(), strict=True):
                if not row.alive:
                    continue
                row.left -= 1
                found = RowToken(row.place, token)
                row.alive = not ended(found) and row.left > 0
                yield found
            if following is None or not any(row.alive for row in self.rows):
                return
            tokens = self._close_ranks(self._take_in(waiting, following))

    def _take_in(self, waiting: list[_Row], tokens: mx.array) -> mx.array:
        """Rows that wait take the places of ended ones; the next token of each row (B,)."""
        free = [i for i, row in enumerate(self.rows) if not row.alive]
        if not (self.open and waiting) or len(free) * JOINING_SHARE < len(self.rows):
            return tokens
        slots, count = self.cache.offset, _together(waiting, len(free))
        real = sum(slots - int(n) for row, n in zip(self.rows, self.padding, strict=True) if row.alive)
        real += sum(len(row.prompt) for row in waiting[:count])
        if _mostly(slots * len(self.rows) - real, real):
            # for good: with fewer rows there would be less padding, and the wave would go on with hardly any
            self.open = False
            return tokens
        joining = _Wave(self.model, _taken(waiting, count), self.empty, self.prefill_tokens)
        places = free[:count]
        tokens[mx.array(places)] = joining._first_tokens()
        self.cache.put_rows(places, joining.cache)
        for place, row in zip(places, joining.rows, strict=True):
            self.rows[place], self.padding[place] = row, slots - len(row.prompt)
        return tokens

    def _close_ranks(self, tokens: mx.array) -> mx.array:
        """Lets go of ended rows once half of them have ended; the next token of each row (B,)."""
        kept = [i for i, row in enumerate(self.rows) if row.alive]
        if 2 * len(kept) > len(self.rows):
            return tokens
        self.cache.select_rows(kept)
        self.rows, self.padding = [self.rows[i] for i in kept], self.padding[kept]
        return tokens[mx.array(kept)]

    def _first_tokens(self) -> mx.array:
        """Computes the prompts and starts to choose each row's first token (B,)."""
        return self._chosen(self._prefill())

    def _chosen(self, logits: mx.array) -> mx.array:
        tokens = _sample(logits, [row.sampler for row in self.rows])
        mx.async_eval(tokens)
        return tokens

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
