"""Where a chat's lines come from: a terminal with editing and history, or a pipe. Messages may span lines."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from .standard_streams import not_utf8, utf8_input

QUOTES = '"""'

ReadLine = Callable[[str], str]
"""Takes what to show before the line; raises EOFError at the end and KeyboardInterrupt for Ctrl-C."""


def state_folder() -> Path:
    """Where this program keeps what it remembers: by the XDG rules, on macOS in Application Support."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlx-qwen3"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mlx-qwen3"


def line_reader(keep_history: bool, **streams: Any) -> ReadLine:
    """A line editor on a terminal, with a history file if wanted; elsewhere the plain standard input.

    Args:
        streams: `input` and `output` of prompt_toolkit, in place of the terminal.
    """
    if not streams and not (sys.stdin.isatty() and sys.stdout.isatty()):
        utf8_input()
        return _read_plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    history: Any = InMemoryHistory()
    if keep_history and (folder := _made(state_folder())) is not None:
        history = FileHistory(str(folder / "chat_history"))
    session: PromptSession[str] = PromptSession(history=history, **streams)
    return session.prompt


def _read_plain(prompt: str) -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise not_utf8() from None
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _made(folder: Path) -> Path | None:
    """The folder, private to its owner; None where it cannot be made: then history is not kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_message(read_line: ReadLine) -> str:
    """One message: a line, or the lines from one triple quote to the next.

    Raises:
        EOFError: there is none. InputError: the input ends before the second triple quote, or cannot be read.
    """
    line = read_line(">>> ")
    if not line.lstrip().startswith(QUOTES):
        return line
    text = line.lstrip()[len(QUOTES) :]
    try:
        while QUOTES not in text:
            text += "\n" + read_line("... ")
    except EOFError:  # half a message is not sent: what is missing may have been lost on the way
        raise InputError(
            f"a message begins with {QUOTES} and does not end: it was not sent; end it with {QUOTES}"
        ) from None
    return text.partition(QUOTES)[0].strip("\n")
