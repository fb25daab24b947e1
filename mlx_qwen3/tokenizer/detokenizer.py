"""Text streamed from token ids: what `decode` of all ids gives, a piece at a time, in linear time.

Knows the decoders of the `tokenizers` package; nothing of generation.
"""

import codecs
import re
from collections.abc import Callable
from typing import Protocol

import tokenizers

from ..errors import InputError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 on.

    Source: `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


class TokenBytes(dict[int, bytes]):
    """Token id -> the bytes that it stands for in a byte-level vocabulary, each computed when first asked
    for.

    One table serves every detokenizer of a tokenizer, so that a request never waits for 150,000 entries. An
    id outside the vocabulary stands for no bytes: a model's output may have more rows than the vocabulary
    has tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, token: int) -> bytes:
        if token < 0:
            raise InputError(f"token id {token} is negative")
        text = self._backend.id_to_token(token) or ""
        try:
            value = bytes([BYTE_OF_CHARACTER[character] for character in text])
        except KeyError:  # an added token may hold characters that stand for no byte: it is plain text
            value = text.encode()
        self[token] = value
        return value


class Detokenizer(Protocol):
    """Turns ids into text one id at a time.

    After `finalize()` the segments joined, and `text`, equal the tokenizer's `decode` of all the ids without
    `clean_up_tokenization_spaces`.
    """

    tokens: list[int]

    @property
    def text(self) -> str:
        """All the text so far."""
        ...

    @property
    def last_segment(self) -> str:
        """The text that came since this was last read; a character is held back until its last byte."""
        ...

    def add_token(self, token: int) -> None:
        """Take the next id."""
        ...

    def finalize(self) -> None:
        """End the text: what was held back comes out, bytes that form no character as U+FFFD."""
        ...

    def reset(self) -> None:
        """Drop everything added."""
        ...


class _Segments:
    """Keeps the pieces of text that came out, and those not yet read."""

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
    """Streams a byte-level vocabulary: each token is some bytes, and UTF-8 is decoded as the bytes come."""

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
    """Streams any vocabulary whose decoder looks no further back than one token, such as WordPiece.

    The text of a token is what it adds to the text of the token before it. A token that stands for a byte,
    and text that ends in U+FFFD, are held back until what follows completes them.
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
            raise InputError(f"token id {token} is negative")
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
