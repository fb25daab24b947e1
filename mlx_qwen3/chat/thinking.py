"""Split streamed text into reasoning and answer."""

from dataclasses import dataclass
from typing import Literal

from .modes import CLOSE, OPEN

Kind = Literal["reasoning", "answer"]


@dataclass(frozen=True)
class Piece:
    """A piece of text and its kind."""

    kind: Kind
    text: str


class ThinkingParser:
    """Split a text at its first <think> … </think>, without the tags and the empty lines around them.

    Args:
        inside: whether the prompt already contains the opening tag.
    """

    def __init__(self, inside: bool = False):
        self.kind: Kind | None = "reasoning" if inside else None
        self._pending = ""
        self._at_start = True  # no text of the current kind was emitted yet

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self.kind == "reasoning"

    def feed(self, text: str) -> list[Piece]:
        """Add the next piece of the stream; return the pieces that can be shown now."""
        self._pending += text
        pieces: list[Piece] = []
        if self.kind is None:
            start = self._pending.lstrip()
            if OPEN.startswith(start) and start != OPEN:
                return pieces
            self.kind = "answer"
            if start.startswith(OPEN):
                self.kind, self._pending = "reasoning", start[len(OPEN) :]
        if self.kind == "reasoning":
            before, tag, after = self._pending.partition(CLOSE)
            if not tag:
                return self._emit(pieces, len(self._pending) - _count_pending(self._pending))
            self._pending = before.rstrip("\n")
            self._emit(pieces, len(self._pending))
            self.kind, self._pending, self._at_start = "answer", after, True
        return self._emit(pieces, len(self._pending))

    def flush(self) -> list[Piece]:
        """Return the remaining text at the end of the stream."""
        if self.kind is None:
            self.kind = "answer"
        return self._emit([], len(self._pending))

    def _emit(self, pieces: list[Piece], size: int) -> list[Piece]:
        text, self._pending = self._pending[:size], self._pending[size:]
        if self._at_start:
            text = text.lstrip("\n")
        if text:
            self._at_start = False
            assert self.kind is not None
            pieces.append(Piece(self.kind, text))
        return pieces


def _count_pending(text: str) -> int:
    """Return the number of characters at the end that may belong to newlines and a closing tag."""
    size = next((n for n in range(min(len(text), len(CLOSE) - 1), 0, -1) if text.endswith(CLOSE[:n])), 0)
    body = text[: len(text) - size]
    return size + len(body) - len(body.rstrip("\n"))
