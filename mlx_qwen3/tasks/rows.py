"""What a caller may pass to a task: one row, a list of rows, or a stream of them; each checked, bad ones named.

Knows no model and no tokenizer.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import InputError

ON_ERROR = ("raise", "record")


def check_text(text: Any, name: str = "text") -> str:
    """`text`, if it is a text with something in it; raises `InputError` with `name` otherwise."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be a string, not {type(text).__name__}")
    if not text.strip():
        raise InputError(f"{name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid Unicode: a lone surrogate at character {error.start}") from error
    return text


def is_batch(inputs: Any) -> bool:
    """Whether `inputs` is a list of rows, and not one row or a stream."""
    return isinstance(inputs, list | tuple)


def is_stream(inputs: Any) -> bool:
    """Whether `inputs` is an iterator or a data set, to be read as it goes."""
    return not isinstance(inputs, str | bytes | dict | list | tuple) and isinstance(inputs, Iterable)


def windows(rows: Iterable[Any], size: int, room: int | None = None, least: int = 1) -> Iterator[tuple[int, list[Any]]]:
    """(index of the first row, rows), `size` rows at a time, so that a stream of any length needs bounded memory.

    Args:
        room: characters after which a window ends sooner, if it has `least` rows; None for no such end.
    """
    window: list[Any] = []
    start = held = 0
    for row in rows:
        window.append(row)
        held += characters(row)
        if len(window) == size or (room is not None and held >= room and len(window) >= least):
            yield start, window
            start += len(window)
            window, held = [], 0
    if window:
        yield start, window


def characters(row: Any) -> int:
    """Characters of a row's texts."""
    parts = row.values() if isinstance(row, dict) else row if isinstance(row, list | tuple) else [row]
    return sum(len(part) for part in parts if isinstance(part, str))


def paired(texts: Any, others: Any, first: str, second: str) -> Any:
    """Rows of two parts from two arguments: both single, or two lists of one length.

    Raises:
        InputError: the lists differ in length, or only one of the two is a list.
    """
    if is_batch(texts) and is_batch(others):
        if len(texts) != len(others):
            raise InputError(f"{first} has {len(texts)} rows and {second} has {len(others)}; they must be as many")
        return [{first: a, second: b} for a, b in zip(texts, others, strict=True)]
    if is_batch(texts) or is_batch(others):
        one, many = (second, first) if is_batch(texts) else (first, second)
        raise InputError(f"{many} is a list, so {one} must be a list of the same length")
    return {first: texts, second: others}


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises `InputError` unless `value` is among `allowed`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises `InputError` unless `value` is a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}, expected a whole number of {least} or more")
