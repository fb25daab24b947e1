"""Text generation for one model: prompts wait, are computed in chunks, and join a running batch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..cache import Cache, RowSource, cache_bytes
from ..distributed import process_count
from ..generation.context import MOVING_FREQUENCIES
from ..layers.devices import variants
from .batch import Batch, Row, choose, make_row
from .jobs import Delta, TextJob
from .passes import Passes

SMALLEST_CHUNK = 4
"""Tokens of a prompt in one pass, at least."""

WORTH_KEEPING = 32
"""Tokens of the shortest prompt whose cache is kept for later ones."""

TOLERATED_PADDING = 1024
"""Slots of padding in a batch that need no reason, at least; see `Decoder`. More must stay below the real tokens."""

PATIENCE = 2.0
"""Seconds after which the oldest prompt goes before shorter ones."""

TOO_SHORT, TOO_LONG = 0.9, 1.5
"""Shares of the time that a pass may take, below and above which the next one has twice or half as many tokens."""

CALM = 16
"""Passes after one that took too long in which their size does not grow again."""

FIRST_PASS = 0.03
"""Seconds of the passes whose size a prompt that was computed alone suggests."""


@dataclass
class Prompt:
    """A request whose prompt is being computed.

    Attributes:
        done: tokens in `cache`. reserved: bytes of cache that each choice may come to need.
        looked_up: how many prefixes had been kept when they were last searched for this prompt.
    """

    job: TextJob
    budget: int
    reserved: int
    cache: Cache | None = None
    done: int = 0
    looked_up: int = -1
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.job.prompt) - self.done


class Pace:
    """How many tokens a pass may have that should take so many seconds: as many as the last passes have shown.

    A rate would not tell: a pass has a fixed cost, and the first one of its size may compile kernels.
    """

    def __init__(self) -> None:
        self._size = SMALLEST_CHUNK
        self._seconds: float | None = None
        self._calm = 0

    def tokens_in(self, seconds: float | None, most: int) -> int:
        """Return how many tokens to compute in `seconds` (None for no limit): a power of two, at most `most`."""
        self._seconds = seconds
        return power_of_two(most if seconds is None else min(self._size, most))

    def add(self, tokens: int, seconds: float) -> None:
        """Note how long the pass took."""
        self._calm -= 1
        if self._seconds is None:
            share = min(1.0, FIRST_PASS / max(seconds, 1e-6))
            self._size = max(self._size, power_of_two(max(1, int(tokens * share))))
        elif seconds > TOO_LONG * self._seconds:
            self._size, self._calm = max(SMALLEST_CHUNK, self._size // 2), CALM
        elif seconds < TOO_SHORT * self._seconds and 2 * tokens > self._size and self._calm < 0:
            self._size *= 2


def power_of_two(number: int) -> int:
    """Return the largest power of two up to a number above 0."""
    return 1 << (number.bit_length() - 1)


class Decoder:
    """Continuous batching for one model. Every method but `waiting_count` runs in the engine's thread.

    Args:
        served: has `model`, `tokenizer`, `ends`.
        max_batch: rows that are decoded together.
        passes: of its model.
        post: takes a job and its events.
        padding_bytes: what the padding of a batch may hold without a reason. A second batch would read all weights
            once more for every token, which takes longer than reading padding of up to that size.
    """

    def __init__(
        self,
        served: Any,
        max_batch: int,
        passes: Passes,
        post: Callable[[TextJob, list[Any]], None],
        cache_options: dict[str, Any],
        padding_bytes: int = 0,
    ):
        config = served.model.config
        rope = getattr(config, "rope_parameters", None) or {}
        moving = rope.get("rope_type") in MOVING_FREQUENCIES
        # with moving frequencies another row, or another length of a pass, would change a row's numbers
        self.max_batch, self.chunk = (1, None) if moving else (max_batch, variants().prefill_step_size)
        self.served, self.config, self.passes, self._post = served, config, passes, post
        self._kept = 0
        self.waiting: list[Prompt] = []
        self.batches: list[Batch] = []
        self.pace = Pace()
        self.step_seconds = 0.02
        dtype = str(served.model.dtype).rpartition(".")[2]
        processes = process_count(served.model.group)
        self.row_bytes = lambda tokens: cache_bytes(config, tokens, dtype=dtype, **cache_options) // processes
        self._tolerated = max(TOLERATED_PADDING, 1024 * padding_bytes // max(self.row_bytes(1024), 1))

    @property
    def running(self) -> int:
        """Rows that are being decoded."""
        return sum(map(len, self.batches))

    @property
    def cache_nbytes(self) -> int:
        """Bytes of keys and values of running rows and unfinished prompts."""
        held = [batch.cache for batch in self.batches] + [prompt.cache for prompt in self.waiting]
        return sum(cache.nbytes for cache in held if cache is not None)

    def jobs(self) -> list[TextJob]:
        """Return every request in here."""
        found = [prompt.job for prompt in self.waiting]
        found += [row.job for batch in self.batches for row in batch.rows]
        return list(dict.fromkeys(found))

    # decoding

    def step(self) -> int:
        """Compute a token of every running row; how many there were."""
        count = 0
        for batch in list(self.batches):
            start = time.perf_counter()
            try:
                count += batch.step()
            except Exception:
                self.batches.remove(batch)
                for row in batch.rows:
                    row.failed = True
                    self._post(row.job, [row])
                raise
            self.step_seconds += 0.2 * (time.perf_counter() - start - self.step_seconds)
            if not batch.rows:
                self.batches.remove(batch)
        return count

    def _deliver(self, row: Row, deltas: list[Delta]) -> None:
        row.job.completion_tokens += len(row.answer.tokens) - row.counted
        row.counted = len(row.answer.tokens)
        if deltas:
            self._post(row.job, deltas)

    def _finished(self, row: Row, alone: Callable[[], Cache]) -> None:
        job = row.job
        if row.answer.finish_reason is not None and not job.cancelled and self.passes.prefixes.max_bytes:
            ids = [*job.prompt, *row.answer.tokens]
            if len(ids) >= WORTH_KEEPING:
                cache = alone()
                self.passes.trim(cache, cache.offset - len(ids))
                self._keep(ids, cache)
        self._post(job, [row])

    def _keep(self, ids: Sequence[int], cache: Cache) -> None:
        mx.async_eval(cache.arrays)
        self._kept += self.passes.keep_prefix(ids, cache)

    # prompts

    def add(self, prompt: Prompt) -> None:
        """Let a prompt wait."""
        self.waiting.append(prompt)

    def prefill(self, seconds: float | None) -> int:
        """Compute some tokens of waiting prompts, for about so many seconds; how many.

        Prompts that fit into one pass together are computed together; of long ones, the one with the fewest tokens
        left goes first, unless the oldest has waited for long.
        """
        self.waiting = [prompt for prompt in self.waiting if not self._dropped(prompt)]
        free = self.max_batch - self.running
        ready = [prompt for prompt in self.waiting if prompt.job.options.choices <= free]
        if not ready:
            return 0
        tokens = None if self.chunk is None else self.pace.tokens_in(seconds, self.chunk)
        for prompt in ready:
            if prompt.looked_up < 0:
                self._look_up(prompt)
        oldest = ready[0]
        ready.sort(key=lambda prompt: prompt.left)
        if time.monotonic() - oldest.began > PATIENCE and self.batches:
            ready.remove(oldest)
            ready.insert(0, oldest)
        group = self._together(ready, tokens, free)
        for prompt in group:
            self._look_up(prompt)
        group = self._together(group, tokens, free)
        start = time.perf_counter()
        try:
            count = self._prefill_group(group) if len(group) > 1 else self._prefill_one(group[0], tokens)
        except Exception:
            for prompt in group:
                if prompt in self.waiting:
                    self.waiting.remove(prompt)
                self._post(prompt.job, [prompt])
            raise
        self.pace.add(count, time.perf_counter() - start)
        return count

    def _dropped(self, prompt: Prompt) -> bool:
        if prompt.job.cancelled:
            self._post(prompt.job, [prompt])
        return prompt.job.cancelled

    def _look_up(self, prompt: Prompt) -> None:
        """Start a prompt from what an earlier one has left."""
        if prompt.done or prompt.looked_up == self._kept:
            return
        prompt.looked_up = self._kept
        found, length = self.passes.longest_prefix(prompt.job.prompt[:-1])
        if length < min(WORTH_KEEPING, len(prompt.job.prompt) // 2):  # a pass together with others saves more
            found, length = None, 0
        prompt.cache, prompt.done = found or self.passes.new_cache(), length
        prompt.job.cached_tokens = length

    def _together(self, ready: list[Prompt], tokens: int | None, free: int) -> list[Prompt]:
        """Return the prompts, shortest first, that one pass of at most `tokens` tokens computes whole."""
        group: list[Prompt] = []
        for prompt in ready:
            fresh = prompt.done == 0 and prompt.job.options.choices == 1
            if tokens is None or not fresh or len(group) == free or (len(group) + 1) * prompt.left > tokens:
                break
            group.append(prompt)
        return group or ready[:1]

    def _prefill_group(self, group: list[Prompt]) -> int:
        """Compute several prompts in one pass, padded on the left."""
        length = max(prompt.left for prompt in group)
        padding = np.array([length - prompt.left for prompt in group], dtype=np.int32)
        ids = np.zeros((len(group), length), dtype=np.int32)
        for row, prompt in zip(ids, group, strict=True):
            row[length - prompt.left :] = prompt.job.prompt
        mask = positions = None
        if padding.any():
            slots = np.arange(length, dtype=np.int32)
            mask = mx.array((slots >= padding[:, None]).astype(np.int32))
            positions = mx.array(np.maximum(slots - padding[:, None], 0))
        cache = self.passes.new_cache()
        logits = self.passes.step_logits(mx.array(ids), cache, 1, mask, positions)[:, -1]
        for place, prompt in enumerate(group):
            self.waiting.remove(prompt)
            if self.passes.prefixes.max_bytes and prompt.left >= WORTH_KEEPING:
                self._keep(
                    prompt.job.prompt, self.passes.join_rows([RowSource(cache, [place], prompt.left)], room=False)
                )
        rows = [make_row(prompt.job, 0, self.served, prompt.budget, prompt.reserved) for prompt in group]
        self._start(rows, cache, logits)
        return len(group) * length

    def _prefill_one(self, prompt: Prompt, tokens: int | None) -> int:
        """Compute the next chunk of a prompt; after the last one its choices join the batch."""
        cache = prompt.cache
        assert cache is not None
        count = prompt.left if tokens is None else min(prompt.left, tokens)
        ids = mx.array([prompt.job.prompt[prompt.done : prompt.done + count]], dtype=mx.int32)
        if count < prompt.left:
            self.passes.fill_cache(ids, cache)
            mx.eval(cache.arrays)
            prompt.done += count
            return count
        logits = self.passes.step_logits(ids, cache, 1)[:, -1]
        prompt.done += count
        self.waiting.remove(prompt)
        job, choices = prompt.job, prompt.job.options.choices
        if self.passes.prefixes.max_bytes and len(job.prompt) >= WORTH_KEEPING:
            self._keep(job.prompt, cache)
        rows = [make_row(job, i, self.served, prompt.budget, prompt.reserved) for i in range(choices)]
        if choices > 1:
            cache = self.passes.join_rows([RowSource(cache, [0] * choices, len(job.prompt))])
            logits = mx.repeat(logits, choices, axis=0)
        self._start(rows, cache, logits)
        return count

    def _start(self, rows: list[Row], cache: Cache, logits: mx.array) -> None:
        """Choose the first tokens and let the rows join a batch in which they need little padding."""
        chosen = choose(logits, rows).start()
        mx.eval(chosen.tokens)
        lengths = [row.length for row in rows]
        for batch in self.batches:
            padding, real = batch.padding_with(lengths)
            if padding <= max(real, self._tolerated):
                batch.join(rows, cache, chosen)
                return
        batch = Batch(self.passes, self._deliver, self._finished)
        batch.join(rows, cache, chosen)
        self.batches.append(batch)
