"""A conversation in a JSON file."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError

FORMAT, VERSION = "mlx_qwen3.chat", 1


def save_transcript(path: str | Path, system: str | None, messages: list[dict[str, Any]]) -> None:
    """Writes the conversation; the file appears under its name when it is complete.

    Raises:
        InputError: the file cannot be written, or another kind of file has that name.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file():
        try:
            load_transcript(path)
        except InputError:
            raise InputError(f"{path} is there and is no saved conversation: choose another name") from None
    content = {"format": FORMAT, "version": VERSION, "system": system, "messages": messages}
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def load_transcript(path: str | Path) -> tuple[str | None, list[dict[str, Any]]]:
    """The system prompt and the messages of a saved conversation.

    Raises:
        InputError: no such file, or no conversation in it.
    """
    path = Path(os.path.expanduser(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no conversation saved by /save")
    system, messages = content.get("system"), content.get("messages")
    if not (system is None or isinstance(system, str)) or not isinstance(messages, list):
        raise InputError(f"{path} holds no messages")
    for message in messages:
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path} holds messages without a role or a content")
    return system, messages
