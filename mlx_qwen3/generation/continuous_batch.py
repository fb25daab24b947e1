"""Several sequences at once, ids only: left-padded rows that share every pass, and join and leave between tokens.

All rows of a batch end at the same slot of its cache. A longer row starts first and shorter ones join on the way, so
that hardly any padding is computed. A finished row keeps its slot until a quarter of the rows are finished: then
waiting prompts replace them, in a cache that keeps all tokens unpacked and until it would be mostly padding. Where
nothing waits, the cache is compacted when half of the rows are finished, so that it is copied at most once in all.

A beginning that all prompts share is computed once; the padding of a shorter row lies after it.

Each row has its own sampler, logits processors (see `processors.py`) and, if it wants, log-probabilities. Nothing in a
row depends on its neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..layers.devices import on_cuda
from .context import MOVING_FREQUENCIES, new_cache
from .decoding import INVALID, NOTHING_ALLOWED, Chooser, start_evaluation
from .processors import RowProcessor, apply_processors
from .sampling import Sampler, greedy, mark_invalid, needs_logprobs, normalized, sample_rows
from .steps import decode_steps

STAGES = 8
"""How many times, at most, rows may join while the prompts of a batch are computed."""

CUDA_STAGES = 2
"""The same on CUDA, where eight stages took 189 ms and two 126 (benchmarks/RESULTS.md); one keeps all padding."""

SHORTEST_STAGE = 32
"""Slots: rows whose lengths differ by less start together."""

JOINING_SHARE = 4
"""New rows join a batch once a quarter of it is finished: prompts are computed faster together."""

SHORTEST_PREFIX = 32
"""Tokens: a shared beginning shorter than this is not worth a pass of its own."""

TOLERATED_PADDING = 4096
"""Slots of padding in a batch's cache that need no reason; more than that must stay below the real tokens."""


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
    """The next token of a sequence, by the sequence's index; logprobs (V,) where the sequence wants them."""

    row: int
    token: int
    logprobs: mx.array | None = None


@dataclass
class BatchSequence:
    """One sequence of a batch.

    index: names it in `RowToken`. prompt: its ids, at least one. left: tokens that may still be generated.
    sampler: logits (n, V) → tokens (n,); rows with the same settings are sampled together.
    processors: functions of its ids (S,) and logits (1, V).
    logprobs: whether its tokens come with log-probabilities.
    cache: holds what comes before the prompt, whose ids are `before`; it is written to. Such a sequence runs alone.
    finished: set it between tokens to end the sequence.
    """

    index: int
    prompt: Sequence[int]
    left: int
    sampler: Sampler = greedy
    processors: list[RowProcessor] = field(default_factory=list)
    logprobs: bool = False
    cache: Any = None
    before: Sequence[int] = ()
    finished: bool = False
    history: mx.array | None = None

    def __post_init__(self) -> None:
        if self.processors:
            self.history = mx.array([*self.before, *self.prompt], dtype=mx.int32)


