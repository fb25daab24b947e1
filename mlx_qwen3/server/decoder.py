"""Continuous batching for one model: prompts are computed in chunks, then join a running batch."""

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
from .batch import Batch, NextTokens, Row, accept_token, choose, make_row
from .jobs import Delta, TextJob
from .passes import Passes

SMALLEST_CHUNK = 4
"""Minimum number of prompt tokens per pass."""

WORTH_KEEPING = 32
"""Number of tokens from which on the cache of a prompt is kept for later prompts."""

TOLERATED_PADDING = 1024
"""Padding slots that a batch may always have; see `Decoder`. More padding must not exceed the number of tokens."""

PATIENCE = 2.0
"""Seconds of waiting after which the oldest prompt goes before shorter ones."""

TOO_SHORT, TOO_LONG = 0.9, 1.5
"""Fractions of the target time of a pass: below the first the pass size is doubled, above the second halved."""

CALM = 16
"""Number of passes after an overlong one during which the pass size does not grow."""

PASS_SECONDS = 0.03
"""Seconds of padding for which prompts still share a pass: about the fixed cost of a further one (0.6B, H100)."""

FIRST_PASS = 0.03
"""Target seconds of a pass when its size is estimated from a prompt that was computed without a time limit."""

LONGEST_PASS = 1.0
"""Seconds that a pass may take while no stream is running; new and cancelled requests wait until it is finished."""

FIRST_UNLIMITED, SMALLEST_UNLIMITED = 128, 32
"""Tokens of the first pass while no stream is running, and the minimum of later ones."""


