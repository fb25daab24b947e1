"""Constraints as logits processors, for ways of decoding that choose tokens for several rows at once."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..errors import IncompleteOutputError, InputError
from .after_thinking import TokenMatcher
from .processors import LogitsProcessor
from .token_masks import apply_masks


class ConstraintProcessor:
    """Applies the masks of one sequence: its ids (S,) and logits (1, V) → logits (1, V).

    Args:
        matcher: follows the answer. start: ids that come before the answer.
    """

    def __init__(self, matcher: TokenMatcher, start: int):
        self.matcher, self.start = matcher, start
        self.count = 0
        self._over = False

    def __call__(self, ids: mx.array, logits: mx.array) -> mx.array:
        new = ids.shape[0] - self.start - self.count
        if new > 0:
            # a view: an operation on the device would wait for the pass that computes the logits
            for token in np.asarray(ids)[-new:].tolist():
                self.take(token)
        return apply_masks(logits, [self.matcher.mask()])

    def take(self, token: int) -> None:
        """Go on with the next token of the answer; what follows a finished answer is ignored."""
        self._over = self._over or (self.count > 0 and self.matcher.finished)
        if not self._over:
            self.matcher.accept(token)
        self.count += 1


class BatchConstraint(LogitsProcessor):
    """Applies constraints to the rows of a batch: ids (B, S) and scores (B, V) → scores (B, V).

    Args:
        matchers: follow the answers, one per row. start: ids that come before the answers.
    """

    def __init__(self, matchers: Sequence[TokenMatcher], start: int):
        self._matchers, self.start = list(matchers), start
        self._count = 0

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        new = input_ids.shape[1] - self.start - self._count
        if new > 0:
            mx.async_eval(scores)
            self._follow(cast(list[list[int]], input_ids[:, -new:].tolist()))
        return apply_masks(scores, [matcher.mask() for matcher in self._matchers])

    def _follow(self, rows: list[list[int]]) -> None:
        for matcher, tokens in zip(self._matchers, rows, strict=True):
            for token in tokens:
                if matcher.finished:
                    break
                matcher.accept(token)
        self._count += len(rows[0])

    def finish(self, sequences: mx.array, kind: str) -> None:
        """Check that every row of ids (B, S) is complete.

        Raises:
            IncompleteOutputError: the limit of tokens has cut one.
        """
        new = sequences.shape[1] - self.start - self._count
        if new > 0:
            self._follow(cast(list[list[int]], sequences[:, -new:].tolist()))
        if not all(matcher.complete for matcher in self._matchers):
            raise IncompleteOutputError(f"an answer was cut before its {kind} was complete. Raise max_new_tokens")


def per_prompt(value: Any, count: int, name: str) -> list[Any]:
    """Return a constraint for each prompt: one value for all, or a list with one entry, or None, per prompt.

    A list of texts as `choices` is one constraint; a list of lists and None has one entry per prompt.
    """
    is_list = isinstance(value, list | tuple)
    if is_list and name == "choices":
        is_list = not all(isinstance(text, str) for text in value) or not value
        is_list = is_list and all(entry is None or isinstance(entry, list | tuple) for entry in value) and bool(value)
    if not is_list:
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} entries for {count} prompts. Give one for each, or one for all")
    return list(value)
