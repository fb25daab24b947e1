"""Logits processors that depend on sequences of tokens: n-grams, bad words, forced and allowed tokens, lengths.

Source: transformers 5.23 `generation/logits_process.py`. Protocol: see `processors.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..config.fields import shown
from ..errors import InputError
from .checks import check_number, check_whole_number, plain
from .processors import LogitsProcessor

AllowedTokens = Callable[[int, mx.array], Sequence[int]]
"""Function of a row's index and ids (S,) that returns the allowed next ids."""


class NoRepeatNGram(LogitsProcessor):
    """Forbid tokens that would repeat an n-gram of the text, including the prompt.

    Raises:
        InputError: `size` is not a whole number of at least 1.
    """

    def __init__(self, size: int):
        check_whole_number("no_repeat_ngram_size", size, least=1)
        self.size = size

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        size = self.size
        bias = np.zeros(scores.shape, dtype=np.float32)
        for row, ids in enumerate(cast(list[list[int]], input_ids.tolist())):
            if len(ids) + 1 < size:
                continue
            start = ids[len(ids) + 1 - size :]
            for first in range(len(ids) - size + 1):
                if ids[first : first + size - 1] == start:
                    bias[row, ids[first + size - 1]] = -math.inf
        return scores + mx.array(bias)


class SequenceBias(LogitsProcessor):
    """Add a number to the score of tokens that would complete a sequence.

    Args:
        bias: a mapping of tuples of ids to numbers, or a list of pairs [[ids], number].
        name: name of the user's argument, for error messages.

    Raises:
        InputError: `bias` has another format, or contains NaN or a negative id. When applied: an id is outside the
            vocabulary.
    """

    def __init__(self, bias: Any, name: str = "sequence_bias"):
        pairs = list(bias.items()) if isinstance(bias, Mapping) else bias
        try:
            found = {tuple(int(token) for token in ids): float(value) for ids, value in pairs}
        except (TypeError, ValueError):
            found = {}
        if not found or any(not ids or min(ids) < 0 for ids in found) or any(map(math.isnan, found.values())):
            raise InputError(
                f"{name} is {bias!r}, expected a mapping of token id sequences to numbers, such as {{(5, 9): -2.0}}."
            )
        self.bias, self.name = found, name

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        largest = max(max(ids) for ids in self.bias)
        if largest >= scores.shape[-1]:
            raise InputError(
                f"{self.name} contains the token id {largest}, outside the vocabulary of {scores.shape[-1]}."
            )
        bias = np.zeros(scores.shape, dtype=np.float32)
        longest = max(len(ids) for ids in self.bias) - 1
        newest = np.asarray(input_ids[:, -longest:] if longest else input_ids[:, :0])
        for ids, value in self.bias.items():
            before = len(ids) - 1
            if before > newest.shape[1]:
                continue
            rows = (newest[:, newest.shape[1] - before :] == np.array(ids[:-1], dtype=np.int64)).all(axis=1)
            bias[rows, ids[-1]] += value
        return scores + mx.array(bias)


class NoBadWords(SequenceBias):
    """Forbid sequences of tokens, except for sequences that consist of one ending token.

    Raises:
        InputError: `bad_words_ids` is not a list of lists of token ids, or one of them is empty.
    """

    def __init__(self, bad_words_ids: Sequence[Sequence[int]], eos_token_ids: Sequence[int] = ()):
        good = isinstance(bad_words_ids, list | tuple) and all(
            isinstance(ids, list | tuple) and ids for ids in bad_words_ids
        )
        if not good or not bad_words_ids:
            raise InputError(
                f"bad_words_ids is {bad_words_ids!r}, expected a list of lists of token ids, none of them empty."
            )
        kept = [ids for ids in bad_words_ids if list(ids) not in [[eos] for eos in eos_token_ids]]
        self.empty = not kept
        super().__init__({tuple(ids): -math.inf for ids in kept or bad_words_ids}, "bad_words_ids")

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return scores if self.empty else super().__call__(input_ids, scores)