@dataclass
class Prompt:
    """A request whose prompt is waiting or being computed.

    Attributes:
        budget: maximum number of tokens to generate.
        reserved: bytes of cache reserved per choice.
        done: number of tokens in `cache`.
        looked_up: number of prefixes kept so far at the last search for this prompt; -1 before the first search.
        began: time at which it was added.
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
        """Number of tokens still to compute."""
        return len(self.job.prompt) - self.done


class Pace:
    """Choose the number of tokens of a pass with a target duration, from the durations of earlier passes.

    A rate in tokens per second would mislead if the target is short: a pass has a fixed cost, and the first pass of a
    size may compile kernels. Without a target the duration is only bounded, for which a rate suffices.
    """

    def __init__(self) -> None:
        self._size = SMALLEST_CHUNK
        self._seconds: float | None = None
        self._calm = 0
        self.rate = FIRST_UNLIMITED / LONGEST_PASS
        """Tokens per second: the highest rate of the passes since the last one above `LONGEST_PASS`."""

    def tokens_in(self, seconds: float | None, most: int) -> int:
        """Return the number of tokens to compute in `seconds`: a power of two, at most `most`.

        Without a target (None) it is as many as are expected to take no longer than `LONGEST_PASS`.
        """
        self._seconds = seconds
        size = self._size if seconds is not None else max(SMALLEST_UNLIMITED, int(self.rate * LONGEST_PASS))
        return power_of_two(min(size, most))

    def add(self, tokens: int, seconds: float) -> None:
        """Record that a pass of `tokens` tokens took `seconds`."""
        self._calm -= 1
        rate = tokens / max(seconds, 1e-6)
        self.rate = rate if seconds > LONGEST_PASS else max(rate, self.rate)
        if self._seconds is None:
            share = min(1.0, FIRST_PASS / max(seconds, 1e-6))
            self._size = max(self._size, power_of_two(max(1, int(tokens * share))))
        elif seconds > TOO_LONG * self._seconds:
            self._size, self._calm = max(SMALLEST_CHUNK, self._size // 2), CALM
        elif seconds < TOO_SHORT * self._seconds and 2 * tokens > self._size and self._calm < 0:
            self._size *= 2


def power_of_two(number: int) -> int:
    """Return the largest power of two that is at most `number`, which must be positive."""
    return 1 << (number.bit_length() - 1)


class Decoder:
    """Continuous batching for one model. All methods run in the engine's thread.

    Args:
        served: the `ServedModel`.
        max_batch: maximum number of rows that are decoded at once.
        passes: the forward passes of the model.
        post: called with a job and its events.
        flush: called to send the posted events now.
        cache_options: options of new caches, to compute their size.
        padding_bytes: bytes of padding that a batch may always have. A second batch would read all weights again for
            every token, which takes longer than reading that much padding.
    """

    def __init__(
        self,
        served: Any,
        max_batch: int,
        passes: Passes,
        post: Callable[[TextJob, list[Any]], None],
        flush: Callable[[], None],
        cache_options: dict[str, Any],
        padding_bytes: int = 0,
    ):
        config = served.model.config
        rope = getattr(config, "rope_parameters", None) or {}
        moving = rope.get("rope_type") in MOVING_FREQUENCIES
        # these RoPE frequencies depend on the length of a pass: other rows or chunks would change a row's results
        self.max_batch, self.chunk = (1, None) if moving else (max_batch, variants().prefill_step_size)
        self.served, self.config, self.passes = served, config, passes
        self._post, self._flush = post, flush
        self._prefix_count = 0
        self.waiting: list[Prompt] = []
        self.batches: list[Batch] = []
        self.pace = Pace()
        self.step_seconds = 0.02
        dtype = str(served.model.dtype).rpartition(".")[2]
        processes = process_count(served.model.group)
        self.row_bytes = lambda tokens: cache_bytes(config, tokens, dtype=dtype, **cache_options) // processes
        self._tolerated_padding = max(TOLERATED_PADDING, 1024 * padding_bytes // max(self.row_bytes(1024), 1))

    @property
    def running(self) -> int:
        """Number of rows being decoded. May be read from any thread."""
        return sum(map(len, self.batches))

    @property
    def cache_nbytes(self) -> int:
        """Bytes of the keys and values of running rows and unfinished prompts."""
        held = [batch.cache for batch in self.batches] + [prompt.cache for prompt in self.waiting]
        return sum(cache.nbytes for cache in held if cache is not None)

    def jobs(self) -> list[TextJob]:
        """Return every request in the decoder."""
        found = [prompt.job for prompt in self.waiting]
        found += [row.job for batch in self.batches for row in batch.running]
        return list(dict.fromkeys(found))

    # decoding

    def step(self) -> int:
        """Compute one token for every running row and return the number of rows."""
        count = 0
        for batch in list(self.batches):
            start = time.perf_counter()
            try:
                count += batch.step()
            except Exception:
                self.batches.remove(batch)
                for row in batch.running:
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

    def _finish_row(self, row: Row, extract: Callable[[], Cache]) -> None:
        job = row.job
        if row.answer.finish_reason is not None and not job.cancelled and self.passes.prefixes.max_bytes:
            ids = [*job.prompt, *row.answer.tokens]
            if len(ids) >= WORTH_KEEPING:
                cache = extract()
                self.passes.trim(cache, max(cache.offset - len(ids), 0))
                self._keep_prefix(ids[: cache.offset], cache)
        self._post(job, [row])

    def _keep_prefix(self, ids: Sequence[int], cache: Cache) -> None:
        mx.async_eval(cache.arrays)
        self._prefix_count += self.passes.keep_prefix(ids, cache)

    # prompts

    def add(self, prompt: Prompt) -> None:
        """Add a prompt to the queue."""
        self.waiting.append(prompt)

    def prefill(self, seconds: float | None) -> int:
        """Compute tokens of waiting prompts for about `seconds` (None: up to `LONGEST_PASS`) and return how many.

        Prompts that fit into one pass are computed in one batch. Of longer ones, the one with the fewest tokens left
        goes first, unless the oldest has waited for more than `PATIENCE` seconds.
        """
        self.waiting = [prompt for prompt in self.waiting if not self._drop_if_cancelled(prompt)]
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
        group = self._select_group(ready, tokens, free)
        for prompt in group:
            self._look_up(prompt)
        group = self._select_group(group, tokens, free)
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

    def _drop_if_cancelled(self, prompt: Prompt) -> bool:
        if prompt.job.cancelled:
            self._post(prompt.job, [prompt])
        return prompt.job.cancelled

    def _look_up(self, prompt: Prompt) -> None:
        """Start a prompt from the longest kept prefix."""
        if prompt.done or prompt.looked_up == self._prefix_count:
            return
        prompt.looked_up = self._prefix_count
        found, length = self.passes.longest_prefix(prompt.job.prompt[:-1])
        if length < min(WORTH_KEEPING, len(prompt.job.prompt) // 2):  # computing it in a batch saves more
            found, length = None, 0
        prompt.cache, prompt.done = found or self.passes.new_cache(), length
        prompt.job.cached_tokens = length

    def _select_group(self, ready: list[Prompt], tokens: int | None, free: int) -> list[Prompt]:
        """Return the prompts that one pass of at most `tokens` tokens, padding included, can compute; at least one.

        Args:
            ready: prompts, shortest first, or the oldest one and then the others. Those whose padding would take longer
                than a further pass are left for it.
            free: maximum number of prompts.
        """
        group: list[Prompt] = []
        real, longest, tolerated = 0, 0, PASS_SECONDS * self.pace.rate
        for prompt in ready:
            fresh = prompt.done == 0 and prompt.job.options.choices == 1
            longest = max(longest, prompt.left)
            slots = (len(group) + 1) * longest
            if tokens is None or not fresh or len(group) == free or slots > tokens:
                break
            if slots - real - prompt.left > tolerated:
                break
            group.append(prompt)
            real += prompt.left
        return group or ready[:1]

    def _prefill_group(self, group: list[Prompt]) -> int:
        """Compute several prompts in one pass with left padding; return the number of tokens, padding included."""
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
        rows = [make_row(prompt.job, 0, self.served, prompt.budget, prompt.reserved) for prompt in group]
        chosen = self._deliver_first(rows, logits)
        for index, prompt in enumerate(group):
            self.waiting.remove(prompt)
            if self.passes.prefixes.max_bytes and prompt.left >= WORTH_KEEPING:
                self._keep_prefix(
                    prompt.job.prompt, self.passes.join_rows([RowSource(cache, [index], prompt.left)], room=False)
                )
        self._join_batch(rows, cache, chosen)
        return len(group) * length

    def _prefill_one(self, prompt: Prompt, tokens: int | None) -> int:
        """Compute the next chunk of a prompt and return its length; after the last chunk its choices join a batch."""
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
        job, choices = prompt.job, prompt.job.options.choices
        rows = [make_row(job, i, self.served, prompt.budget, prompt.reserved) for i in range(choices)]
        if choices > 1:
            logits = mx.repeat(logits, choices, axis=0)
        chosen = self._deliver_first(rows, logits)
        self.waiting.remove(prompt)
        if self.passes.prefixes.max_bytes and len(job.prompt) >= WORTH_KEEPING:
            self._keep_prefix(job.prompt, cache)
        if choices > 1:
            cache = self.passes.join_rows([RowSource(cache, [0] * choices, len(job.prompt))])
        self._join_batch(rows, cache, chosen)
        return count

    def _deliver_first(self, rows: list[Row], logits: mx.array) -> NextTokens:
        """Sample the first tokens of rows from logits (B, V) and deliver them, before any other work on the rows."""
        chosen = choose(logits, rows).start()
        for row, (token, logprob) in zip(rows, chosen.read(rows), strict=True):
            accept_token(row, token, logprob, self._deliver)
            row.ahead = True
        self._flush()
        return chosen

    def _join_batch(self, rows: list[Row], cache: Cache, chosen: NextTokens) -> None:
        """Add rows to a batch in which they need little padding, or to a new one."""
        lengths = [row.length for row in rows]
        for batch in self.batches:
            padding, real = batch.padding_with(lengths)
            if padding <= max(real, self._tolerated_padding):
                batch.join(rows, cache, chosen)
                return
        batch = Batch(self.passes, self._deliver, self._finish_row)
        batch.join(rows, cache, chosen)
        self.batches.append(batch)
