"""Inputs of a task: one row, a list of rows, or a stream of rows, each of them checked.

Independent of models and tokenizers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from ..errors import InputError
from ..outputs import ModelOutput

ON_ERROR = ("raise", "record")


def check_text(text: Any, name: str = "text") -> str:
    """Return `text` if it is a string that is not blank; raise an `InputError` that names `name` otherwise."""
    if not isinstance(text, str):
        if text is None or type(text).__name__ in ("NAType", "NaTType") or (isinstance(text, float) and text != text):
            raise InputError(f"{name} is missing ({text}). Drop such rows or fill them in.")
        if isinstance(text, set | frozenset):
            raise InputError(f"{name} must be a string, not a {type(text).__name__}. A set has no order: pass a list.")
        raise InputError(f"{name} must be a string, not {type(text).__name__}.")
    if not text.strip():
        raise InputError(f"{name} is empty.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid Unicode: a lone surrogate at character {error.start}.") from error
    return text


def is_batch(inputs: Any) -> bool:
    """Return whether `inputs` is a sized, ordered container of rows, as opposed to one row or an iterator.

    Lists, tuples, numpy arrays, pandas and polars Series, pyarrow arrays and data sets are containers.
    """
    if isinstance(inputs, str | bytes | Mapping | ModelOutput | set | frozenset):
        return False
    return isinstance(inputs, Sized) and (isinstance(inputs, Iterable) or hasattr(inputs, "column_names"))


def is_stream(inputs: Any) -> bool:
    """Return whether `inputs` is an iterator, whose rows are read as they are needed."""
    return isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes | Sized)


def as_rows(inputs: Any) -> list[Any]:
    """Return the rows of a container (see `is_batch`) as a list of Python objects.

    Raises:
        InputError: a table with columns, whose rows are not texts.
    """
    if isinstance(inputs, list):
        return inputs
    if hasattr(inputs, "columns") or hasattr(inputs, "column_names"):
        names = [str(name) for name in getattr(inputs, "column_names", getattr(inputs, "columns", ()))]
        if not _iterates_rows(inputs):
            name = names[0] if names else "text"
            raise InputError(
                f"a {type(inputs).__name__} with the columns {', '.join(names) or '(none)'} is not rows of text. "
                f"Pass one column, such as table[{name!r}]."
            )
    shape = getattr(inputs, "shape", None)
    if isinstance(shape, tuple) and not shape:
        raise InputError("a zero-dimensional array is given, not rows. Pass a string or a list of strings.")
    for method in ("to_pylist", "tolist", "to_list"):
        if hasattr(inputs, method):
            return list(getattr(inputs, method)())
    return list(inputs)


def _iterates_rows(table: Any) -> bool:
    """Return whether iterating a table yields its rows as mappings, as the data sets of `datasets` do."""
    return isinstance(table, Iterable) and isinstance(next(iter(table), None), Mapping)


def windows(
    rows: Iterable[Any], size: int, room: int | None = None, least: int = 1, first: int | None = None
) -> Iterator[tuple[int, list[Any]]]:
    """Yield (index of the first row, rows), `size` rows at a time, so that streaming needs bounded memory.

    Args:
        room: characters after which a window of at least `least` rows is yielded early; None for no such limit.
        first: such a limit for the first window, so that its results come soon; it doubles until it reaches `room`.
    """
    window: list[Any] = []
    start = held = 0
    most, room = room, room if first is None else first
    for row in rows:
        window.append(row)
        held += characters(row)
        if len(window) == size or (room is not None and held >= room and len(window) >= least):
            yield start, window
            start += len(window)
            window, held = [], 0
            room = None if most is None else min(2 * (room or most), most)
    if window:
        yield start, window


def characters(row: Any) -> int:
    """Return the number of characters in a row's texts."""
    parts = row.values() if isinstance(row, dict) else row if isinstance(row, list | tuple) else [row]
    return sum(len(part) for part in parts if isinstance(part, str))


def paired(texts: Any, others: Any, first: str, second: str) -> Any:
    """Return rows of two parts from two arguments: two single texts, or two lists of the same length.

    Raises:
        InputError: the lists differ in length, or only one of the two is a list.
    """
    if is_batch(texts) and is_batch(others):
        texts, others = as_rows(texts), as_rows(others)
        if len(texts) != len(others):
            raise InputError(
                f"{first} has {len(texts)} rows and {second} has {len(others)}. Pass lists of the same length."
            )
        return [{first: a, second: b} for a, b in zip(texts, others, strict=True)]
    if is_batch(texts) or is_batch(others):
        one, many = (second, first) if is_batch(texts) else (first, second)
        raise InputError(f"{many} is a list, so {one} must be a list of the same length.")
    return {first: texts, second: others}


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise `InputError` unless `value` is among `allowed`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise `InputError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}, expected a whole number of {least} or more.")