class AllowedPrefixes(LogitsProcessor):
    """Allow only the tokens that `prefix_allowed_tokens_fn(row, ids)` returns.

    Args:
        first_row: index of the first row of the ids that the processor is called with.

    Raises:
        InputError: `function` is not callable. When applied: it returns no token id or an invalid one.
    """

    def __init__(self, function: AllowedTokens, first_row: int = 0):
        if not callable(function):
            raise InputError(
                f"prefix_allowed_tokens_fn is {function!r}, expected a function of a row index and its ids."
            )
        self.function, self.first_row = function, first_row

    def for_row(self, row: int) -> "AllowedPrefixes":
        return AllowedPrefixes(self.function, row)

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        mask = np.full(scores.shape, -math.inf, dtype=np.float32)
        for row in range(scores.shape[0]):
            number = self.first_row + row
            found = plain(self.function(number, input_ids[row]))
            if not isinstance(found, list | tuple) or not all(isinstance(token, int) for token in map(plain, found)):
                raise InputError(f"prefix_allowed_tokens_fn returned {shown(found)}, expected a list of token ids.")
            allowed = [int(token) for token in found]
            if not allowed or min(allowed) < 0 or max(allowed) >= scores.shape[-1]:
                raise InputError(
                    f"prefix_allowed_tokens_fn returned {allowed} for row {number}, expected at least one token id "
                    f"from 0 to {scores.shape[-1] - 1}."
                )
            mask[row, allowed] = 0
        masked, zeros = scores + mx.array(mask), mx.array(mask)
        # if other processors have forbidden all allowed tokens, this restriction takes precedence
        return mx.where(mx.max(masked, axis=-1, keepdims=True) == -math.inf, zeros, masked)


class ForcedToken(LogitsProcessor):
    """Allow only some tokens as the next token of a text with exactly `length` tokens.

    Raises:
        InputError: `tokens` is empty. When applied: an id is outside the vocabulary.
    """

    def __init__(self, tokens: Sequence[int] | int, length: int, name: str):
        self.tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        if not self.tokens:
            raise InputError(f"{name} is an empty list, expected a token id or a list of them.")
        self.length, self.name = length, name

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        if input_ids.shape[1] != self.length:
            return scores
        if min(self.tokens) < 0 or max(self.tokens) >= scores.shape[-1]:
            raise InputError(f"{self.name} is {self.tokens}, outside the vocabulary of {scores.shape[-1]}.")
        forced = np.full(scores.shape, -math.inf, dtype=np.float32)
        forced[:, self.tokens] = 0
        return mx.array(forced)


class ExponentialLengthPenalty(LogitsProcessor):
    """Increase the scores of ending tokens by |score| · (factor^n − 1), n tokens after `start` generated ones.

    Args:
        settings: (start, factor).

    Raises:
        InputError: `settings` has another format, or there are no ending tokens.
    """

    def __init__(self, settings: Sequence[float], eos_token_ids: Sequence[int], prompt_length: int):
        name = "exponential_decay_length_penalty"
        if not isinstance(settings, list | tuple) or len(settings) != 2:
            raise InputError(f"{name} is {settings!r}, expected (start, factor).")
        check_whole_number(name, settings[0])
        check_number(name, settings[1])
        if not eos_token_ids:
            raise InputError(f"{name} increases the scores of ending tokens and there are none. Pass eos_token_id.")
        self.start, self.factor = int(settings[0]) + prompt_length, float(settings[1])
        self._eos = mx.array(list(eos_token_ids), dtype=mx.int32)

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        count = input_ids.shape[1] - self.start
        if count <= 0:
            return scores
        own = scores[:, self._eos]
        raised = mx.abs(own) * (self.factor**count - 1)
        return scores.at[:, self._eos].add(mx.where(mx.isfinite(own), raised, 0.0))


class RemoveInvalidValues(LogitsProcessor):
    """Replace NaN by 0, and infinities by the largest and smallest float32 numbers."""

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        largest = float(np.finfo(np.float32).max)
        return mx.clip(mx.where(mx.isnan(scores), 0.0, scores), -largest, largest)