def decode_rows(
    model: BatchModel,
    sequences: Sequence[BatchSequence],
    ended: Callable[[RowToken], bool],
    *,
    batch_size: int = 32,
    prefill_tokens: int = 8192,
    **cache_options: Any,
) -> Iterator[RowToken]:
    """Yield the new tokens of all sequences as they are computed; the tokens of one sequence in their order.

    Args:
        ended: says of each token whether its sequence is finished; called before the token is yielded.
        batch_size: sequences in a pass.
        prefill_tokens: tokens in one pass over the prompts.
        **cache_options: `max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`.

    Raises:
        InputError: no token may follow in one of the sequences.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    waiting = [row for row in sequences if row.cache is None]
    if rope.get("rope_type") in MOVING_FREQUENCIES:
        # another row, or another length of a pass, would change a row's frequencies
        batch_size, prefill_tokens = 1, max((len(row.prompt) for row in waiting), default=1)
    # a cache that keeps the first tokens of a row must not keep padding instead
    equal_lengths = cache_options.get("max_kv_size") is not None
    waiting.sort(key=lambda row: -len(row.prompt))
    shared = None
    if len(waiting) > 1 and rope.get("rope_type") not in MOVING_FREQUENCIES:
        shared = _shared_prefix(model, waiting, new_cache(model.config, **cache_options), prefill_tokens)
    while waiting:
        rows = _pop_first(waiting, _count_fitting(waiting, batch_size, equal_lengths))
        batch = ContinuousBatch(model, rows, lambda: new_cache(model.config, **cache_options), prefill_tokens, shared)
        yield from batch.run(waiting, ended)
    for row in sequences:
        if row.cache is not None:
            yield from _run_alone(model, row, ended)


def _shared_prefix(model: "BatchModel", rows: Sequence[BatchSequence], cache: Any, prefill_tokens: int) -> Any:
    """Return a cache of one row with what all prompts begin with, or None where that is short or cannot be shared."""
    prompts = [list(row.prompt) for row in rows]
    length = common_prefix(prompts, SHORTEST_PREFIX)
    if not length or not cache.takes_rows:
        return None
    for first in range(0, length, prefill_tokens):
        ids = mx.array([prompts[0][first : min(first + prefill_tokens, length)]], dtype=mx.int32)
        model.step_logits(ids, cache, 1)
        mx.eval(cache.arrays)
    return cache


def common_prefix(rows: Sequence[list[int]], least: int) -> int:
    """Return how many ids all rows begin with, leaving each at least one; 0 when fewer than `least`, or with a single
    row.
    """
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # in the order of lists, what these two share all share
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    length = min(length, min(map(len, rows)) - 1)
    return length if length >= least else 0


def _run_alone(model: Any, row: BatchSequence, ended: Callable[[RowToken], bool]) -> Iterator[RowToken]:
    chooser = Chooser(row.sampler, row.processors, row.logprobs, needs_logprobs(row.sampler))
    steps = decode_steps(model, list(row.prompt), row.cache, chooser, max_tokens=row.left, history=row.before)
    try:
        for step in steps:
            found = RowToken(row.index, step.token, step.logprobs)
            row.finished = ended(found)
            yield found
            if row.finished:
                return
    finally:
        steps.close()


def _pop_first(waiting: list[BatchSequence], count: int) -> list[BatchSequence]:
    rows = waiting[:count]
    del waiting[:count]
    return rows


def _count_fitting(waiting: list[BatchSequence], size: int, equal_lengths: bool = False) -> int:
    """Return how many of the first rows make a batch of at most `size`; rows are in falling order of length."""
    lengths = [len(row.prompt) for row in waiting[: size + 1]]
    if equal_lengths:
        return min(lengths.count(lengths[0]), size)
    return _fitting(lengths, size)


def group_prompts(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the indices of prompts in groups of at most `size`, longest first, each group with little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups = []
    while order:
        count = _fitting([lengths[i] for i in order[: size + 1]], size)
        groups.append(order[:count])
        del order[:count]
    return groups


def _fitting(lengths: Sequence[int], size: int) -> int:
    real = 0
    for count, length in enumerate(lengths):
        real += length
        padding = (count + 1) * lengths[0] - real
        if count == size or (count and _mostly_padding(padding, real)):
            return count
    return len(lengths)


def _mostly_padding(padding: int, real: int) -> bool:
    return padding > max(real, TOLERATED_PADDING)


class ContinuousBatch:
    """Rows that end at one slot.

    Args:
        rows: sequences to start with, the longest prompt first.
        make_cache: returns an empty cache.
        prefill_tokens: tokens in one pass over prompts.
        shared: a cache of one row with tokens that all prompts begin with; it is not written to. None for none.

    Attributes:
        visible: which slots hold a token of their row (B, slots).
        accepts_rows: whether further rows may join.
    """

    def __init__(
        self,
        model: BatchModel,
        rows: list[BatchSequence],
        make_cache: Callable[[], Any],
        prefill_tokens: int,
        shared: Any = None,
    ):
        self.model, self.rows, self.prefill_tokens, self.shared = model, rows, prefill_tokens, shared
        self.make_cache, self.cache = make_cache, make_cache() if shared is None else shared.copy()
        self.accepts_rows = self.cache.takes_rows
        self.length = len(rows[0].prompt)
        start = self.cache.offset
        self.ids = np.zeros((len(rows), self.length), dtype=np.int32)
        self.visible = np.ones((len(rows), self.length), dtype=bool)
        for row, ids, visible in zip(rows, self.ids, self.visible, strict=True):
            first = self.length - len(row.prompt) + start
            ids[first:] = row.prompt[start:]
            visible[start:first] = False

    def run(self, waiting: list[BatchSequence], ended: Callable[[RowToken], bool]) -> Iterator[RowToken]:
        """Yield the tokens of these rows, and of those that join them from `waiting`, until all are finished."""
        chosen = self.start()
        while True:
            following = None
            if any(not row.finished and row.left > 1 for row in self.rows):
                following = self.advance(chosen)
            for found, row in zip(self.read(chosen), list(self.rows), strict=True):
                if row.finished:
                    continue
                if found.token == INVALID:
                    raise InputError(f"sequence {found.row}: {NOTHING_ALLOWED}")
                row.left -= 1
                row.finished = ended(found) or row.left < 1
                yield found
            if following is None or all(row.finished for row in self.rows):
                return
            chosen = self.drop_finished(self.admit(waiting, following))

    def start(self) -> "Choice":
        """Compute the prompts and start to choose the first token of each row."""
        return self._choose(self._prefill())

    def advance(self, chosen: "Choice") -> "Choice":
        """Start the pass over the newest tokens, and the choice of the next ones."""
        slot = self.cache.offset
        return self._choose(self._pass(chosen.tokens[:, None], slot, slot + 1))

    def read(self, chosen: "Choice") -> list[RowToken]:
        """Wait for a choice; one token per row, finished ones included."""
        values = np.asarray(chosen.tokens).tolist()
        return [
            RowToken(row.index, token, chosen.logprobs[i] if row.logprobs and chosen.logprobs is not None else None)
            for i, (row, token) in enumerate(zip(self.rows, values, strict=True))
        ]

    def admit(self, waiting: list[BatchSequence], chosen: "Choice") -> "Choice":
        """Let waiting rows replace finished ones; the next token of each row."""
        free = [i for i, row in enumerate(self.rows) if row.finished]
        if not (self.accepts_rows and waiting) or len(free) * JOINING_SHARE < len(self.rows):
            return chosen
        slots, count = self.cache.offset, _count_fitting(waiting, len(free))
        real = sum(int(own.sum()) for row, own in zip(self.rows, self.visible, strict=True) if not row.finished)
        real += sum(len(row.prompt) for row in waiting[:count])
        if _mostly_padding(slots * len(self.rows) - real, real):
            # for good: with fewer rows there would be less padding, and the batch would continue with hardly any row
            self.accepts_rows = False
            return chosen
        rows = _pop_first(waiting, count)
        joining = ContinuousBatch(self.model, rows, self.make_cache, self.prefill_tokens, self.shared)
        indices = free[:count]
        chosen = chosen.replaced(indices, joining.start(), len(self.rows))
        self.cache.put_rows(indices, joining.cache)
        for index, row, visible in zip(indices, joining.rows, joining.visible, strict=True):
            self.rows[index], self.visible[index] = row, False
            self.visible[index, slots - joining.length :] = visible
        return chosen

    def drop_finished(self, chosen: "Choice") -> "Choice":
        """Remove finished rows once half of the rows are finished; the next token of each row that stays."""
        kept = [i for i, row in enumerate(self.rows) if not row.finished]
        if 2 * len(kept) > len(self.rows) or not kept:
            return chosen
        self.cache.select_rows(kept)
        self.rows, self.visible = [self.rows[i] for i in kept], self.visible[kept]
        return chosen.selected(kept)

    def _choose(self, logits: mx.array) -> "Choice":
        """Return logits (B, V) → the choice of each row, started."""
        rows = self.rows
        if any(row.processors for row in rows):
            parts = [part.astype(mx.float32) for part in mx.split(logits, len(rows))]
            for i, row in enumerate(rows):
                if row.history is not None:
                    parts[i] = apply_processors(row.processors, row.history, parts[i])
            logits = mx.concatenate(parts)
        logprobs = normalized(logits) if any(row.logprobs for row in rows) else None
        tokens = mark_invalid(sample_rows(logits, [row.sampler for row in rows]), logits)
        for i, row in enumerate(rows):
            if row.history is not None and not row.finished:
                row.history = mx.concatenate([row.history, tokens[i : i + 1]])
        start_evaluation(tokens, logprobs, *(row.history for row in rows))
        return Choice(tokens, logprobs)

    def _prefill(self) -> mx.array:
        """Compute the prompts; the logits of each row's last token (B, V)."""
        own = self.cache.offset
        shortest = max(SHORTEST_STAGE, -(-(self.length - own) // (CUDA_STAGES if on_cuda() else STAGES)))
        padding = np.array([self.length - len(row.prompt) for row in self.rows])
        joins = own + padding // shortest * shortest
        starts = sorted(set(joins.tolist()))
        logits: mx.array | None = None
        present = 1 if own else 0
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

    def _pass(self, ids: mx.array, first: int, last: int) -> mx.array:
        """Return slots first … last−1 of the rows that ids (B, L) has; logits (B, V) of the last one."""
        if last > self.visible.shape[1]:
            more = np.ones((len(self.rows), last - self.visible.shape[1]), dtype=bool)
            self.visible = np.concatenate([self.visible, more], axis=1)
        visible = self.visible[: ids.shape[0], :last]
        mask = positions = None
        if not visible.all():
            mask = mx.array(visible.astype(np.int32))
            before = visible[:, :first].sum(axis=1, keepdims=True)
            counted = before + np.cumsum(visible[:, first:], axis=1) - 1
            positions = mx.array(np.maximum(counted, 0).astype(np.int32))
        return self.model.step_logits(ids, self.cache, 1, mask, positions)[:, -1]


@dataclass(frozen=True)
class Choice:
    """The next token of each row (B,), being computed, and log-probabilities (B, V) where a row wants them."""

    tokens: mx.array
    logprobs: mx.array | None

    def selected(self, rows: list[int]) -> "Choice":
        """Return the choice of some rows."""
        index = mx.array(rows)
        return Choice(self.tokens[index], None if self.logprobs is None else self.logprobs[index])

    def replaced(self, rows: list[int], other: "Choice", size: int) -> "Choice":
        """Return the choice of `size` rows, with that of some rows taken from another choice."""
        order = list(range(size))
        for number, row in enumerate(rows):
            order[row] = size + number
        both = Choice(mx.concatenate([self.tokens, other.tokens]), _joined(self.logprobs, other.logprobs, size, rows))
        return both.selected(order)


def _joined(own: mx.array | None, other: mx.array | None, size: int, rows: list[int]) -> mx.array | None:
    """Log-probabilities of both choices, zeros where only one of them has any."""
    if own is None and other is None:
        return None
    like = own if own is not None else other
    assert like is not None
    own = mx.zeros((size, like.shape[1])) if own is None else own
    return mx.concatenate([own, mx.zeros((len(rows), like.shape[1])) if other is None else other])
