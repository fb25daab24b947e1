"""Read the messages of a chat from a terminal, with editing and history, or from a pipe."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .standard_streams import open_utf8_input, utf8_error

QUOTES = '"""'

ReadLine = Callable[[str], str]
"""Read one line after showing a prompt; raises EOFError at the end of the input, KeyboardInterrupt for Ctrl-C."""


def state_folder() -> Path:
    """Return the folder of the history: in XDG_STATE_HOME, on macOS in Application Support."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlx-qwen3"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mlx-qwen3"


def line_reader(keep_history: bool, words: Sequence[str] = (), **streams: Any) -> ReadLine:
    """Return a line editor with history and completion on a terminal, else a reader of standard input.

    On a terminal, a message that begins with three quotes continues over several lines until the closing quotes, and a
    pasted block is one message. Each of them is one entry of the history.

    Args:
        keep_history: whether to load and save the history file.
        words: commands that Tab completes. After `/save` and `/load` it completes file names, after `/model` the
            names of cached models and of folders.
        streams: `input` and `output` of prompt_toolkit, instead of the terminal.
    """
    if not streams and not (sys.stdin.isatty() and sys.stdout.isatty()):
        open_utf8_input()
        return _read_plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    history: Any = InMemoryHistory()
    if keep_history and (folder := _make_folder(state_folder())) is not None:
        history = FileHistory(str(folder / "chat_history"))
    still_open = Condition(lambda: is_open_block(get_app().current_buffer.text))
    session: PromptSession[str] = PromptSession(
        history=history,
        completer=make_completer(words),
        complete_while_typing=False,
        multiline=still_open,
        prompt_continuation="... ",
        **streams,
    )

    def read(prompt: str) -> str:
        return Typed(session.prompt(prompt))

    return read


class Typed(str):
    """A complete message from a line editor, which may contain newlines."""


def is_open_block(text: str) -> bool:
    """Return whether a text begins with three quotes and contains them an odd number of times, so they are open."""
    return text.lstrip().startswith(QUOTES) and bool(text.count(QUOTES) % 2)


def make_completer(words: Sequence[str]) -> Any:
    """Return a prompt_toolkit completer for the commands `words` and their arguments."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """Complete commands at the start of a line, and file and model names after the commands that take one."""

        def get_completions(self, document: Any, complete_event: Any) -> Any:
            text = document.text_before_cursor
            word, space, rest = text.partition(" ")
            if space and word in ("/save", "/load", "/model"):
                only_folders = word == "/model"
                if only_folders:
                    yield from (Completion(one, -len(rest)) for one in cached_models() if one.startswith(rest))
                files = PathCompleter(expanduser=True, only_directories=only_folders)
                yield from files.get_completions(Document(rest), complete_event)
            elif not space and text.startswith("/"):
                yield from (Completion(one, -len(text)) for one in words if one.startswith(text))

    return Commands()


def cached_models() -> list[str]:
    """Return the ids of the models in the Hugging Face Hub cache, sorted."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*/snapshots")
    return sorted(folder.parent.name.removeprefix("models--").replace("--", "/") for folder in folders)


def _read_plain(prompt: str) -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise utf8_error() from None
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _make_folder(folder: Path) -> Path | None:
    """Create a folder with access for its owner only; return None if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_message(read_line: ReadLine) -> str:
    """Read one message: a complete one from a line editor, else one line or a block between three quotes.

    A block starts with a line that begins with three quotes. It ends with a line that is not indented, ends with three
    quotes, and contains them an odd number of times. So docstrings inside a block do not end it.

    Raises:
        EOFError: there is no more input.
        InputError: the input ends inside a block, or is not UTF-8.
    """
    line = read_line(">>> ")
    if isinstance(line, Typed):
        return _strip_quotes(str(line))
    if not line.startswith(QUOTES) or not is_open_block(line):
        return _strip_quotes(line)
    lines = [line[len(QUOTES) :]]
    try:
        while True:
            line = read_line("... ")
            if line.rstrip().endswith(QUOTES) and not line[:1].isspace() and line.count(QUOTES) % 2:
                lines.append(line.rstrip()[: -len(QUOTES)])
                return "\n".join(lines).strip("\n")
            lines.append(line)
    except EOFError:  # an incomplete message is not sent: the rest may have been lost
        raise InputError(
            f"the input ended inside a message that begins with {QUOTES}; it was not sent. Close it with {QUOTES}."
        ) from None


def _strip_quotes(text: str) -> str:
    """Return a message without the three quotes around it; keep them if they enclose more than one block."""
    inner = text.strip()
    if len(inner) < 2 * len(QUOTES) or not (inner.startswith(QUOTES) and inner.endswith(QUOTES)):
        return text
    inner = inner[len(QUOTES) : -len(QUOTES)]
    return text if inner.count(QUOTES) % 2 else inner.strip("\n")
