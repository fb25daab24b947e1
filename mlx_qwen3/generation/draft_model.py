"""Speculative decoding with a smaller draft model that has the same vocabulary."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from ..errors import InputError
from .context import new_cache
from .decoding import HasInferencePath
from .speculation import Gate, Speculation

DRAFT_TOKENS = 4
"""Default number of tokens that the draft model proposes before the large model verifies them."""


class DraftModel:
    """Proposes the greedy tokens of a small model.

    Args:
        model: a causal model.
        vocab_size: vocabulary size of the large model, which must be the same.

    Raises:
        InputError: the vocabulary sizes differ.
    """

    def __init__(self, model: Any, vocab_size: int | None = None):
        if vocab_size is not None and model.config.vocab_size != vocab_size:
            raise InputError(
                f"the draft model has {model.config.vocab_size} tokens in its vocabulary, the model {vocab_size}. "
                "Use a smaller model of the same family."
            )
        self.model: Any = model
        self.start([])

    @property
    def confidence(self) -> int:
        """Always the maximum: only the gate can decide whether the draft model saves time."""
        return 1 << 30

    def start(self, history: Sequence[int]) -> None:
        """Start a new text with the ids before the first new token."""
        model = self.model
        self._path: Any = model.for_inference() if isinstance(model, HasInferencePath) else model
        self._cache = new_cache(self.model.config)
        self._seen = list(history)
        self._cached: list[int] = []  # ids of the tokens in the cache

    def observe(self, token: int) -> None:
        """Add the next token of the text, drafted or not."""
        self._seen.append(token)

    def propose(self, count: int) -> list[int]:
        """Return a draft of at most `count` tokens, with one pass of the draft model per token."""
        if count < 1 or not self._seen:
            return []
        self._rewind()
        new = self._seen[len(self._cached) :]
        token = self._next(mx.array([new]))
        drafted = [token]
        for _ in range(count - 1):
            token = self._next(token[None])
            drafted.append(token)
        found = cast(list[int], mx.concatenate(drafted).tolist())
        self._cached = [*self._seen, *found[:-1]]
        return found

    def _next(self, ids: mx.array) -> mx.array:
        return mx.argmax(self._path.step_logits(ids, self._cache)[:, -1], axis=-1)

    def _rewind(self) -> None:
        """Remove rejected tokens from the cache, and the newest token, whose logits are needed again."""
        same = 0
        for held, seen in zip(self._cached, self._seen[:-1], strict=False):
            if held != seen:
                break
            same += 1
        kept = self._cache.rewind(same)
        self._cached = self._seen[:kept]


def draft_with(model: Any, target: Any, count: int = DRAFT_TOKENS) -> Speculation:
    """Return a `decoding` in which `model` drafts `count` tokens at a time for `target`.

    Raises:
        InputError: the vocabulary sizes differ.
    """
    return Speculation(DraftModel(model, target.config.vocab_size), count, Gate(patience=1))
