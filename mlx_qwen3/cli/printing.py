"""Answers on the screen as they come, and the numbers after them."""

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

VISIBLE = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What a model writes must not steer the terminal: control characters are shown as U+FFFD."""


def styled(stream: TextIO) -> bool:
    """Whether a stream is a terminal that may get colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class AnswerPrinter:
    """Writes the parts of one answer.

    Args:
        thinking: "dim", "show", "hide" or "off". Where a stream takes no style, "dim" is "show": thoughts stand
            between <think> and </think>.
    """

    def __init__(self, thinking: str, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._console = None
        if thinking == "dim" and styled(self._stream):
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._guards = self._stream.isatty()
        self._shows = thinking != "hide"
        self._thinking = False
        self._wrote = False

    def write(self, kind: str, text: str) -> None:
        """The next piece, "reasoning" or "answer"."""
        if not text:
            return
        if kind == "reasoning":
            if not self._shows:
                return
            if not self._thinking and self._console is None:
                self._put("<think>\n")
            self._thinking = True
            self._put(text, "dim italic")
            return
        self._end_thought()
        self._put(text)

    def end(self) -> None:
        """The answer is over: closes what is open, and the line."""
        self._end_thought()
        if self._wrote:
            self._put("\n")

    def _end_thought(self) -> None:
        if self._thinking:
            self._put("\n\n" if self._console is not None else "\n</think>\n\n")
        self._thinking = False

    def _put(self, text: str, style: str | None = None) -> None:
        self._wrote = True
        if self._guards:
            text = text.translate(VISIBLE)
        if style is not None and self._console is not None:
            self._console.print(text, style=style, end="", markup=False, emoji=False)
        else:
            self._stream.write(text)
        self._stream.flush()


def print_answer(parts: Iterable[Any], thinking: str) -> Any:
    """Writes `ChatPart`s to the standard output; the last of them."""
    printer, part = AnswerPrinter(thinking), None
    try:
        for part in parts:
            printer.write(part.kind, part.text)
    finally:
        printer.end()
    return part


def speed_lines(response: Any, reused: int = 0) -> list[str]:
    """What an answer cost, in words."""
    cached = f", {reused} more from the cache" if reused else ""
    return [
        f"prompt: {response.prompt_tokens} tokens at {response.prompt_tps:.1f} tokens/s{cached}",
        f"answer: {response.generation_tokens} tokens at {response.generation_tps:.1f} tokens/s",
        f"peak memory: {response.peak_memory:.2f} GB",
    ]
