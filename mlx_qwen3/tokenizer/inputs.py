"""Check and normalize the arguments of a tokenizer: texts, pairs and batches; ids as ints, lists and arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError


def as_rows(text: Any, text_pair: Any, split: bool) -> tuple[list[Any], bool]:
    """Return the rows for the backend, and whether the caller passed a batch.

    A row is a text or a (text, pair) tuple, and all rows have the same type; with `split` a text is a list of words.

    Raises:
        InputError: any other input; the message names the row.
    """
    batched = isinstance(text, list | tuple) and (not split or (bool(text) and isinstance(text[0], list | tuple)))
    if not batched:
        row = (text, text_pair) if text_pair else text  # an empty second text is no pair, as in the reference
        return [_check_row(row, split, "text")], False
    if not text:
        raise InputError("text is an empty list. Pass at least one text.")
    if text_pair is None:
        rows = [_check_row(row, split, f"text {index}") for index, row in enumerate(text)]
    else:
        if not isinstance(text_pair, list | tuple):
            raise InputError(f"text is a batch, and text_pair is of type {type(text_pair).__name__}. Pass a list.")
        if len(text) != len(text_pair):
            raise InputError(
                f"text and text_pair differ in length: {len(text)} and {len(text_pair)}. Pass lists of the same length."
            )
        rows = [_check_row(row, split, f"text {i}") for i, row in enumerate(zip(text, text_pair, strict=True))]
    if len({isinstance(row, tuple) for row in rows}) > 1:
        raise InputError("text mixes single texts and pairs. Pass only texts or only pairs.")
    return rows, True


def _check_row(row: Any, split: bool, where: str) -> Any:
    """Check a row; return the text, or the pair as a tuple."""
    nested = isinstance(row, list | tuple) and (not split or any(isinstance(part, list | tuple) for part in row))
    if not nested:
        return _check_text(row, split, where)
    if len(row) != 2:
        raise InputError(f"{where} has {len(row)} parts. Pass pairs, or is_split_into_words=True for lists of words.")
    return _check_text(row[0], split, where), _check_text(row[1], split, where)


def _check_text(text: Any, split: bool, where: str) -> Any:
    words = text if split else [text]
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        expected = "a list of words" if split else "a string, or a list of strings or pairs"
        raise InputError(f"{where} is of type {type(text).__name__}. Pass {expected}.")
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            reason = f"lone surrogate at character {error.start}"
            raise InputError(f"{where} is not valid Unicode: {reason}. Remove it.") from error
    return list(words) if split else text


def as_ids(token_ids: Any) -> list[Any]:
    """Convert an int, a sequence, or an array of MLX or NumPy to a list of ints or of nested lists.

    Raises:
        InputError: a value is not an integer.
    """
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    if isinstance(token_ids, int):
        return [token_ids]
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, str):
        raise InputError(f"the token ids are of type {type(token_ids).__name__}. Pass integers in a list or an array.")
    return [_as_id(token) for token in token_ids]


def _as_id(token: Any) -> Any:
    if hasattr(token, "tolist"):
        token = token.tolist()
    if isinstance(token, int):
        return token
    if isinstance(token, list | tuple):
        return as_ids(token)
    raise InputError(f"a token id is of type {type(token).__name__}. Pass integers.")


def refuse_unknown(keywords: Mapping[str, Any], what: str, method: str) -> None:
    """Raise `InputError` for the first keyword of a call that is not None."""
    for name in sorted(keywords):
        if keywords[name] is not None:
            raise InputError(f"{what} has no argument {name!r}. See help(Tokenizer.{method}).")


def check_keywords(given: Any) -> dict[str, Any]:
    """Return `tokenizer_kwargs` as a dict; raise InputError for another type."""
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"tokenizer_kwargs is of type {type(given).__name__}. Pass a dict of keyword arguments.")
    return dict(given or {})


def check_tokens(tokens: Any) -> None:
    """Raise `InputError` unless `tokens` is a list or tuple of strings."""
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"tokens is of type {type(tokens).__name__}. Pass a list of tokens.")
