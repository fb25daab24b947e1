"""A conversation in a JSON file."""

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import json_text, read_json_object, write_atomically
from ..generation.checks import type_name

FORMAT, VERSION = "mlx_qwen3.chat", 1


def checked_path(path: Any) -> Path:
    """Return the path of a file, with the home folder in place of ~; raise `InputError` for what is no path."""
    try:
        return Path(os.path.expanduser(path))
    except TypeError:
        raise InputError(f"the path is {type_name(path)}, expected the name of a file") from None


def save_transcript(
    path: str | Path, system: str | None, messages: list[dict[str, Any]], settings: dict[str, Any] | None = None
) -> None:
    """Write the conversation; the file appears under its name when it is complete.

    Args:
        settings: what else belongs to it, such as the model's name, the thinking mode and the sampling.

    Raises:
        InputError: the file cannot be written, or another kind of file has that name.
    """
    path = checked_path(path)
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} holds a NUL character. Give the name of a file")
    try:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}. Make it first")
        if path.is_dir():
            raise InputError(f"{path} is a folder. Give the name of a file in it")
        if path.is_file():
            try:
                load_transcript(path)
            except InputError:
                raise InputError(f"{path} is there and is no saved conversation. Choose another name") from None
    except OSError as error:
        raise InputError(f"cannot write {str(path)[:80]}: {error.strerror or error}. Choose another name") from None
    content = {"format": FORMAT, "version": VERSION, "system": system, "messages": messages, **(settings or {})}
    write_atomically(path, json_text(content), error=InputError)


def load_transcript(path: str | Path) -> dict[str, Any]:
    """Return a saved conversation: `system`, `messages`, and its settings where it has some.

    Raises:
        InputError: no such file, or no conversation in it.
    """
    path = checked_path(path)
    content = read_json_object(path, error=InputError)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is no conversation saved by /save. Give one that is")
    system, messages = content.get("system"), content.get("messages")
    if not (system is None or isinstance(system, str)) or not isinstance(messages, list):
        raise InputError(f"{path} holds no messages. Give another file")
    for message in messages:
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path} holds messages without a role or a content. Give another file")
    return {"system": None, **content}
