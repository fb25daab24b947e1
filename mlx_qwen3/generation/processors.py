"""Logits processors: the protocol, and the penalties and biases on single tokens.

How a processor is called. Once for every token that is to be chosen, with every id so far, the prompt's included, and
the float32 logits of the next position; it returns logits of the same shape and changes neither argument.

- `LogitsProcessor`, the form of transformers: ids (B, S) and scores (B, V). Every processor of this package has it.
- A plain function given to `stream_generate`, `generate_step` or `batch_generate` has the form of mlx_lm: the ids of
  one sequence (S,) and its logits (1, V). A plain function given to `model.generate` has the form of transformers.

In a batch each sequence has processors of its own and sees only its own ids, without padding; a processor with state
offers `for_row(row)`, which returns the one for the sequence with that index. `model.generate` alone calls its
processors with all rows and their padding, as the reference does.

How a rollback works. Speculative decoding calls a processor for drafted tokens that may be rejected afterwards, and a
token is chosen before the one before it has been read. The ids of each call are the truth: a processor with state
remembers how many ids it has consumed, and when it is called with fewer, or with others, it goes back to the common
beginning. There is no other notice.

Sources: transformers 5.23 `generation/logits_process.py`; presence and frequency as the OpenAI API defines them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..errors import InputError
from .checks import check_number, type_name

RowProcessor = Callable[[mx.array, mx.array], mx.array]
"""The ids of one sequence (S,) and its logits (1, V) → logits (1, V)."""


class LogitsProcessor:
    """Changes scores before a token is chosen: ids (B, S) and float32 scores (B, V) → scores (B, V)."""

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        """Return the changed scores."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def for_row(self, row: int) -> "LogitsProcessor":
        """Return the processor for the sequence with this index in a batch; a processor with state returns a copy."""
        return self


class LogitsProcessorList(list[Any]):
    """Processors that are applied one after the other; itself a processor of the transformers form."""

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        """Return the scores after all processors."""
        return apply_processors(self, input_ids, scores)


def processor_list(processors: Any, name: str) -> list[Any]:
    """Return the processors of a call: none, one, or several; a `LogitsProcessorList` stays one, of its own form.

    Raises:
        InputError: something that cannot be called.
    """
    if processors is None:
        return []
    several = isinstance(processors, Sequence) and not isinstance(processors, LogitsProcessorList)
    found: list[Any] = list(processors) if several else [processors]
    for process in processors if isinstance(processors, Sequence) else found:
        if not callable(process):
            raise InputError(f"{name} holds {type_name(process)}, expected functions of token ids and scores")
    return found


def apply_processors(processors: Iterable[Any], ids: mx.array, scores: mx.array) -> mx.array:
    """Return the scores after all processors, each called with the ids.

    Raises:
        InputError: a processor returns something else than scores of the same shape.
    """
    for process in processors:
        found = process(ids, scores)
        if not isinstance(found, mx.array) or found.shape != scores.shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, mx.array) else type_name(found)
            raise InputError(f"a logits processor returned {what}, expected scores of shape {tuple(scores.shape)}")
        scores = found
    return scores


def row_processors(processors: Iterable[Any], row: int = 0) -> list[RowProcessor]:
    """Return processors of either form for one sequence, as functions of its ids (S,) and logits (1, V)."""
    found: list[RowProcessor] = []
    for given in processors:
        if isinstance(given, LogitsProcessorList):
            found.extend(row_processors([_BatchForm(process) for process in given], row))
            continue
        if not callable(given):
            raise InputError(f"a logits processor is {given!r}, expected a function of token ids and logits")
        for_row: Any = getattr(given, "for_row", None)
        process: Any = given if for_row is None else for_row(row)
        found.append(_on_one_row(process) if isinstance(process, LogitsProcessor) else process)
    return found


class _BatchForm(LogitsProcessor):
    """A function that is known to have the transformers form."""

    def __init__(self, process: Any):
        self.process = process

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return self.process(input_ids, scores)

    def for_row(self, row: int) -> LogitsProcessor:
        return _BatchForm(self.process.for_row(row)) if hasattr(self.process, "for_row") else self


def _on_one_row(process: LogitsProcessor) -> RowProcessor:
    return lambda tokens, logits: process(tokens[None], logits)


