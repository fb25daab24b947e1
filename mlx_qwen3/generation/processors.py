"""Logits processors: the protocol, and penalties and biases on single tokens.

Protocol. A processor is called once per token to choose, with all ids so far, including the prompt, and the float32
logits of the next position. It returns logits of the same shape and changes neither argument. There are two signatures:

- transformers' (`LogitsProcessor`): ids (B, S) and scores (B, V). All processors of this package have it, and plain
  functions passed to `model.generate`.
- mlx_lm's: the ids of one sequence (S,) and its logits (1, V). Plain functions passed to `stream_generate`,
  `generate_step` or `batch_generate` have it.

In a batch, each sequence has its own processors, which see only the ids of that sequence, without padding. A processor
with state defines `for_row(row)`, which returns the processor for the sequence with that index. Only `model.generate`
calls its processors with all rows and their padding, as the reference does.

Rollback. Speculative decoding calls a processor for drafted tokens that may be rejected later, and tokens are chosen
before the previous ones have been read. Therefore a processor with state must compare the ids of each call with those
it has consumed. If it is called with fewer or with other ids, it must roll back to the common prefix. Rejected tokens
are not announced in any other way.

Sources: transformers 5.23 `generation/logits_process.py`; presence and frequency penalties as defined by the OpenAI
API.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..errors import InputError
from .checks import check_number, refuse_torch, type_name

RowProcessor = Callable[[mx.array, mx.array], mx.array]
"""The ids of one sequence (S,) and its logits (1, V) → logits (1, V)."""


class LogitsProcessor:
    """Base class of processors, which change the scores before a token is chosen; see the module docstring."""

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        """Return the changed scores (B, V) for ids (B, S) and float32 scores (B, V)."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def for_row(self, row: int) -> "LogitsProcessor":
        """Return the processor for the sequence with this index in a batch; processors with state return a copy."""
        return self


class LogitsProcessorList(list[Any]):
    """A list of processors with transformers' signature, and itself a processor that applies them in order."""

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        """Return the scores (B, V) after all processors."""
        return apply_processors(self, input_ids, scores)


def processor_list(processors: Any, name: str) -> list[Any]:
    """Return a list of processors from None, one processor or several; a `LogitsProcessorList` counts as one.

    Raises:
        InputError: a processor is not callable.
    """
    if processors is None:
        return []
    several = isinstance(processors, Sequence) and not isinstance(processors, LogitsProcessorList)
    found: list[Any] = list(processors) if several else [processors]
    for process in processors if isinstance(processors, Sequence) else found:
        refuse_torch(process, name)
        if not callable(process):
            raise InputError(f"{name} contains {type_name(process)}, expected functions of token ids and scores.")
    return found


def apply_processors(processors: Iterable[Any], ids: mx.array, scores: mx.array) -> mx.array:
    """Apply processors to the scores one after the other, each with the same ids.

    Raises:
        InputError: a processor does not return scores of the same shape.
    """
    for process in processors:
        found = process(ids, scores)
        if not isinstance(found, mx.array) or found.shape != scores.shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, mx.array) else type_name(found)
            raise InputError(f"a logits processor returned {what}, expected scores of shape {tuple(scores.shape)}.")
        scores = found
    return scores


def row_processors(processors: Iterable[Any], row: int = 0) -> list[RowProcessor]:
    """Convert processors of either signature to functions of the ids (S,) and logits (1, V) of sequence `row`."""
    found: list[RowProcessor] = []
    for given in processors:
        if isinstance(given, LogitsProcessorList):
            found.extend(row_processors([_BatchSignature(process) for process in given], row))
            continue
        if not callable(given):
            raise InputError(f"a logits processor is {given!r}, expected a function of token ids and logits.")
        for_row: Any = getattr(given, "for_row", None)
        process: Any = given if for_row is None else for_row(row)
        found.append(_accept_one_row(process) if isinstance(process, LogitsProcessor) else process)
    return found


class _BatchSignature(LogitsProcessor):
    """A processor that wraps a function with transformers' signature."""

    def __init__(self, process: Any):
        self.process = process

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return self.process(input_ids, scores)

    def for_row(self, row: int) -> LogitsProcessor:
        return _BatchSignature(self.process.for_row(row)) if hasattr(self.process, "for_row") else self


def _accept_one_row(process: LogitsProcessor) -> RowProcessor:
    return lambda tokens, logits: process(tokens[None], logits)


