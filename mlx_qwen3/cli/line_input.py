"""Where a chat's lines come from: a terminal with editing and history, or a pipe. Messages may span lines."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .standard_streams import not_utf8, utf8_input

QUOTES = '"""'

ReadLine = Callable[[str], str]
"""Takes what to show before the line; raises EOFError at the end and KeyboardInterrupt for Ctrl-C."""


def state_folder() -> Path:
    """Return where this program keeps what it remembers: by the XDG rules, on macOS in Application Support."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlx-qwen3"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mlx-qwen3"


def line_reader(keep_history: bool, words: Sequence[str] = (), **streams: Any) -> ReadLine:
    """Return a line editor on a terminal, with history and completion; elsewhere a reader of standard input.

    On a terminal a message that begins with three quotes goes on over several lines until the closing quotes; a pasted
    block is one message. Either is one entry of the history.

    Args:
        words: commands that Tab completes; after `/save` and `/load` it completes file names, after `/model` names of
            cached models and of folders.
        streams: `input` and `output` of prompt_toolkit, in place of the terminal.
    """
    if not streams and not (sys.stdin.isatty() and sys.stdout.isatty()):
        utf8_input()
        return _read_plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    history: Any = InMemoryHistory()
    if keep_history and (folder := _made(state_folder())) is not None:
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
    """A whole message from a line editor: what is pasted stays together."""


def is_open_block(text: str) -> bool:
    """Return whether a text begins with three quotes that nothing closes yet: their number is odd."""
    return text.lstrip().startswith(QUOTES) and bool(text.count(QUOTES) % 2)


def make_completer(words: Sequence[str]) -> Any:
    """Return what Tab does in a chat whose commands are `words`."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """Commands at the beginning of a line, names of files and models after those that take one."""

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
    """Return the ids of the models in the cache of the Hugging Face Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*/snapshots")
    return sorted(folder.parent.name.removeprefix("models--").replace("--", "/") for folder in folders)


def _read_plain(prompt: str) -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise not_utf8() from None
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _made(folder: Path) -> Path | None:
    """Return the folder, private to its owner; None where it cannot be made: then history is not kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_message(read_line: ReadLine) -> str:
    """Read one message: what a line editor gives; elsewhere a line, or the lines between two lines of three quotes.

    A block opens with a line that begins with three quotes. It closes with a line, not indented, that ends with them
    and holds an odd number of them: docstrings inside it stay what they are.

    Raises:
        EOFError: there is none. InputError: the input ends inside a block, or cannot be read.
    """
    line = read_line(">>> ")
    if isinstance(line, Typed):
        return _without_quotes(str(line))
    if not line.startswith(QUOTES) or not is_open_block(line):
        return _without_quotes(line)
    lines = [line[len(QUOTES) :]]
    try:
        while True:
            line = read_line("... ")
            if line.rstrip().endswith(QUOTES) and not line[:1].isspace() and line.count(QUOTES) % 2:
                lines.append(line.rstrip()[: -len(QUOTES)])
                return "\n".join(lines).strip("\n")
            lines.append(line)
    except EOFError:  # half a message is not sent: what is missing may have been lost on the way
        raise InputError(
            f"a message begins with {QUOTES} and does not end: it was not sent; end it with {QUOTES}"
        ) from None


def _without_quotes(text: str) -> str:
    """Return a message without the quotes around it; quotes that open and close more than once stay."""
    inner = text.strip()
    if len(inner) < 2 * len(QUOTES) or not (inner.startswith(QUOTES) and inner.endswith(QUOTES)):
        return text
    inner = inner[len(QUOTES) : -len(QUOTES)]
    return text if inner.count(QUOTES) % 2 else inner.strip("\n")
