"""The result of a tokenizer call: a mapping of model inputs that also knows where each token came from."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from ..errors import InputError


class CharSpan(NamedTuple):
    """Characters `start` (included) to `end` (excluded) of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` (included) to `end` (excluded) of a row."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """Model inputs by key or attribute (`inputs["input_ids"]`, `inputs.input_ids`), made to be unpacked:
    `**inputs`.

    `inputs[0]` is the `tokenizers.Encoding` of row 0. The methods translate between the tokens of a row, the
    words and the characters of its texts; a row is 0 when left out.
    """

    def __init__(self, data: dict[str, Any], encodings: list[Encoding] | None = None) -> None:
        super().__init__(data)
        self._encodings = encodings

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return self._row(key)
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self:
            return super().__getitem__(name)
        raise AttributeError(f"this encoding has no {name!r}, only {', '.join(self)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self._encodings)

    @property
    def data(self) -> dict[str, Any]:
        """The model inputs as a plain dict."""
        return dict(self)

    def to(self, device: Any = None, *, non_blocking: bool = False) -> "BatchEncoding":
        """Return self: MLX arrays live in memory that every device shares."""
        return self

    @property
    def encodings(self) -> list[Encoding] | None:
        """One `tokenizers.Encoding` per row."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the rows know their words and characters."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """Texts per row: 1, or 2 for pairs."""
        return self._encodings[0].n_sequences if self._encodings else None

    def _row(self, index: int) -> Encoding:
        if self._encodings is None or not -len(self._encodings) <= index < len(self._encodings):
            raise InputError(f"row {index} is outside this batch of {len(self._encodings or ())}")
        return self._encodings[index]

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a row."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row, which word of its text it belongs to; None for special tokens."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row, 0 for the first text, 1 for the second, None for special tokens."""
        return self._row(batch_index).sequence_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return which text a token belongs to."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.token_to_sequence(token % len(row))

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return which word a token belongs to."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.token_to_word(token % len(row))

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Return the characters of a token in its text."""
        row, token = self._place(batch_or_token_index, token_index)
        found = row.token_to_chars(token % len(row))
        return None if found is None else CharSpan(*found)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that holds a character of a text; None for white space or outside the text."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the word that holds a character of a text."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the tokens of a word."""
        row, word = self._place(batch_or_word_index, word_index)
        found = row.word_to_tokens(word, sequence_index)
        return None if found is None else TokenSpan(*found)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the characters of a word."""
        row, word = self._place(batch_or_word_index, word_index)
        found = row.word_to_chars(word, sequence_index)
        return None if found is None else CharSpan(*found)

    def _place(self, first: int, second: int | None) -> tuple[Encoding, int]:
        return (self._row(0), first) if second is None else (self._row(first), second)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> "BatchEncoding":
        """Turns the lists into arrays in place: 'mlx' (int32) or 'np' (int64); None leaves lists.

        Raises InputError for another type, and for rows of different lengths.
        """
        check_tensor_type(tensor_type)
        if tensor_type is None:
            return self
        for key, value in self.items():
            if isinstance(value, mx.array | np.ndarray):
                continue
            try:
                array = np.array([value] if prepend_batch_axis else value, dtype=np.int64)
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{key}: the rows differ in length and make no array; pass padding=True, "
                    "and truncation=True with max_length for long texts"
                ) from error
            self[key] = array if tensor_type == "np" else mx.array(array.astype(np.int32))
        return self


def check_tensor_type(tensor_type: str | None) -> None:
    """Raise InputError unless the arrays asked for are MLX's or numpy's."""
    if tensor_type is not None and not (isinstance(tensor_type, str) and tensor_type in ("mlx", "np")):
        raise InputError(f"return_tensors={tensor_type!r} is not available; use 'mlx' or 'np', or None for lists")
