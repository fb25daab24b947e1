"""Constraints as logits processors, for decoding loops that choose tokens for several rows at once."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..errors import IncompleteOutputError, InputError
from .after_thinking import TokenMatcher
from .processors import LogitsProcessor
from .token_masks import apply_masks


class ConstraintProcessor:
    """Applies a constraint to one sequence: a function of ids (S,) and logits (1, V) that returns logits (1, V).

    Args:
        matcher: tracks the answer.
        start: number of ids before the answer.
    """

    def __init__(self, matcher: TokenMatcher, start: int):
        self.matcher, self.start = matcher, start
        self.count = 0
        self._over = False

    def __call__(self, ids: mx.array, logits: mx.array) -> mx.array:
        new = ids.shape[0] - self.start - self.count
        if new > 0:
            # read through a view: an operation on the device would wait for the pass that computes the logits
            for token in np.asarray(ids)[-new:].tolist():
                self.take(token)
        return apply_masks(logits, [self.matcher.mask()])

    def take(self, token: int) -> None:
        """Add the next token of the answer; tokens after a finished answer are ignored."""
        self._over = self._over or (self.count > 0 and self.matcher.finished)
        if not self._over:
            self.matcher.accept(token)
        self.count += 1


class BatchConstraint(LogitsProcessor):
    """Applies constraints to the rows of a batch: ids (B, S) and scores (B, V) → scores (B, V).

    Args:
        matchers: track the answers, one per row.
        start: number of ids before the answers.
    """

    def __init__(self, matchers: Sequence[TokenMatcher], start: int):
        self._matchers, self.start = list(matchers), start
        self._count = 0

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        new = input_ids.shape[1] - self.start - self._count
        if new > 0:
            mx.async_eval(scores)
            self._accept(cast(list[list[int]], input_ids[:, -new:].tolist()))
        return apply_masks(scores, [matcher.mask() for matcher in self._matchers])

    def _accept(self, rows: list[list[int]]) -> None:
        for matcher, tokens in zip(self._matchers, rows, strict=True):
            for token in tokens:
                if matcher.finished:
                    break
                matcher.accept(token)
        self._count += len(rows[0])

    def finish(self, sequences: mx.array, kind: str) -> None:
        """Check that every row of ids (B, S) is complete.

        Raises:
            IncompleteOutputError: an answer was cut off by the token limit.
        """
        new = sequences.shape[1] - self.start - self._count
        if new > 0:
            self._accept(cast(list[list[int]], sequences[:, -new:].tolist()))
        if not all(matcher.complete for matcher in self._matchers):
            raise IncompleteOutputError(f"an answer was cut before its {kind} was complete. Increase max_new_tokens.")


def per_prompt(value: Any, count: int, name: str) -> list[Any]:
    """Return one constraint per prompt from one value for all, or from a list with one entry or None per prompt.

    For `choices`, a list of texts is one constraint; a list of lists and None has one entry per prompt.

    Raises:
        InputError: the list has another length than the prompts.
    """
    is_list = isinstance(value, list | tuple)
    if is_list and name == "choices":
        is_list = not all(isinstance(text, str) for text in value) or not value
        is_list = is_list and all(entry is None or isinstance(entry, list | tuple) for entry in value) and bool(value)
    if not is_list:
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} entries for {count} prompts. Pass one per prompt, or one for all.")
    return list(value)
