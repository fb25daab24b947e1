"""The result of a tokenizer call: a mapping of model inputs, with the text span of every token."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from ..errors import InputError


class CharSpan(NamedTuple):
    """Span of characters in a text: `start` is inclusive, `end` exclusive."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Span of tokens in a row: `start` is inclusive, `end` exclusive."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """Model inputs by key or attribute (`inputs["input_ids"]`, `inputs.input_ids`), to be passed as `**inputs`.

    `inputs[0]` is the `tokenizers.Encoding` of row 0. The methods map between the tokens of a row and the words and
    characters of its texts; the row defaults to 0.
    """

    def __init__(self, data: dict[str, Any], encodings: list[Encoding] | None = None) -> None:
        super().__init__(data)
        self._encodings = encodings

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, int):
            return self._get_row(key)
        if isinstance(key, slice):
            return (self._encodings or [])[key]
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self:
            return super().__getitem__(name)
        raise AttributeError(f"this encoding has no {name!r}, only {', '.join(self)}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self._encodings)

    @property
    def data(self) -> dict[str, Any]:
        """The model inputs as a plain dict."""
        return dict(self)

    def to(self, device: Any = None, *, non_blocking: bool = False) -> "BatchEncoding":
        """Return self: all devices share the memory of MLX arrays."""
        return self

    @property
    def encodings(self) -> list[Encoding] | None:
        """One `tokenizers.Encoding` per row."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the mappings between tokens, words and characters are available."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """Texts per row: 1, or 2 for pairs."""
        return self._encodings[0].n_sequences if self._encodings else None

    def _get_row(self, index: int) -> Encoding:
        if self._encodings is None or not -len(self._encodings) <= index < len(self._encodings):
            raise InputError(f"row {index} is outside this batch of {len(self._encodings or ())}.")
        return self._encodings[index]

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a row."""
        return self._get_row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the word index of each token of a row; None for special tokens."""
        return self._get_row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return, for each token of a row, 0 for the first text, 1 for the second, None for special tokens."""
        return self._get_row(batch_index).sequence_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return the index of the text that a token belongs to: 0 or 1."""
        row, token = self._locate_token(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return the index of the word that a token belongs to."""
        row, token = self._locate_token(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Return the span of a token's characters in its text."""
        row, token = self._locate_token(batch_or_token_index, token_index)
        found = row.token_to_chars(token)
        return None if found is None else CharSpan(*found)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the index of the token at a character of a text; None for white space or outside the text."""
        row, char = self._locate(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the index of the word at a character of a text."""
        row, char = self._locate(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the span of a word's tokens."""
        row, word = self._locate(batch_or_word_index, word_index)
        found = row.word_to_tokens(word, sequence_index)
        return None if found is None else TokenSpan(*found)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the span of a word's characters."""
        row, word = self._locate(batch_or_word_index, word_index)
        found = row.word_to_chars(word, sequence_index)
        return None if found is None else CharSpan(*found)

    def _locate(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """Return the row and the index of a character or word in it."""
        row, index = (0, first) if second is None else (first, second)
        if index < 0:
            raise InputError(f"index {index} of a character or word is negative. Use 0 or more.")
        return self._get_row(row), index

    def _locate_token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """Return the row and the index of a token in it; a negative one counts from the end."""
        row, token = (self._get_row(0), first) if second is None else (self._get_row(first), second)
        return row, token + len(row) if -len(row) <= token < 0 else abs(token)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> "BatchEncoding":
        """Convert the lists to arrays in place: 'mlx' (int32) or 'np' (int64); None keeps lists.

        Raises:
            InputError: another type, or rows of different lengths.
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
                    f"{key}: the rows differ in length and cannot form an array. Pass padding=True, "
                    "and truncation=True with max_length for long texts."
                ) from error
            self[key] = array if tensor_type == "np" else mx.array(array.astype(np.int32))
        return self


def check_tensor_type(tensor_type: str | None) -> None:
    """Raise InputError unless `tensor_type` is 'mlx', 'np' or None."""
    if tensor_type is not None and not (isinstance(tensor_type, str) and tensor_type in ("mlx", "np")):
        raise InputError(f"return_tensors={tensor_type!r} is not available. Use 'mlx' or 'np', or None for lists.")
