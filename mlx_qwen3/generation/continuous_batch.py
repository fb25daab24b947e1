"""Continuous batching of token ids: left-padded rows share every forward pass, and join and leave between tokens.

All rows of a batch end at the same slot of its cache. Longer prompts start first and shorter ones join later, so that
hardly any padding is computed. Once a quarter of the rows are finished, waiting prompts replace them. This requires a
cache that keeps all tokens unquantized, and it stops when the cache would be mostly padding. If no prompts are waiting,
finished rows are removed from the cache once half of the rows are finished, so that it is rarely copied.

A prefix shared by all prompts is computed once. The padding of shorter rows follows the prefix.

Each row has its own sampler, logits processors (see `processors.py`) and, if requested, log-probabilities. No row
affects the results of another.
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
from .sampling import Sampler, greedy, mark_invalid, needs_logprobs, sample_rows, to_logprobs
from .steps import decode_steps

STAGES = 8
"""Maximum number of stages in which the prompts of a batch are computed; rows join at the start of a stage."""

CUDA_STAGES = 2
"""The same on CUDA: 8 stages took 189 ms and 2 took 126 ms (benchmarks/NOTES.md); 1 stage would save no padding."""

SHORTEST_STAGE = 32
"""Minimum number of slots per stage; rows whose lengths differ by less start together."""

JOINING_SHARE = 4
"""Admit new rows once 1/JOINING_SHARE of the rows are finished: prompts are computed faster together."""

SHORTEST_PREFIX = 32
"""Minimum number of tokens of a shared prefix; a shorter one does not justify a separate pass."""

TOLERATED_PADDING = 4096
"""Padding slots tolerated in a batch's cache; more are allowed only up to the number of real tokens."""


class BatchModel(Protocol):
    """The interface of a model that the loop needs."""

    config: Any

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Run ids (B, L), add their keys and values to the cache, and return the newest `keep` logits (B, keep, V)."""
        ...


@dataclass(frozen=True)
class RowToken:
    """The next token of a sequence.

    Attributes:
        row: `index` of the `BatchSequence`.
        token: the token id.
        logprobs: log-probabilities (V,), if requested.
    """

    row: int
    token: int
    logprobs: mx.array | None = None


@dataclass
class BatchSequence:
    """One sequence of a batch.

    Attributes:
        index: identifies the sequence in `RowToken`.
        prompt: ids of the prompt, at least one.
        left: remaining number of tokens to generate.
        sampler: function of logits (n, V) that returns tokens (n,); rows with equal settings are sampled together.
        processors: functions of the ids so far (S,) and logits (1, V).
        logprobs: whether to return log-probabilities with the tokens.
        cache: cache of the tokens before the prompt, or None. It is updated. A sequence with a cache runs alone.
        before: ids of the tokens in `cache`.
        finished: set this between tokens to finish the sequence.
        history: ids so far, if there are processors.
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


