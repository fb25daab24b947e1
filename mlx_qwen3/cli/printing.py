"""Print answers while they are generated, and the speed afterwards."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

VISIBLE = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Control characters → U+FFFD, so that the output of a model cannot control the terminal."""


def supports_style(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colours enabled."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def part_text(part: Any) -> str:
    """Return the text of a `ChatPart`; for a tool call, NAME(ARGUMENTS)."""
    return f"{part.name}({part.text})" if part.kind == "tool_call" else part.text


def format_part(kind: str, text: str) -> str:
    """Return the printed text of a part. Tool calls and their results are put on separate lines."""
    if kind == "tool_call":
        return f"\n[call] {text}\n"
    return f"[result] {text}\n\n" if kind == "tool_result" else text


class AnswerPrinter:
    """Print the parts of one answer as plain text while they are generated.

    Args:
        thinking: "dim", "show", "hide" or "off". Without support for styles, "dim" is the same as "show", which prints
            the reasoning between <think> and </think>.
        stream: where to print; by default standard output.
    """

    def __init__(self, thinking: str, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._console = None
        if thinking == "dim" and supports_style(self._stream):
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._escapes_controls = self._stream.isatty()
        self._shows_reasoning = thinking != "hide"
        self._thinking = False
        self._wrote = False

    def write(self, kind: str, text: str) -> None:
        """Print the next text of a part; `kind` is that of `ChatPart`."""
        if not text:
            return
        text = format_part(kind, text)
        if kind == "reasoning":
            if not self._shows_reasoning:
                return
            if not self._thinking and self._console is None:
                self._emit("<think>\n")
            self._thinking = True
            self._emit(text, "dim italic")
            return
        self._end_thinking()
        self._emit(text)

    def end(self) -> None:
        """Close the reasoning and end the line."""
        self._end_thinking()
        if self._wrote:
            self._emit("\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._emit("\n\n" if self._console is not None else "\n</think>\n\n")
        self._thinking = False

    def _emit(self, text: str, style: str | None = None) -> None:
        self._wrote = True
        if self._escapes_controls:
            text = text.translate(VISIBLE)
        if style is not None and self._console is not None:
            self._console.print(text, style=style, end="", markup=False, emoji=False)
        else:
            self._stream.write(text)
        self._stream.flush()


class MarkdownPrinter:
    """Print the parts of one answer as rendered Markdown on a terminal, wrapped at words.

    The unfinished block is redrawn while it grows (rich's `Live`); a finished block is printed once. Lines of code are
    not wrapped, so that they can be copied.
    """

    def __init__(self, thinking: str, stream: TextIO | None = None):
        from rich.console import Console

        self._console = Console(file=stream or sys.stdout, highlight=False)
        self._shows_reasoning = thinking != "hide"
        self._live: Any = None
        self._text, self._kind, self._in_code = "", "", False
        self._before = ""

    def write(self, kind: str, text: str) -> None:
        """Print the next text of a part; `kind` is that of `ChatPart`."""
        if not text:
            return
        text = format_part(kind, text).translate(VISIBLE)
        if kind == "reasoning" and not self._shows_reasoning:
            self._spin()
            return
        if kind != self._kind:
            self._finish_part()
            self._kind = kind
        self._text += text
        self._print_finished()
        self._draw()

    def end(self) -> None:
        """Print the rest of the answer."""
        self._finish_part()

    def _spin(self) -> None:
        if self._live is None:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("[dim]thinking"), TimeElapsedColumn()
            self._live = Progress(*columns, console=self._console, transient=True)
            self._live.start()
            self._live.add_task("", total=None)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _finish_part(self) -> None:
        self._stop_live()
        if self._text.strip() or self._in_code:
            self._print_block(self._text.rstrip("\n"))
            if self._kind == "reasoning":
                self._console.print()
        self._text, self._in_code, self._before = "", False, ""

    def _print_finished(self) -> None:
        """Print the finished blocks and keep the rest."""
        while True:
            if self._in_code:
                line, newline, rest = self._text.partition("\n")
                if not newline:
                    return
                self._stop_live()
                self._print_code(line)
                self._in_code = not line.lstrip().startswith("```")
                self._text = rest
                continue
            lines = self._text.split("\n")
            fence = next((n for n, line in enumerate(lines[:-1]) if line.lstrip().startswith("```")), None)
            if fence is not None and self._kind == "answer":
                self._stop_live()
                self._print_block("\n".join(lines[:fence]))
                self._print_code(lines[fence])
                self._text, self._in_code = "\n".join(lines[fence + 1 :]), True
                continue
            gap = re.search(r"\n\n+(?=\S)", self._text)  # indented text belongs to the list item above it
            if gap is None:
                return
            self._stop_live()
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
            self._print_lines(self._render(block))
            self._before = "text"

    def _print_lines(self, renderable: Any) -> None:
        """Print without the trailing blanks of rich, which would be copied with the text."""
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
        self._live.update(self._render(self._text))

    def _render(self, block: str) -> Any:
        if self._kind == "reasoning":
            from rich.text import Text

            return Text(block.strip("\n"), style="dim italic")
        from rich.markdown import Markdown

        return Markdown(block)


def answer_printer(
    thinking: str, plain: bool = False, stream: TextIO | None = None
) -> "AnswerPrinter | MarkdownPrinter":
    """Return a Markdown printer for a terminal, else a plain one. With `plain`, always return the plain one."""
    target: TextIO = sys.stdout if stream is None else stream
    if plain or not target.isatty() or os.environ.get("TERM") == "dumb":
        return AnswerPrinter(thinking, target)
    return MarkdownPrinter(thinking, target)


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Turn off the terminal's echo during an answer; the text typed meanwhile is kept for the next message."""
    try:
        import termios

        number = sys.stdin.fileno()
        if not os.isatty(number):  # because termios.error is not an OSError
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
    """Print `ChatPart`s to standard output and return the last one, None if there are none."""
    printer, part = answer_printer(thinking, plain), None
    try:
        for part in parts:
            printer.write(part.kind, part_text(part))
    finally:
        printer.end()
    return part


def speed_lines(response: Any, reused: int = 0) -> list[str]:
    """Return the lines that report speed (tokens/s) and peak memory (GB) of an answer."""
    cached = f", {reused} more from the cache" if reused else ""
    return [
        f"prompt: {response.prompt_tokens} tokens at {response.prompt_tps:.1f} tokens/s{cached}",
        f"answer: {response.generation_tokens} tokens at {response.generation_tps:.1f} tokens/s",
        f"peak memory: {response.peak_memory:.2f} GB",
    ]
