"""Drafts from a smaller model with the same vocabulary."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from ..errors import InputError
from .context import new_cache
from .decoding import HasInferencePath
from .speculation import Gate, Speculation

DRAFT_TOKENS = 4
"""Tokens that the small model drafts before the large one verifies them."""


class DraftModel:
    """Propose the greedy tokens of a small model.

    Args:
        model: a causal model. vocab_size: of the large model; they must agree.

    Raises:
        InputError: another vocabulary.
    """

    def __init__(self, model: Any, vocab_size: int | None = None):
        if vocab_size is not None and model.config.vocab_size != vocab_size:
            raise InputError(
                f"the draft model has {model.config.vocab_size} tokens in its vocabulary, the model {vocab_size}. "
                "Take a smaller model of the same family"
            )
        self.model: Any = model
        self.start([])

    @property
    def confidence(self) -> int:
        """As high as it gets: only the gate can tell whether the small model is worth its time."""
        return 1 << 30

    def start(self, history: Sequence[int]) -> None:
        """The ids before the first token."""
        model = self.model
        self._path: Any = model.for_inference() if isinstance(model, HasInferencePath) else model
        self._cache = new_cache(self.model.config)
        self._seen = list(history)
        self._cached: list[int] = []  # ids of the tokens in the cache

    def observe(self, token: int) -> None:
        """The next token."""
        self._seen.append(token)

    def propose(self, count: int) -> list[int]:
        """At most `count` tokens, one pass of the small model each."""
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
        """Remove from the cache what is not in the text, and the newest token, whose logits are needed again."""
        same = 0
        for held, seen in zip(self._cached, self._seen[:-1], strict=False):
            if held != seen:
                break
            same += 1
        kept = self._cache.rewind(same)
        self._cached = self._seen[:kept]


def draft_with(model: Any, target: Any, count: int = DRAFT_TOKENS) -> Speculation:
    """Return the `decoding` in which `model` drafts `count` tokens at a time for `target`."""
    return Speculation(DraftModel(model, target.config.vocab_size), count, Gate(patience=1))