def generate_rows(
    model: BatchModel,
    sequences: Sequence[BatchSequence],
    add_token: Callable[[RowToken], bool],
    *,
    batch_size: int = 32,
    prefill_tokens: int = 8192,
    **cache_options: Any,
) -> Iterator[RowToken]:
    """Yield the new tokens of all sequences as they are computed; the tokens of one sequence are in order.

    Args:
        add_token: called with each token before it is yielded; returns whether the sequence is finished.
        batch_size: maximum number of sequences per pass.
        prefill_tokens: maximum number of tokens per pass over the prompts.
        **cache_options: `max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`.

    Raises:
        InputError: no token is allowed in one of the sequences.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    waiting = [row for row in sequences if row.cache is None]
    if rope.get("rope_type") in MOVING_FREQUENCIES:
        # the RoPE frequencies of a row would depend on the other rows and on the length of a pass
        batch_size, prefill_tokens = 1, max((len(row.prompt) for row in waiting), default=1)
    # the first tokens that a size-limited cache keeps must not be padding
    equal_lengths = cache_options.get("max_kv_size") is not None
    waiting.sort(key=lambda row: -len(row.prompt))
    shared = None
    if len(waiting) > 1 and rope.get("rope_type") not in MOVING_FREQUENCIES:
        shared = _compute_prefix(model, waiting, new_cache(model.config, **cache_options), prefill_tokens)
    while waiting:
        rows = _pop_first(waiting, _count_fitting(waiting, batch_size, equal_lengths))
        batch = ContinuousBatch(model, rows, lambda: new_cache(model.config, **cache_options), prefill_tokens, shared)
        yield from batch.run(waiting, add_token)
    for row in sequences:
        if row.cache is not None:
            yield from _run_alone(model, row, add_token)


def _compute_prefix(model: "BatchModel", rows: Sequence[BatchSequence], cache: Any, prefill_tokens: int) -> Any:
    """Return a one-row cache of the prefix of all prompts, or None if it is too short or the cache has no rows."""
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
    """Return the length of the prefix shared by all rows, at least one id shorter than the shortest row.

    It is 0 if it would be below `least`, or for a single row.
    """
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # in lexicographic order; their common prefix is that of all rows
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    length = min(length, min(map(len, rows)) - 1)
    return length if length >= least else 0


def _run_alone(model: Any, row: BatchSequence, add_token: Callable[[RowToken], bool]) -> Iterator[RowToken]:
    chooser = Chooser(row.sampler, row.processors, row.logprobs, needs_logprobs(row.sampler))
    steps = decode_steps(model, list(row.prompt), row.cache, chooser, max_tokens=row.left, history=row.before)
    try:
        for step in steps:
            found = RowToken(row.index, step.token, step.logprobs)
            row.finished = add_token(found)
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
    """Return how many of the first rows fit in a batch of at most `size`; rows are sorted by descending length."""
    lengths = [len(row.prompt) for row in waiting[: size + 1]]
    if equal_lengths:
        return min(lengths.count(lengths[0]), size)
    return _count_with_little_padding(lengths, size)


def group_prompts(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Group the indices of prompts, longest first, into groups of at most `size` that need little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups = []
    while order:
        count = _count_with_little_padding([lengths[i] for i in order[: size + 1]], size)
        groups.append(order[:count])
        del order[:count]
    return groups


def _count_with_little_padding(lengths: Sequence[int], size: int) -> int:
    """Return how many of the first lengths, at most `size`, can be padded to the first without too much padding."""
    real = 0
    for count, length in enumerate(lengths):
        real += length
        padding = (count + 1) * lengths[0] - real
        if count == size or (count and _is_mostly_padding(padding, real)):
            return count
    return len(lengths)


def _is_mostly_padding(padding: int, real: int) -> bool:
    return padding > max(real, TOLERATED_PADDING)


class ContinuousBatch:
    """A batch whose rows end at the same slot of one cache.

    Args:
        rows: sequences to start with, sorted by descending prompt length.
        make_cache: function that returns an empty cache.
        prefill_tokens: maximum number of tokens per pass over the prompts.
        shared: one-row cache of a prefix of all prompts, which is copied; None for none.

    Attributes:
        visible: (B, slots), true for slots with a token of the row, false for padding.
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

    def run(self, waiting: list[BatchSequence], add_token: Callable[[RowToken], bool]) -> Iterator[RowToken]:
        """Yield the tokens of the rows, and of rows that join from `waiting`, until all are finished."""
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
                row.finished = add_token(found) or row.left < 1
                yield found
            if following is None or all(row.finished for row in self.rows):
                return
            chosen = self.drop_finished(self.admit(waiting, following))

    def start(self) -> "Choice":
        """Compute the prompts and queue the choice of each row's first token."""
        return self._choose(self._prefill())

    def advance(self, chosen: "Choice") -> "Choice":
        """Queue the pass over the newest tokens and the choice of the next ones."""
        slot = self.cache.offset
        return self._choose(self._pass(chosen.tokens[:, None], slot, slot + 1))

    def read(self, chosen: "Choice") -> list[RowToken]:
        """Wait for a choice and return one token per row, including finished rows."""
        values = np.asarray(chosen.tokens).tolist()
        return [
            RowToken(row.index, token, chosen.logprobs[i] if row.logprobs and chosen.logprobs is not None else None)
            for i, (row, token) in enumerate(zip(self.rows, values, strict=True))
        ]

    def admit(self, waiting: list[BatchSequence], chosen: "Choice") -> "Choice":
        """Replace finished rows by waiting ones, if that is worthwhile; return the next token of each row."""
        free = [i for i, row in enumerate(self.rows) if row.finished]
        if not (self.accepts_rows and waiting) or len(free) * JOINING_SHARE < len(self.rows):
            return chosen
        slots, count = self.cache.offset, _count_fitting(waiting, len(free))
        real = sum(int(own.sum()) for row, own in zip(self.rows, self.visible, strict=True) if not row.finished)
        real += sum(len(row.prompt) for row in waiting[:count])
        if _is_mostly_padding(slots * len(self.rows) - real, real):
            # permanently: rows that join later, when fewer are left, would keep a nearly empty batch running
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
        """Drop finished rows once half of the rows are finished; return the next token of each remaining row."""
        kept = [i for i, row in enumerate(self.rows) if not row.finished]
        if 2 * len(kept) > len(self.rows) or not kept:
            return chosen
        self.cache.select_rows(kept)
        self.rows, self.visible = [self.rows[i] for i in kept], self.visible[kept]
        return chosen.selected(kept)

    def _choose(self, logits: mx.array) -> "Choice":
        """Queue the choice of one token per row from logits (B, V)."""
        rows = self.rows
        if any(row.processors for row in rows):
            parts = [part.astype(mx.float32) for part in mx.split(logits, len(rows))]
            for i, row in enumerate(rows):
                if row.history is not None:
                    parts[i] = apply_processors(row.processors, row.history, parts[i])
            logits = mx.concatenate(parts)
        logprobs = to_logprobs(logits) if any(row.logprobs for row in rows) else None
        tokens = mark_invalid(sample_rows(logits, [row.sampler for row in rows]), logits)
        for i, row in enumerate(rows):
            if row.history is not None and not row.finished:
                row.history = mx.concatenate([row.history, tokens[i : i + 1]])
        start_evaluation(tokens, logprobs, *(row.history for row in rows))
        return Choice(tokens, logprobs)

    def _prefill(self) -> mx.array:
        """Compute the prompts; return the logits of each row's last token (B, V)."""
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
                # new rows are copies of row 0; the mask hides the slots before their own first token
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
        """Run ids (B, L) at the slots first … last−1 of the first B rows; return the last slot's logits (B, V)."""
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
    """The next token of each row (B,), possibly still being computed, and log-probabilities (B, V) if requested."""

    tokens: mx.array
    logprobs: mx.array | None

    def selected(self, rows: list[int]) -> "Choice":
        """Return the choice restricted to some rows."""
        index = mx.array(rows)
        return Choice(self.tokens[index], None if self.logprobs is None else self.logprobs[index])

    def replaced(self, rows: list[int], other: "Choice", size: int) -> "Choice":
        """Return the choice of `size` rows, of which `rows` are replaced by the rows of another choice."""
        order = list(range(size))
        for number, row in enumerate(rows):
            order[row] = size + number
        both = Choice(
            mx.concatenate([self.tokens, other.tokens]), _concatenate(self.logprobs, other.logprobs, size, rows)
        )
        return both.selected(order)


def _concatenate(own: mx.array | None, other: mx.array | None, size: int, rows: list[int]) -> mx.array | None:
    """Concatenate the log-probabilities of two choices; zeros replace those of a choice without any."""
    if own is None and other is None:
        return None
    like = own if own is not None else other
    assert like is not None
    own = mx.zeros((size, like.shape[1])) if own is None else own
    return mx.concatenate([own, mx.zeros((len(rows), like.shape[1])) if other is None else other])
