"""Drafts from the text itself: what followed the last time that the newest tokens occurred.

Copying, editing and tool calls repeat what the prompt holds; free text does not, and then nothing is proposed.
(Prompt lookup decoding: github.com/apoorvumang/prompt-lookup-decoding, 2023.)
"""

from collections.abc import Sequence
from typing import Any

from ..layers.devices import variants
from .speculation import Gate, Speculation

WORD = 3
"""Tokens that must have occurred before, in a row, to propose what comes after them."""


class PromptLookup:
    """Propose that the text continues as it did before, from one passage for as long as that is right.

    word: how many of the newest tokens must have occurred together.
    """

    def __init__(self, word: int = WORD):
        self.word = word
        self.start([])

    @property
    def confidence(self) -> int:
        """How many of the newest tokens, in a row, it would have proposed."""
        return self._right

    def start(self, history: Sequence[int]) -> None:
        """The ids before the first token."""
        self._seen: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._source: int | None = None  # where in `_seen` the next token is expected
        self._right = 0
        for token in history:
            self.observe(token)

    def observe(self, token: int) -> None:
        """The next token."""
        if self._source is not None and self._seen[self._source] == token:
            self._right += 1
            self._add(token)
            self._source += 1
        else:
            self._right = 0
            self._add(token)
            self._source = self._find()

    def propose(self, count: int) -> list[int]:
        """Return at most `count` tokens; where the passage reaches its own copy, it is repeated."""
        if self._source is None:
            return []
        passage = self._seen[self._source : self._source + count]
        while len(passage) < count:
            passage = (passage * 2)[:count]
        return passage

    def _add(self, token: int) -> None:
        # the word before this token is remembered when it has a next token: it must not find itself
        if len(self._seen) >= self.word:
            self._after[tuple(self._seen[-self.word :])] = len(self._seen)
        self._seen.append(token)

    def _find(self) -> int | None:
        if len(self._seen) < self.word:
            return None
        return self._after.get(tuple(self._seen[-self.word :]))


def prompt_lookup(longest: int | None = None, **gate: Any) -> Speculation:
    """Return the `decoding` that drafts from the text itself, wherever that pays.

    Args:
        longest: tokens proposed at once, at most; by default 16, and 6 on a CPU, where each of them costs.
        **gate: the fields of `Gate`.
    """
    longest = variants().longest_draft if longest is None else longest
    return Speculation(PromptLookup(), longest, Gate(**gate))
