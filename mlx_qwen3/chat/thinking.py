"""Streamed text → reasoning parts and answer parts."""

from dataclasses import dataclass
from typing import Literal

from .modes import CLOSE, OPEN

Kind = Literal["reasoning", "answer"]


@dataclass(frozen=True)
class Piece:
    """A piece of text and what it belongs to."""

    kind: Kind
    text: str


class ThinkingParser:
    """Splits a text at its first <think> … </think>. The tags and the empty lines around them are left out.

    Args:
        inside: the prompt has already opened the reasoning.
    """

    def __init__(self, inside: bool = False):
        self.kind: Kind | None = "reasoning" if inside else None
        self._held = ""
        self._bare = True  # nothing of the current kind has come out yet

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self.kind == "reasoning"

    def feed(self, text: str) -> list[Piece]:
        """Return the next piece of the stream → what can be shown now."""
        self._held += text
        pieces: list[Piece] = []
        if self.kind is None:
            start = self._held.lstrip()
            if OPEN.startswith(start) and start != OPEN:
                return pieces
            self.kind = "answer"
            if start.startswith(OPEN):
                self.kind, self._held = "reasoning", start[len(OPEN) :]
        if self.kind == "reasoning":
            before, tag, after = self._held.partition(CLOSE)
            if not tag:
                return self._out(pieces, len(self._held) - _tail(self._held))
            self._held = before.rstrip("\n")
            self._out(pieces, len(self._held))
            self.kind, self._held, self._bare = "answer", after, True
        return self._out(pieces, len(self._held))

    def flush(self) -> list[Piece]:
        """Return the text held back at the end of the stream."""
        if self.kind is None:
            self.kind = "answer"
        return self._out([], len(self._held))

    def _out(self, pieces: list[Piece], size: int) -> list[Piece]:
        text, self._held = self._held[:size], self._held[size:]
        if self._bare:
            text = text.lstrip("\n")
        if text:
            self._bare = False
            assert self.kind is not None
            pieces.append(Piece(self.kind, text))
        return pieces


def _tail(text: str) -> int:
    """Return how much of the end may yet turn out to be newlines and the closing tag."""
    size = next((n for n in range(min(len(text), len(CLOSE) - 1), 0, -1) if text.endswith(CLOSE[:n])), 0)
    body = text[: len(text) - size]
    return size + len(body) - len(body.rstrip("\n"))
