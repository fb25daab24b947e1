"""Decode one sequence of token ids: fill the cache with the prompt, then generate token by token.

A `Decoding` generates the `Step`s of a `DecodeRun`: `PlainDecoding` with one forward pass per token, `Speculation` with
passes that verify several drafted tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import mlx.core as mx

from ..errors import InputError
from .processors import RowProcessor, apply_processors
from .sampling import INVALID, Sampler, mark_invalid, to_logprobs
from .token_masks import Mask, apply_masks

CLEAR_EVERY = 256
"""Number of tokens after which MLX's buffer cache is cleared."""

NOTHING_ALLOWED = (
    "no token may follow: every score is -inf, or the model computed NaN. Check logit_bias, suppress_tokens and "
    "logits processors, or load the model in float32."
)

Progress = Callable[[int, int], None]
"""Function that is called with (processed prompt tokens, total prompt tokens)."""


class CachedModel(Protocol):
    """The interface of a model that the decode loop needs."""

    config: Any

    def step_logits(self, ids: mx.array, cache: Any, keep: int = 1) -> mx.array:
        """Run ids (B, L), add their keys and values to the cache, and return the newest `keep` logits (B, keep, V)."""
        ...

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Add the keys and values of ids (B, L) to the cache, lazily; no logits are computed."""
        ...


@runtime_checkable
class HasInferencePath(Protocol):
    """A model with a faster version of itself for the duration of one generation."""

    def for_inference(self) -> CachedModel:
        """Return the faster version, or the model itself."""
        ...


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token: the token id.
        logprobs: the log-probabilities (V,) that it was chosen from, if requested.
        from_draft: whether it was drafted, or forced by a constraint.
        complete: under a constraint, whether the answer may end after this token.
        finished: under a constraint, whether the answer must end after this token.
    """

    token: int
    logprobs: mx.array | None = None
    from_draft: bool = False
    complete: bool = False
    finished: bool = False


@dataclass
class Chooser:
    """Chooses the next token from the logits of one position.

    Args:
        sampler: function of scores (1, V) that returns a token (1,).
        processors: functions of the ids so far (S,) and logits (1, V).
        logprobs: whether to return log-probabilities.
        normalized: whether to call the sampler with log-probabilities instead of logits.
    """

    sampler: Sampler
    processors: list[RowProcessor] = field(default_factory=list)
    logprobs: bool = False
    normalized: bool = False

    def __call__(
        self, logits: mx.array, history: mx.array | None, masks: Sequence[Mask | None] | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """Return the next token (1,) and its log-probabilities (V,) or None.

        Args:
            logits: scores of one position (1, V).
            history: ids so far (S,); required if there are processors.
            masks: token masks of a constraint, one per row of the logits; applied after the processors.
        """
        if self.processors:
            assert history is not None
            logits = logits.astype(mx.float32)
            logits = apply_processors(self.processors, history, logits)
        if masks is not None:
            logits = apply_masks(logits, masks, raised=bool(self.processors))
        logprobs = None
        if self.logprobs or self.normalized:
            logits = to_logprobs(logits)
            logprobs = logits[0] if self.logprobs else None
        return mark_invalid(self.sampler(logits), logits), logprobs


@dataclass
class DecodeRun:
    """The state of one generation, shared with its `Decoding`.

    Attributes:
        model: the model, or its faster version.
        cache: contains the `known` tokens, and temporarily more.
        pending: ids (1, L) at the end of the prompt that are not in the cache yet.
        history: all ids at the start, for processors and drafts.
        choose: chooses tokens from logits.
        max_tokens: maximum number of tokens to yield; no further token is computed.
        known: number of tokens in the cache, or about to be, that the caller has seen.
        broken: whether a forward pass was interrupted.
        lost: whether something else has changed the cache.
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
        """Mark the enclosed code as a forward pass: if it is interrupted, the cache may contain only a part of it."""
        self.broken = True
        yield
        self.broken = False

    def logits(self, ids: mx.array, keep: int = 1) -> mx.array:
        """Run ids (1, L) through the model and return the newest `keep` logits (keep, V)."""
        with self.passing():
            return self.model.step_logits(ids, self.cache, keep)[0]

    def settle(self) -> None:
        """Remove tokens that the caller has not seen from the cache, and evaluate it for use in any thread.

        Afterwards the cache has at most `known` tokens. It is cleared if a pass was interrupted or the tokens cannot be
        removed.
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
    """Start to evaluate the arrays that the next step needs, which may run in another thread."""
    mx.async_eval([array for array in arrays if array is not None])


def read_token(token: mx.array) -> int:
    """Wait for a token (1,) and return it.

    Raises:
        InputError: no token could be chosen.
    """
    found = cast(int, token.item())
    if found == INVALID:
        raise InputError(NOTHING_ALLOWED)
    return found


class Decoding(Protocol):
    """A decoding strategy."""

    def __call__(self, run: DecodeRun) -> Iterator[Step]:
        """Yield tokens; the caller counts them and stops the iteration."""
        ...


class PlainDecoding:
    """Decode with one forward pass per token, pipelined one step ahead: token n+1 is computed while token n is read.

    The pipeline starts after the first token, which is read right after its own pass to minimize its latency.
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
        """Queue the pass over a token; return the next token, its log-probabilities and the history before it."""
        if history is not None:
            history = mx.concatenate([history, token])
        following, logprobs = run.choose(run.logits(token[None]), history)
        start_evaluation(following, logprobs, history)
        return following, logprobs, history


def prefill(run: DecodeRun, step: int | None, progress: Progress | None = None) -> None:
    """Process the prompt in chunks of `step` tokens, except for the last chunk, which is never empty and stays pending.

    Args:
        step: None for one chunk.
        progress: called before the first chunk and after each one.
    """
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
