"""Prompt-lookup decoding: draft the tokens that followed the last occurrence of the newest tokens in the text.

This helps when the answer repeats parts of the prompt, as in copying, editing and tool calls. In free text there are no
such occurrences, and no draft. (github.com/apoorvumang/prompt-lookup-decoding, 2023.)
"""

from collections.abc import Sequence
from typing import Any

from ..layers.devices import variants
from .speculation import Gate, Speculation

WORD = 3
"""Length of the n-gram of newest tokens that is searched for in the text."""


class PromptLookup:
    """Proposes the continuation of an earlier occurrence of the newest tokens, as long as it predicts the text.

    Args:
        word: number of newest tokens that must have occurred together.
    """

    def __init__(self, word: int = WORD):
        self.word = word
        self.start([])

    @property
    def confidence(self) -> int:
        """How many of the newest tokens, without a gap, it would have proposed correctly."""
        return self._correct

    def start(self, history: Sequence[int]) -> None:
        """Start a new text with the ids before the first new token."""
        self._seen: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._source: int | None = None  # index in `_seen` of the token that is expected next
        self._correct = 0
        for token in history:
            self.observe(token)

    def observe(self, token: int) -> None:
        """Add the next token of the text, drafted or not."""
        if self._source is not None and self._seen[self._source] == token:
            self._correct += 1
            self._add(token)
            self._source += 1
        else:
            self._correct = 0
            self._add(token)
            self._source = self._find()

    def propose(self, count: int) -> list[int]:
        """Return a draft of at most `count` tokens; a passage that reaches the end of the text is repeated."""
        if self._source is None:
            return []
        passage = self._seen[self._source : self._source + count]
        while len(passage) < count:
            passage = (passage * 2)[:count]
        return passage

    def _add(self, token: int) -> None:
        # an n-gram is only indexed once it has a next token, so that it cannot find itself
        if len(self._seen) >= self.word:
            self._after[tuple(self._seen[-self.word :])] = len(self._seen)
        self._seen.append(token)

    def _find(self) -> int | None:
        if len(self._seen) < self.word:
            return None
        return self._after.get(tuple(self._seen[-self.word :]))


def prompt_lookup(longest: int | None = None, **gate: Any) -> Speculation:
    """Return a `decoding` that drafts from the text itself while that saves time.

    Args:
        longest: maximum number of tokens per draft. Defaults to 16, or to 6 on a CPU, where every token of a pass
            takes time.
        **gate: fields of `Gate`.
    """
    longest = variants().longest_draft if longest is None else longest
    return Speculation(PromptLookup(), longest, Gate(**gate))
