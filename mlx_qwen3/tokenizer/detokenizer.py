"""Incremental detokenization: convert token ids to text one id at a time, in linear time.

The segments joined equal `decode` of all ids. Independent of generation.
"""

import codecs
import re
from collections.abc import Callable
from typing import Protocol

import tokenizers

from ..errors import InputError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _build_byte_table() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE, which spells a byte as itself or as U+0100 and above.

    Source: `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _build_byte_table()


class TokenBytes(dict[int, bytes]):
    """Bytes of each token id in a byte-level vocabulary, computed on first access.

    All detokenizers of a tokenizer share one table, so that no request has to compute 150,000 entries. An id outside
    the vocabulary has no bytes: a model's output may have more rows than the vocabulary has tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, token: int) -> bytes:
        if token < 0:
            raise InputError(f"token id {token} is negative. Use ids from 0.")
        text = self._backend.id_to_token(token) or ""
        try:
            value = bytes([BYTE_OF_CHARACTER[character] for character in text])
        except KeyError:  # an added token with other characters is plain text
            value = text.encode()
        self[token] = value
        return value


class Detokenizer(Protocol):
    """Convert ids to text one id at a time.

    After `finalize()`, `text` and the joined segments equal `decode` of all ids without
    `clean_up_tokenization_spaces`.
    """

    tokens: list[int]

    @property
    def text(self) -> str:
        """All text so far."""
        ...

    @property
    def last_segment(self) -> str:
        """The text added since the last read; a character is withheld until its last byte arrives."""
        ...

    def add_token(self, token: int) -> None:
        """Add the next id."""
        ...

    def finalize(self) -> None:
        """Flush withheld text; incomplete characters become U+FFFD."""
        ...

    def reset(self) -> None:
        """Clear all ids and text."""
        ...


class _Segments:
    """Store the read and unread segments of text."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.tokens: list[int] = []
        self._read: list[str] = []
        self._unread: list[str] = []

    @property
    def text(self) -> str:
        self._read = ["".join(self._read)]
        return "".join([*self._read, *self._unread])

    @property
    def last_segment(self) -> str:
        segment = "".join(self._unread)
        if segment:
            self._read.append(segment)
            self._unread.clear()
        return segment


class ByteLevelDetokenizer(_Segments):
    """Detokenizer of byte-level vocabularies: map tokens to bytes and decode UTF-8 incrementally."""

    def __init__(self, token_bytes: TokenBytes, skipped: frozenset[int] = frozenset()) -> None:
        self._bytes = token_bytes
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._utf8.reset()

    def add_token(self, token: int) -> None:
        token = int(token)
        self.tokens.append(token)
        if token not in self._skipped and (text := self._utf8.decode(self._bytes[token])):
            self._unread.append(text)

    def finalize(self) -> None:
        if text := self._utf8.decode(b"", final=True):
            self._unread.append(text)


class WindowDetokenizer(_Segments):
    """Detokenizer of vocabularies whose decoder depends on at most one previous token, such as WordPiece.

    The text of a token is the difference that it makes after the previous token. Byte tokens and text that ends in
    U+FFFD are withheld until the following tokens complete them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, skipped: frozenset[int] = frozenset()) -> None:
        self._backend = backend
        self._skipped = skipped
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._context: list[int] = []
        self._pending: list[int] = []

    def add_token(self, token: int) -> None:
        token = int(token)
        if token < 0:
            raise InputError(f"token id {token} is negative. Use ids from 0.")
        self.tokens.append(token)
        written = self._backend.id_to_token(token)
        if written is None or token in self._skipped:
            return
        self._pending.append(token)
        if not _BYTE_TOKEN.fullmatch(written):
            self._emit(lambda text: not text.endswith("\ufffd"))

    def finalize(self) -> None:
        if self._pending:
            self._emit(lambda text: True)

    def _emit(self, complete: Callable[[str], bool]) -> None:
        before = self._backend.decode(self._context, skip_special_tokens=False)
        text = self._backend.decode(self._context + self._pending, skip_special_tokens=False)[len(before) :]
        if complete(text):
            self._unread.append(text)
            self._context, self._pending = self._pending[-1:], []
