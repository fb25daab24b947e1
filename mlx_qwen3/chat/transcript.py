"""Save and load conversations as JSON files."""

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import json_text, read_json_object, write_atomically
from ..generation.checks import type_name

FORMAT, VERSION = "mlx_qwen3.chat", 1


def check_path(path: Any) -> Path:
    """Return the path with ~ expanded; raise `InputError` if it is not a path."""
    try:
        return Path(os.path.expanduser(path))
    except TypeError:
        raise InputError(f"the path is {type_name(path)}. Give the name of a file.") from None


def save_transcript(
    path: str | Path, system: str | None, messages: list[dict[str, Any]], settings: dict[str, Any] | None = None
) -> None:
    """Write a conversation to a JSON file, atomically.

    Args:
        settings: further fields, such as the model's name, the thinking mode and the sampling parameters.

    Raises:
        InputError: the file cannot be written, or exists and is not a conversation.
    """
    path = check_path(path)
    if "\0" in str(path):
        raise InputError(f"the path contains a NUL character: {str(path)!r}. Give the name of a file.")
    try:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}. Create it first.")
        if path.is_dir():
            raise InputError(f"{path} is a folder. Give the name of a file in it.")
        if path.is_file():
            try:
                load_transcript(path)
            except InputError:
                raise InputError(f"{path} exists and is not a saved conversation. Choose another name.") from None
    except OSError as error:
        raise InputError(f"cannot write {str(path)[:80]}: {error.strerror or error}. Choose another name.") from None
    content = {"format": FORMAT, "version": VERSION, "system": system, "messages": messages, **(settings or {})}
    write_atomically(path, json_text(content), error=InputError)


def load_transcript(path: str | Path) -> dict[str, Any]:
    """Load a saved conversation: `system`, `messages`, and the settings if there are any.

    Raises:
        InputError: the file is missing or is not a conversation.
    """
    path = check_path(path)
    content = read_json_object(path, error=InputError)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not a saved conversation. Give a file written by /save.")
    system, messages = content.get("system"), content.get("messages")
    if not (system is None or isinstance(system, str)) or not isinstance(messages, list):
        raise InputError(f"{path} has no list of messages. Give another file.")
    for message in messages:
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path} has a message without a role or a content. Give another file.")
    return {"system": None, **content}
