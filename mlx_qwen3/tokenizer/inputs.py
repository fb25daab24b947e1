"""Checks what a caller passes: texts in every shape that a call takes, ids as ints, lists and arrays."""

from collections.abc import Sequence
from typing import Any

from ..errors import InputError


def as_rows(text: Any, text_pair: Any, split: bool) -> tuple[list[Any], bool]:
    """-> (rows for the backend, whether the caller gave a batch).

    A row is a text or a (text, pair) tuple, all rows alike; with `split` a text is a list of words. Raises
    InputError for anything else, naming the row.
    """
    batched = isinstance(text, list | tuple) and (not split or (bool(text) and isinstance(text[0], list | tuple)))
    if not batched:
        row = text if text_pair is None else (text, text_pair)
        return [_row(row, split, "text")], False
    if not text:
        raise InputError("text is an empty list; give at least one text")
    if text_pair is None:
        rows = [_row(row, split, f"text {index}") for index, row in enumerate(text)]
    else:
        if not isinstance(text_pair, list | tuple):
            raise InputError(f"text is a batch, so text_pair must be a list too, not {type(text_pair).__name__}")
        if len(text) != len(text_pair):
            raise InputError(f"{len(text)} texts cannot be paired with {len(text_pair)} in text_pair")
        rows = [_row(row, split, f"text {i}") for i, row in enumerate(zip(text, text_pair, strict=True))]
    if len({isinstance(row, tuple) for row in rows}) > 1:
        raise InputError("text mixes single texts and pairs; give all of one kind")
    return rows, True


def _row(row: Any, split: bool, where: str) -> Any:
    """Return the text, or the pair as a tuple."""
    nested = isinstance(row, list | tuple) and (not split or any(isinstance(part, list | tuple) for part in row))
    if not nested:
        return _text(row, split, where)
    if len(row) != 2:
        raise InputError(f"{where} has {len(row)} parts; a pair has 2 (a list of words needs is_split_into_words)")
    return _text(row[0], split, where), _text(row[1], split, where)


def _text(text: Any, split: bool, where: str) -> Any:
    words = text if split else [text]
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        expected = "a list of words" if split else "a string, or a list of strings or pairs"
        raise InputError(f"{where} must be {expected}, not {type(text).__name__}")
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is not valid Unicode: a lone surrogate at character {error.start}") from error
    return list(words) if split else text


def as_ids(token_ids: Any) -> list[Any]:
    """Return ids as a list of ints, or of such lists; takes ints, sequences, and arrays of MLX or numpy.

    Raises InputError for what is not an integer.
    """
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    if isinstance(token_ids, int):
        return [token_ids]
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, str):
        raise InputError(f"token ids must be integers in a list or an array, not {type(token_ids).__name__}")
    return [_id(token) for token in token_ids]


def _id(token: Any) -> Any:
    if hasattr(token, "tolist"):
        token = token.tolist()
    if isinstance(token, int):
        return token
    if isinstance(token, list | tuple):
        return as_ids(token)
    raise InputError(f"token ids must be integers, not {type(token).__name__}")