class RepetitionPenalty(LogitsProcessor):
    """Divide positive and multiply negative scores of tokens that occur already, prompt included.

    Args:
        penalty: above 0; 1 changes nothing.
        context_size: look only at this many of the newest tokens; None for all.
        padding: (B,) how many first tokens of a row are padding and do not occur; None for none.
    """

    def __init__(self, penalty: float, context_size: int | None = None, padding: mx.array | None = None):
        check_number("repetition_penalty", penalty, above=0, hint="1 for none")
        self.penalty, self.context_size, self.padding = float(penalty), context_size, padding

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        size = scores.shape[-1]
        if self.padding is not None:  # padding counts as a token beyond the vocabulary
            input_ids = mx.where(mx.arange(input_ids.shape[1]) < self.padding[:, None], size, input_ids)
            scores = mx.pad(scores, [(0, 0), (0, 1)])
        seen = input_ids if self.context_size is None else input_ids[:, -self.context_size :]
        found = mx.take_along_axis(scores, seen, axis=-1)
        found = mx.where(found < 0, found * self.penalty, found / self.penalty)
        return mx.put_along_axis(scores, seen, found, axis=-1)[:, :size]


class PresencePenalty(LogitsProcessor):
    """Subtract `presence` from a token that was generated already, and `frequency` for each time that it was.

    prompt_length: first tokens that do not count, since they were given and not generated.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int):
        check_number("presence_penalty", presence, hint="0 for none")
        check_number("frequency_penalty", frequency, hint="0 for none")
        self.presence, self.frequency, self.prompt_length = float(presence), float(frequency), prompt_length

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        made = input_ids[:, self.prompt_length :]
        if not made.shape[1]:
            return scores
        rows = mx.broadcast_to(mx.arange(made.shape[0])[:, None], made.shape)
        counts = mx.zeros_like(scores).at[rows, made].add(1.0)
        return scores - self.frequency * counts - self.presence * (counts > 0)


class LogitBias(LogitsProcessor):
    """Add a number to the scores of chosen tokens; −inf forbids one.

    name: the argument that asked for it, for messages.
    """

    def __init__(self, bias: Mapping[int, float], name: str = "logit_bias"):
        if not isinstance(bias, Mapping):
            raise InputError(f"{name} is {bias!r}, expected a mapping of token ids to numbers, such as {{42: -1.5}}")
        try:
            self.tokens = [int(token) for token in bias]
            values = [float(bias[token]) for token in bias]
        except (TypeError, ValueError):
            raise InputError(f"{name} is {bias!r}, expected a mapping of token ids to numbers") from None
        if any(math.isnan(value) for value in values):
            raise InputError(f"{name} holds NaN, expected numbers; -inf forbids a token")
        if any(token < 0 for token in self.tokens):
            raise InputError(f"{name} names the token id {min(self.tokens)}, expected 0 or more")
        self.name = name
        self._ids, self._values = mx.array(self.tokens, dtype=mx.int32), mx.array(values, dtype=mx.float32)

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        if not self.tokens:
            return scores
        if max(self.tokens) >= scores.shape[-1]:
            raise InputError(
                f"{self.name} names the token id {max(self.tokens)}, outside the vocabulary of {scores.shape[-1]}"
            )
        return scores.at[:, self._ids].add(self._values)


class SuppressTokens(LogitBias):
    """Forbid tokens."""

    def __init__(self, tokens: Sequence[int] | int, name: str = "suppress_tokens"):
        tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        super().__init__(dict.fromkeys(tokens, -math.inf), name)


class SuppressTokensAtBegin(SuppressTokens):
    """Forbid tokens at the one position where a text has `begin_index` tokens."""

    def __init__(self, tokens: Sequence[int] | int, begin_index: int):
        super().__init__(tokens, "begin_suppress_tokens")
        self.begin_index = begin_index

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return super().__call__(input_ids, scores) if input_ids.shape[1] == self.begin_index else scores


class MinimumLength(SuppressTokens):
    """Forbid the tokens that end a text while it is shorter than `length` tokens, prompt included."""

    def __init__(self, length: int, eos_token_ids: Sequence[int]):
        super().__init__(eos_token_ids, "eos_token_id")
        self.length = length

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return super().__call__(input_ids, scores) if input_ids.shape[1] < self.length else scores
