"""The constraint engine's view of a vocabulary: the bytes of every token, cached on disk.

The file consists of a header, the length of each token as uint16, the bytes of all tokens, and a SHA-256 hash of the
content in its last 32 bytes. Its name is a hash of the vocabulary. Therefore incomplete files and those of other
vocabularies are never used.
"""

import bisect
import functools
import hashlib
import logging
import os
import re
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConstraintError, MlxQwen3Error
from ..files import open_atomically, read_bytes
from ..tokenizer.detokenizer import BYTE_OF_CHARACTER

logger = logging.getLogger(__name__)

MAGIC = b"mlx_qwen3 tokens 1\n"
CACHE_VARIABLE = "MLX_QWEN3_CACHE"
"""Environment variable with the folder for derived files, which can be deleted at any time."""

_lock = threading.Lock()
_known: "weakref.WeakKeyDictionary[Any, TokenTables]" = weakref.WeakKeyDictionary()


def cache_folder() -> Path:
    """Return the folder for derived files: `MLX_QWEN3_CACHE` if set, else a folder in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/mlx_qwen3"))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "mlx_qwen3"


class TokenTables:
    """The bytes of each token, and the engine's tokenizer.

    Args:
        tokenizer: a tokenizer of this package with a byte-level vocabulary.

    Attributes:
        tokens: bytes of each token.
        added: ids of the added tokens.
        eos: id of the EOS token.
        engine: the engine's tokenizer.
        generation: number of the engine's tables: 0, or 1 once masks of JSON strings are prepared.

    Raises:
        ConstraintError: the vocabulary is not byte-level.
    """

    def __init__(self, tokenizer: Any):
        from llguidance import LLTokenizer, TokenizerWrapper

        self.backend = tokenizer.backend
        added = self.backend.get_added_tokens_decoder()
        self.added = sorted(added)
        self.tokens = _load_tokens(tokenizer)
        eos = tokenizer.eos_token_id
        self.eos = len(self.tokens) - 1 if eos is None else int(eos)
        self.special_token_ids = sorted({*self.added, self.eos})
        self.tokens_by_text = {token.content: i for i, token in added.items()}
        start = time.perf_counter()
        self.engine: LLTokenizer = LLTokenizer(TokenizerWrapper(_Codec(self)), slices=[])
        self._credit = time.perf_counter() - start  # estimate of the time to prepare the masks of JSON strings
        self.generation = 0

    def spent(self, seconds: float) -> int:
        """Record the time of a slow mask; prepare the masks of JSON strings once slow masks have cost as much time.

        Returns:
            The `generation` of the engine's tables.
        """
        with _lock:
            self._credit -= seconds
            if self._credit < 0 and not self.generation:
                self.engine = self.engine.with_slices(self.engine.json_slices())
                self.generation = 1
            return self.generation

    @functools.cached_property
    def sorted_tokens(self) -> list[tuple[bytes, int]]:
        """(bytes, id) of all tokens, sorted."""
        return sorted((token, i) for i, token in enumerate(self.tokens))

    def beginning_with(self, start: bytes) -> list[int]:
        """Return the ids of the tokens that begin with the bytes `start`."""
        first = bisect.bisect_left(self.sorted_tokens, (start, -1))
        last = bisect.bisect_left(self.sorted_tokens, (start + b"\xff" * 8, -1), lo=first)
        return [i for _, i in self.sorted_tokens[first:last]]

    @functools.cached_property
    def whole_strings(self) -> list[int]:
        """Ids of the tokens that contain a complete JSON string."""
        return [i for i, token in enumerate(self.tokens) if re.search(rb'"[^"\\]*"', token)]


class _Codec:
    """The tokenizer interface that the engine expects."""

    def __init__(self, tables: TokenTables):
        special = set(tables.special_token_ids)
        # the engine recognizes special tokens by the byte 0xFF, which does not occur in texts
        self.tokens = [b"\xff" + t if i in special else t for i, t in enumerate(tables.tokens)]
        self.eos_token_id, self.bos_token_id = tables.eos, None
        self.special_token_ids = tables.special_token_ids
        self._backend = tables.backend
        names = "|".join(map(re.escape, filter(None, tables.tokens_by_text)))
        self._named = re.compile(names) if names else None

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a text; the names of added tokens are encoded as ordinary text."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        ids: list[int] = []
        start = 0
        for found in self._named.finditer(text) if self._named else ():
            ids += self._backend.encode(text[start : found.start() + 1], add_special_tokens=False).ids
            start = found.start() + 1
        return ids + self._backend.encode(text[start:], add_special_tokens=False).ids


def token_tables(tokenizer: Any) -> TokenTables:
    """Return the tables of a tokenizer, which are created on the first call.

    Raises:
        ConstraintError: the vocabulary is not byte-level.
    """
    with _lock:
        found = _known.get(tokenizer)
        if found is None:
            found = _known[tokenizer] = TokenTables(tokenizer)
        return found


def _load_tokens(tokenizer: Any) -> list[bytes]:
    """Return the bytes of each token, from the cached file if there is one, which is written otherwise."""
    backend = tokenizer.backend
    decoder = backend.decoder
    if decoder is None or "ByteLevel" not in repr(decoder):
        raise ConstraintError("the tokenizer is not byte-level BPE, which constraints require. Use a Qwen3 checkpoint.")
    added = backend.get_added_tokens_decoder()
    size = max(backend.get_vocab_size(with_added_tokens=True), max(added, default=0) + 1)
    path = cache_folder() / "tokenizers" / f"{_hash_vocabulary(tokenizer, size)}.tokens"
    found = _read(path)
    if found is not None and len(found) == size:
        return found
    tokens = _convert_to_bytes(list(map(backend.id_to_token, range(size))), set(added))
    _write(path, tokens)
    return tokens


def _hash_vocabulary(tokenizer: Any, size: int) -> str:
    """Return a hash of a vocabulary: of the file that it was read from, which is faster, or else of its tokens."""
    backend, file = tokenizer.backend, getattr(tokenizer, "vocabulary_file", None)
    added = sorted((i, token.content) for i, token in backend.get_added_tokens_decoder().items())
    digest = hashlib.sha256(f"{size} {added}".encode("utf-8", "replace"))
    if file is not None and file.is_current():
        try:
            digest.update(read_bytes(file.path, error=ConstraintError))
            return digest.hexdigest()[:40]
        except MlxQwen3Error:
            pass  # the file has been removed in the meantime
    names = (backend.id_to_token(i) or "" for i in range(size))
    digest.update("\0".join(names).encode("utf-8", "replace"))
    return digest.hexdigest()[:40]


def _convert_to_bytes(names: list[str | None], added: set[int]) -> list[bytes]:
    table: dict[int, int] = {ord(character): byte for character, byte in BYTE_OF_CHARACTER.items()}
    tokens = []
    for i, name in enumerate(names):
        if i in added or not name:
            tokens.append((name or "").encode("utf-8", "replace"))
            continue
        try:
            tokens.append(name.translate(table).encode("latin-1"))
        except UnicodeEncodeError:  # a character that does not represent a byte: the name is plain text
            tokens.append(name.encode("utf-8", "replace"))
    return tokens


def _read(path: Path) -> list[bytes] | None:
    try:
        content = read_bytes(path, error=ConstraintError)
    except MlxQwen3Error:
        return None
    body, digest = content[:-32], content[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    start = len(MAGIC) + 4
    count = int.from_bytes(body[len(MAGIC) : start], "little")
    ends = np.cumsum(np.frombuffer(body, "<u2", count, start), dtype=np.int64).tolist()
    blob = body[start + 2 * count :]
    return [blob[first:last] for first, last in zip([0, *ends], ends, strict=False)]


def _write(path: Path, tokens: list[bytes]) -> None:
    if max(map(len, tokens), default=0) > 0xFFFF:
        return
    lengths = np.array([len(token) for token in tokens], "<u2").tobytes()
    body = MAGIC + len(tokens).to_bytes(4, "little") + lengths + b"".join(tokens)
    try:
        with open_atomically(path, error=ConstraintError) as file:
            file.write(body + hashlib.sha256(body).digest())
    except MlxQwen3Error as problem:
        logger.warning(
            "token tables cannot be cached on disk: %s Set %s to a writable folder.",
            f"{str(problem).rstrip('.')}.",
            CACHE_VARIABLE,
        )
