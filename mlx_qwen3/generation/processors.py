"""What changes scores before a token is chosen: penalties, biases, a minimum length.

A processor takes the ids so far (B, S) and float32 scores (B, V) and returns scores (B, V), as in the reference.
Sources: transformers 5.23 `generation/logits_process.py`; presence and frequency as the OpenAI API defines them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError

Processor = Callable[[mx.array, mx.array], mx.array]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides positive and multiplies negative scores of tokens that occur already, prompt included.

    context_size: look only at this many of the newest tokens; None for all.
    padding: (B,) how many first tokens of a row are padding and do not occur; None for none.
    """

    penalty: float
    context_size: int | None = None
    padding: mx.array | None = None

    def __post_init__(self) -> None:
        if not 0 < self.penalty < math.inf:
            raise InputError(f"repetition_penalty is {self.penalty!r}, expected a number above 0 (1 for none)")

    def __call__(self, ids: mx.array, scores: mx.array) -> mx.array:
        size = scores.shape[-1]
        if self.padding is not None:  # what does not occur counts as a token beyond the vocabulary
            ids = mx.where(mx.arange(ids.shape[1]) < self.padding[:, None], size, ids)
            scores = mx.pad(scores, [(0, 0), (0, 1)])
        seen = ids if self.context_size is None else ids[:, -self.context_size :]
        found = mx.take_along_axis(scores, seen, axis=-1)
        found = mx.where(found < 0, found * self.penalty, found / self.penalty)
        return mx.put_along_axis(scores, seen, found, axis=-1)[:, :size]


@dataclass(frozen=True)
class PresencePenalty:
    """Takes `presence` off a token that was generated already, and `frequency` for each time that it was.

    prompt_length: tokens that do not count, since they were given and not generated.
    """

    presence: float
    frequency: float
    prompt_length: int

    def __post_init__(self) -> None:
        for name, value in (("presence_penalty", self.presence), ("frequency_penalty", self.frequency)):
            if not math.isfinite(value):
                raise InputError(f"{name} is {value!r}, expected a finite number (0 for none)")

    def __call__(self, ids: mx.array, scores: mx.array) -> mx.array:
        made = ids[:, self.prompt_length :]
        if not made.shape[1]:
            return scores
        rows = mx.broadcast_to(mx.arange(made.shape[0])[:, None], made.shape)
        counts = mx.zeros_like(scores).at[rows, made].add(1.0)
        return scores - self.frequency * counts - self.presence * (counts > 0)


class LogitBias:
    """Adds a number to the scores of chosen tokens; −inf forbids one."""

    def __init__(self, bias: Mapping[int, float]):
        self.tokens = [int(token) for token in bias]
        self.values = mx.array([float(bias[token]) for token in bias])
        if any(token < 0 for token in self.tokens):
            raise InputError(f"logit_bias names the token id {min(self.tokens)}, expected 0 or more")

    def __call__(self, ids: mx.array, scores: mx.array) -> mx.array:
        if max(self.tokens) >= scores.shape[-1]:
            raise InputError(
                f"logit_bias names the token id {max(self.tokens)}, outside the vocabulary of {scores.shape[-1]}"
            )
        return scores.at[:, mx.array(self.tokens)].add(self.values)


class MinimumLength:
    """Forbids the tokens that end a text while it is shorter than `length` tokens, prompt included."""

    def __init__(self, length: int, eos_token_ids: Sequence[int]):
        self.length = length
        self._forbid = LogitBias(dict.fromkeys(eos_token_ids, -math.inf))

    def __call__(self, ids: mx.array, scores: mx.array) -> mx.array:
        return self._forbid(ids, scores) if ids.shape[1] < self.length else scores


def make_processors(
    prompt_length: int,
    *,
    repetition_penalty: float | None = None,
    repetition_context_size: int | None = None,
    padding: mx.array | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    minimum_length: int = 0,
    eos_token_ids: Sequence[int] = (),
    suppress_tokens: Sequence[int] | int | None = None,
) -> list[Processor]:
    """The processors that have something to do, in the reference's order; `padding` as in `RepetitionPenalty`."""
    chosen: list[Processor] = []
    if logit_bias:
        chosen.append(LogitBias(logit_bias))
    if repetition_penalty is not None and repetition_penalty != 1:
        chosen.append(RepetitionPenalty(repetition_penalty, repetition_context_size, padding))
    if presence_penalty or frequency_penalty:
        chosen.append(PresencePenalty(presence_penalty or 0.0, frequency_penalty or 0.0, prompt_length))
    if minimum_length > prompt_length and eos_token_ids:
        chosen.append(MinimumLength(minimum_length, eos_token_ids))
    if suppress_tokens is not None:
        tokens = [suppress_tokens] if isinstance(suppress_tokens, int) else list(suppress_tokens)
        if tokens:
            chosen.append(LogitBias(dict.fromkeys(tokens, -math.inf)))
    return chosen