class RepetitionPenalty(LogitsProcessor):
    """Divide the positive and multiply the negative scores of tokens that occur in the text, including the prompt.

    Args:
        penalty: above 0; 1 has no effect.
        context_size: consider only this many of the newest tokens; None for all.
        padding: number of padding tokens at the start of each row (B,), which are ignored; None for no padding.
    """

    def __init__(self, penalty: float, context_size: int | None = None, padding: mx.array | None = None):
        check_number("repetition_penalty", penalty, above=0, hint="1 for none")
        self.penalty, self.context_size, self.padding = float(penalty), context_size, padding

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        size = scores.shape[-1]
        if self.padding is not None:  # replace padding by an extra token beyond the vocabulary
            input_ids = mx.where(mx.arange(input_ids.shape[1]) < self.padding[:, None], size, input_ids)
            scores = mx.pad(scores, [(0, 0), (0, 1)])
        seen = input_ids if self.context_size is None else input_ids[:, -self.context_size :]
        found = mx.take_along_axis(scores, seen, axis=-1)
        found = mx.where(found < 0, found * self.penalty, found / self.penalty)
        return mx.put_along_axis(scores, seen, found, axis=-1)[:, :size]


class PresencePenalty(LogitsProcessor):
    """Subtract `presence` from the score of every generated token, and `frequency` per occurrence.

    Args:
        prompt_length: number of tokens at the start that are ignored because they belong to the prompt.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int):
        check_number("presence_penalty", presence, hint="0 for none")
        check_number("frequency_penalty", frequency, hint="0 for none")
        self.presence, self.frequency, self.prompt_length = float(presence), float(frequency), prompt_length

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        generated = input_ids[:, self.prompt_length :]
        if not generated.shape[1]:
            return scores
        rows = mx.broadcast_to(mx.arange(generated.shape[0])[:, None], generated.shape)
        counts = mx.zeros_like(scores).at[rows, generated].add(1.0)
        return scores - self.frequency * counts - self.presence * (counts > 0)


class LogitBias(LogitsProcessor):
    """Add a number to the scores of some tokens; −inf forbids a token.

    Args:
        bias: token id → number.
        name: name of the user's argument, for error messages.

    Raises:
        InputError: `bias` is not such a mapping, or contains NaN or a negative id. When applied: an id is outside the
            vocabulary.
    """

    def __init__(self, bias: Mapping[int, float], name: str = "logit_bias"):
        if not isinstance(bias, Mapping):
            raise InputError(f"{name} is {bias!r}, expected a mapping of token ids to numbers, such as {{42: -1.5}}.")
        try:
            self.tokens = [int(token) for token in bias]
            values = [float(bias[token]) for token in bias]
        except (TypeError, ValueError):
            raise InputError(f"{name} is {bias!r}, expected a mapping of token ids to numbers.") from None
        if any(math.isnan(value) for value in values):
            raise InputError(f"{name} holds NaN, expected numbers. Use -inf to forbid a token.")
        if any(token < 0 for token in self.tokens):
            raise InputError(f"{name} contains the token id {min(self.tokens)}, expected 0 or more.")
        self.name = name
        self._ids, self._values = mx.array(self.tokens, dtype=mx.int32), mx.array(values, dtype=mx.float32)

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        if not self.tokens:
            return scores
        if max(self.tokens) >= scores.shape[-1]:
            raise InputError(
                f"{self.name} contains the token id {max(self.tokens)}, outside the vocabulary of {scores.shape[-1]}."
            )
        return scores.at[:, self._ids].add(self._values)


class SuppressTokens(LogitBias):
    """Forbid tokens."""

    def __init__(self, tokens: Sequence[int] | int, name: str = "suppress_tokens"):
        tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        super().__init__(dict.fromkeys(tokens, -math.inf), name)


class SuppressTokensAtBegin(SuppressTokens):
    """Forbid tokens as the next token of a text with exactly `begin_index` tokens."""

    def __init__(self, tokens: Sequence[int] | int, begin_index: int):
        super().__init__(tokens, "begin_suppress_tokens")
        self.begin_index = begin_index

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return super().__call__(input_ids, scores) if input_ids.shape[1] == self.begin_index else scores


class MinimumLength(SuppressTokens):
    """Forbid ending tokens while a text has fewer than `length` tokens, including the prompt."""

    def __init__(self, length: int, eos_token_ids: Sequence[int]):
        super().__init__(eos_token_ids, "eos_token_id")
        self.length = length

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return super().__call__(input_ids, scores) if input_ids.shape[1] < self.length else scores
