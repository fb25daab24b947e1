"""Stopping criteria besides ending tokens and lengths: stop strings, time limits and user-defined criteria.

A criterion is a function of ids (B, S), including the prompt, and the scores so far (a tuple of (B, V), or None if they
are not kept). It returns one boolean, or one per row (B,), true if the row is finished. `stream_generate` and
`batch_generate` call it per sequence, with B = 1.

Source: transformers 5.23 `generation/stopping_criteria.py`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .checks import check_number, refuse_torch

Criterion = Callable[..., Any]


class StoppingCriteria:
    """Base class of stopping criteria; see the module docstring."""

    def __call__(self, input_ids: mx.array, scores: Any = None, **options: Any) -> Any:
        """Return which rows of ids (B, S) are finished: one boolean, or one per row (B,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class StoppingCriteriaList(list[Any]):
    """A list of criteria; a row is finished as soon as one of them says that it is."""

    def __call__(self, input_ids: mx.array, scores: Any = None, **options: Any) -> np.ndarray:
        """Return which rows (B,) are finished according to any criterion."""
        finished = np.zeros(input_ids.shape[0], dtype=bool)
        for criterion in self:
            finished |= rows_of(criterion(input_ids, scores, **options), input_ids.shape[0])
        return finished


class MaxTime(StoppingCriteria):
    """Finish all rows once `seconds` have passed since the criterion was created."""

    def __init__(self, seconds: float):
        check_number("max_time", seconds, above=0)
        self.deadline = time.monotonic() + seconds

    def __call__(self, input_ids: mx.array, scores: Any = None, **options: Any) -> bool:
        return self.passed

    @property
    def passed(self) -> bool:
        """Whether the time limit has been reached."""
        return time.monotonic() > self.deadline


class EndsWithStopString(StoppingCriteria):
    """Finish rows whose newest token completes one of the strings; a string may begin in the prompt."""

    def __init__(self, strings: Sequence[str], tokenizer: Any):
        self.strings, self.tokenizer = list(strings), tokenizer
        # a token has at least one byte, so this many tokens cover the longest string
        self._window = max(len(text.encode()) for text in self.strings) + 1

    def __call__(self, input_ids: mx.array, scores: Any = None, **options: Any) -> np.ndarray:
        rows = np.asarray(input_ids[:, -self._window :]).tolist()
        texts = zip(
            self.tokenizer.batch_decode([row[:-1] for row in rows]), self.tokenizer.batch_decode(rows), strict=True
        )
        return np.array([self._completes(before.rstrip("\ufffd"), text) for before, text in texts])

    def _completes(self, before: str, text: str) -> bool:
        return any(text.find(stop, max(0, len(before) - len(stop) + 1)) >= 0 for stop in self.strings)


def rows_of(finished: Any, rows: int) -> np.ndarray:
    """Convert the result of a criterion to one boolean per row (B,)."""
    values = np.asarray(finished).reshape(-1).astype(bool)
    if values.size not in (1, rows):
        raise InputError(f"a stopping criterion returned {values.size} values for {rows} rows. Return one per row.")
    return np.broadcast_to(values, (rows,))


def list_criteria(criteria: Any) -> list[Criterion]:
    """Return a list of criteria from None, one criterion or several.

    Raises:
        InputError: a criterion is not callable.
    """
    if criteria is None:
        return []
    found = list(criteria) if isinstance(criteria, Iterable) else [criteria]
    for criterion in found:
        refuse_torch(criterion, "stopping_criteria")
        if not callable(criterion):
            raise InputError(f"a stopping criterion is {criterion!r}, expected a function of ids and scores.")
    return found


def list_stop_strings(strings: Any, name: str = "stop") -> list[str]:
    """Return a list of stop strings from None, one string or several.

    Raises:
        InputError: a string is empty, or the value is neither a string nor a list of strings.
    """
    found = [strings] if isinstance(strings, str) else strings
    if found is None:
        return []
    if not isinstance(found, list | tuple) or any(not isinstance(text, str) or not text for text in found):
        raise InputError(f"{name} is {strings!r}, expected a text or a list of texts that are not empty.")
    return list(found)
