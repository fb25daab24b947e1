"""One sequence, token by token: the prompt into the cache, then one token after the other. Ids only, no text.

A `Decoding` turns a `DecodeRun`, whose prompt is in the cache, into `Step`s: `PlainDecoding` by one pass per token,
`Speculation` by passes that verify several drafted tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import mlx.core as mx

from ..errors import InputError
from .processors import RowProcessor, apply_processors
from .sampling import INVALID, Sampler, mark_invalid, normalized
from .token_masks import Mask, apply_masks

CLEAR_EVERY = 256
"""Tokens after which MLX gives unused buffers back."""

NOTHING_ALLOWED = (
    "no token may follow: every score is -inf, or the model computed NaN. Check logit_bias, suppress_tokens and "
    "logits processors, or load the model in float32"
)

Progress = Callable[[int, int], None]
"""Called with the prompt's tokens computed so far, and all of them."""


class CachedModel(Protocol):
    """What the loop asks of a model."""

    config: Any

    def step_logits(self, ids: mx.array, cache: Any, keep: int = 1) -> mx.array:
        """ids (B, L) → logits (B, keep, V) of the newest positions; keys and values go into the cache."""
        ...

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Put the keys and values of ids (B, L) into the cache, lazily."""
        ...


@runtime_checkable
class HasInferencePath(Protocol):
    """A model that has a faster way through itself for the length of one generation."""

    def for_inference(self) -> CachedModel:
        """That way, or the model itself."""
        ...


@dataclass(frozen=True)
class Step:
    """A token, the log-probabilities (V,) that it was chosen from if asked for, and whether a draft proposed it.

    complete: under a constraint, whether the answer may end after this token; finished: whether it must.
    """

    token: int
    logprobs: mx.array | None = None
    from_draft: bool = False
    complete: bool = False
    finished: bool = False


@dataclass
class Chooser:
    """Logits of one position → the next token.

    normalized: hand log-probabilities to the sampler instead of logits, for samplers that compute with them.
    """

    sampler: Sampler
    processors: list[RowProcessor] = field(default_factory=list)
    logprobs: bool = False
    normalized: bool = False

    def __call__(
        self, logits: mx.array, history: mx.array | None, masks: Sequence[Mask | None] | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """Return logits (1, V) and, where there are processors, the tokens so far (S,) → token (1,), logprobs (V,) or
        None.

        masks: of a constraint, one per row, applied after the processors.
        """
        if self.processors:
            assert history is not None
            logits = logits.astype(mx.float32)
            logits = apply_processors(self.processors, history, logits)
        if masks is not None:
            logits = apply_masks(logits, masks, raised=bool(self.processors))
        logprobs = None
        if self.logprobs or self.normalized:
            logits = normalized(logits)
            logprobs = logits[0] if self.logprobs else None
        return mark_invalid(self.sampler(logits), logits), logprobs


@dataclass
class DecodeRun:
    """The state of one generation, shared with its `Decoding`.

    cache: holds `known` tokens that the caller has seen, and for moments more.
    pending: ids (1, L) at the prompt's end that are not in the cache yet.
    history: every id so far, where processors or a draft look back.
    max_tokens: tokens to yield at most; nothing is computed beyond.
    broken: a pass was interrupted. lost: something else has changed the cache.
    """

    model: CachedModel
    cache: Any
    pending: mx.array
    history: list[int]
    choose: Chooser
    max_tokens: int
    known: int
    broken: bool = False
    lost: bool = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Yield marks a pass of the model: if one is broken off, the cache may hold half of it."""
        self.broken = True
        yield
        self.broken = False

    def logits(self, ids: mx.array, keep: int = 1) -> mx.array:
        """Return one pass: ids (1, L) → logits (keep, V) of the newest positions."""
        with self.passing():
            return self.model.step_logits(ids, self.cache, keep)[0]

    def settle(self) -> None:
        """Take back what the caller does not know of: afterwards the cache holds at most `known` tokens, evaluated, so
        that any thread may continue with it.
        """
        if self.lost:
            return
        excess = self.cache.offset - self.known
        if not self.broken:
            mx.eval(self.cache.arrays)
        if not self.broken and excess <= 0:
            return
        if not self.broken and self.cache.reach(self.known) == self.known:
            self.cache.trim(excess)
        else:
            for layer in self.cache.layers:
                layer.clear()


def start_evaluation(*arrays: mx.array | None) -> None:
    """Start to evaluate what the next step needs, so that another thread may take it."""
    mx.async_eval([array for array in arrays if array is not None])


def read_token(token: mx.array) -> int:
    """Wait for a token (1,).

    Raises:
        InputError: no token could be chosen.
    """
    found = cast(int, token.item())
    if found == INVALID:
        raise InputError(NOTHING_ALLOWED)
    return found


class Decoding(Protocol):
    """A way to decode."""

    def __call__(self, run: DecodeRun) -> Iterator[Step]:
        """Yield tokens; the caller counts them and stops."""
        ...


class PlainDecoding:
    """One pass per token. From the second token on it is one pass ahead: token n+1 is computed while token n is read.

    The first token waits for nothing but its own pass, so that it is shown as early as possible.
    """

    def __call__(self, run: DecodeRun) -> Iterator[Step]:
        history = mx.array(run.history) if run.choose.processors else None
        token, logprobs = run.choose(run.logits(run.pending), history)
        start_evaluation(token, logprobs)
        yield Step(read_token(token), logprobs)
        ahead = self._next(run, token, history) if run.max_tokens > 1 else None
        for count in range(2, run.max_tokens + 1):
            assert ahead is not None
            token, logprobs, history = ahead
            if count < run.max_tokens:
                ahead = self._next(run, token, history)
            yield Step(read_token(token), logprobs)
            if count % CLEAR_EVERY == 0:
                mx.clear_cache()

    def _next(
        self, run: DecodeRun, token: mx.array, history: mx.array | None
    ) -> tuple[mx.array, mx.array | None, mx.array | None]:
        """Start the pass over a token: the token after it, its log-probabilities, and the history before it."""
        if history is not None:
            history = mx.concatenate([history, token])
        following, logprobs = run.choose(run.logits(token[None]), history)
        start_evaluation(following, logprobs, history)
        return following, logprobs, history


def prefill(run: DecodeRun, step: int | None, progress: Progress | None = None) -> None:
    """Put the prompt into the cache in chunks of `step`; the last chunk, never empty, stays pending."""
    length, done = run.pending.shape[1], 0
    if progress is not None:
        progress(0, length)
    while step is not None and run.pending.shape[1] > step:
        with run.passing():
            run.model.fill_cache(run.pending[:, :step], run.cache)
        run.pending = run.pending[:, step:]
        run.known += step
        mx.eval(run.cache.arrays)
        mx.clear_cache()
        done += step
        if progress is not None:
            progress(done, length)
