"""Answers on the screen as they come, and the numbers after them."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

VISIBLE = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What a model writes must not steer the terminal: control characters are shown as U+FFFD."""


def styled(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that may get colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def part_text(part: Any) -> str:
    """Return the text of a `ChatPart`; that of a call begins with the function's name."""
    return f"{part.name}({part.text})" if part.kind == "tool_call" else part.text


def shown_part(kind: str, text: str) -> str:
    """Return what is printed of a part: calls and results of tools stand on lines of their own."""
    if kind == "tool_call":
        return f"\n[call] {text}\n"
    return f"[result] {text}\n\n" if kind == "tool_result" else text


class AnswerPrinter:
    """Writes the parts of one answer as plain text, as they come.

    Args:
        thinking: "dim", "show", "hide" or "off". Where a stream takes no style, "dim" is "show": thinking stands
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
        """Write the next piece, "reasoning" or "answer"."""
        if not text:
            return
        text = shown_part(kind, text)
        if kind == "reasoning":
            if not self._shows:
                return
            if not self._thinking and self._console is None:
                self._put("<think>\n")
            self._thinking = True
            self._put(text, "dim italic")
            return
        self._end_thinking()
        self._put(text)

    def end(self) -> None:
        """Close what is open, and the line."""
        self._end_thinking()
        if self._wrote:
            self._put("\n")

    def _end_thinking(self) -> None:
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


class MarkdownPrinter:
    """Writes the parts of one answer as Markdown on a terminal, wrapped at words.

    The block that is being written is drawn again as it grows (rich's `Live`); a finished block is printed for good.
    Lines of code are printed as they are, so that they can be copied.
    """

    def __init__(self, thinking: str, stream: TextIO | None = None):
        from rich.console import Console

        self._console = Console(file=stream or sys.stdout, highlight=False)
        self._shows = thinking != "hide"
        self._live: Any = None
        self._text, self._kind, self._in_code = "", "", False
        self._before = ""

    def write(self, kind: str, text: str) -> None:
        """Write the next piece, "reasoning" or "answer"."""
        if not text:
            return
        text = shown_part(kind, text).translate(VISIBLE)
        if kind == "reasoning" and not self._shows:
            self._spin()
            return
        if kind != self._kind:
            self._finish()
            self._kind = kind
        self._text += text
        self._print_finished()
        self._draw()

    def end(self) -> None:
        """Print what is left."""
        self._finish()

    def _spin(self) -> None:
        if self._live is None:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("[dim]thinking"), TimeElapsedColumn()
            self._live = Progress(*columns, console=self._console, transient=True)
            self._live.start()
            self._live.add_task("", total=None)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _finish(self) -> None:
        self._stop()
        if self._text.strip() or self._in_code:
            self._print_block(self._text.rstrip("\n"))
            if self._kind == "reasoning":
                self._console.print()
        self._text, self._in_code, self._before = "", False, ""

    def _print_finished(self) -> None:
        """Print the blocks that are complete and keep the rest."""
        while True:
            if self._in_code:
                line, newline, rest = self._text.partition("\n")
                if not newline:
                    return
                self._stop()
                self._print_code(line)
                self._in_code = not line.lstrip().startswith("```")
                self._text = rest
                continue
            lines = self._text.split("\n")
            fence = next((n for n, line in enumerate(lines[:-1]) if line.lstrip().startswith("```")), None)
            if fence is not None and self._kind == "answer":
                self._stop()
                self._print_block("\n".join(lines[:fence]))
                self._print_code(lines[fence])
                self._text, self._in_code = "\n".join(lines[fence + 1 :]), True
                continue
            gap = re.search(r"\n\n+(?=\S)", self._text)  # what is indented belongs to the item of a list above it
            if gap is None:
                return
            self._stop()
            self._print_block(self._text[: gap.start()])
            self._text = self._text[gap.end() :]

    def _print_block(self, block: str) -> None:
        if self._in_code:
            for line in block.split("\n") if block else ():
                self._print_code(line)
            return
        if block.strip():
            if self._before:
                self._console.print()
            self._print_lines(self._rendered(block))
            self._before = "text"

    def _print_lines(self, renderable: Any) -> None:
        """Print without the blanks that rich fills lines with: they would be copied."""
        from rich.segment import Segment, Segments

        for line in self._console.render_lines(renderable, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
            self._console.print(Segments([*line, Segment.line()]), end="")

    def _print_code(self, line: str) -> None:
        from rich.text import Text

        if not self._in_code and self._before:
            self._console.print()
        style = "dim" if line.lstrip().startswith("```") else "cyan"
        self._console.print(Text(line, style=style), soft_wrap=True)
        self._before = "code"

    def _draw(self) -> None:
        if not self._text.strip() or self._in_code:
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, transient=True, refresh_per_second=12, vertical_overflow="visible")
            self._live.start()
        self._live.update(self._rendered(self._text))

    def _rendered(self, block: str) -> Any:
        if self._kind == "reasoning":
            from rich.text import Text

            return Text(block.strip("\n"), style="dim italic")
        from rich.markdown import Markdown

        return Markdown(block)


def answer_printer(
    thinking: str, plain: bool = False, stream: TextIO | None = None
) -> "AnswerPrinter | MarkdownPrinter":
    """Return what writes an answer: rendered Markdown on a terminal, plain text elsewhere or where it is asked for."""
    target: TextIO = sys.stdout if stream is None else stream
    if plain or not target.isatty() or os.environ.get("TERM") == "dumb":
        return AnswerPrinter(thinking, target)
    return MarkdownPrinter(thinking, target)


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Keep what is typed during an answer off the screen; it is there for the next message."""
    try:
        import termios

        number = sys.stdin.fileno()
        if not os.isatty(number):  # termios.error is no OSError
            raise OSError("not a terminal")
        before = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError):
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(number, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)


def print_answer(parts: Iterable[Any], thinking: str, plain: bool = False) -> Any:
    """Write `ChatPart`s to the standard output and return the last of them."""
    printer, part = answer_printer(thinking, plain), None
    try:
        for part in parts:
            printer.write(part.kind, part_text(part))
    finally:
        printer.end()
    return part


def speed_lines(response: Any, reused: int = 0) -> list[str]:
    """Return what an answer cost, in words."""
    cached = f", {reused} more from the cache" if reused else ""
    return [
        f"prompt: {response.prompt_tokens} tokens at {response.prompt_tps:.1f} tokens/s{cached}",
        f"answer: {response.generation_tokens} tokens at {response.generation_tps:.1f} tokens/s",
        f"peak memory: {response.peak_memory:.2f} GB",
    ]
