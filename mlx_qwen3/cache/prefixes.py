"""Caches of earlier prompts, reused for requests with the same beginning, within a limit of bytes."""

import logging
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .cache import Cache

logger = logging.getLogger(__name__)


class PrefixCache:
    """Keep caches by their token ids and find the one that shares the longest prefix with a new prompt.

    The limit holds after every `insert`: the least recently used entries are dropped. Entries share arrays with the
    caches they were copied from until one is written, and are counted in full.

    Args:
        max_bytes: limit of the bytes of all entries together.
    """

    def __init__(self, max_bytes: int):
        if max_bytes < 0:
            raise InputError(f"max_bytes is {max_bytes}, expected at least 0.")
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[np.ndarray, Cache]] = OrderedDict()  # the most recently used last
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._nbytes

    def insert(self, ids: Sequence[int], cache: Cache) -> bool:
        """Keep a copy of `cache`, which holds exactly `ids`; return whether it fits the limit.

        With sliding layers, take a `snapshot()` where other prompts may diverge, such as at the end of the system
        prompt: an entry can be cut only there, and where the window has not moved.

        Raises:
            InputError: ids whose number differs from the cached tokens, or a cache of several rows.
        """
        tokens = _as_ids(ids)
        if len(tokens) != cache.offset or cache.batch_size not in (None, 1):
            raise InputError(
                f"a prefix of {len(tokens)} ids does not belong to a cache of {cache.batch_size or 0} rows "
                f"and {cache.offset} tokens."
            )
        if not len(tokens):
            return False
        if cache.nbytes > self.max_bytes:
            logger.info("a prefix of %d bytes is above the limit of %d bytes", cache.nbytes, self.max_bytes)
            return False
        for key, (known, _) in list(self._entries.items()):
            covered = len(known) <= len(tokens) and _common(known, tokens) == len(known)
            if covered and cache.reach(len(known)) == len(known):
                self._drop(key)
        copy = cache.copy()
        self._entries[tokens.tobytes()] = (tokens, copy)
        self._nbytes += copy.nbytes
        while self._nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def longest_prefix(self, ids: Sequence[int]) -> tuple[Cache | None, int]:
        """Return a copy of the cache that holds the longest prefix of `ids`, and the length of that prefix; (None, 0)
        without one.

        To have one token left to compute, pass `ids[:-1]`.
        """
        tokens = _as_ids(ids)
        best, length = None, 0
        for key, (known, cache) in self._entries.items():
            usable = cache.reach(_common(known, tokens))
            if usable > length:
                best, length = key, usable
        if best is None:
            return None, 0
        self._entries.move_to_end(best)
        found = self._entries[best][1].copy()
        found.rewind(length)
        return found, length

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()
        self._nbytes = 0

    def _drop(self, key: bytes) -> None:
        _, cache = self._entries.pop(key)
        self._nbytes -= cache.nbytes


def _as_ids(ids: Sequence[int]) -> np.ndarray:
    tokens = np.asarray(ids, dtype=np.int32)
    if tokens.ndim != 1:
        raise InputError(f"a prefix has shape {tokens.shape}, expected one row of ids.")
    return tokens


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many ids two prompts share from the start."""
    size = min(len(a), len(b))
    if not size or a[0] != b[0]:
        return 0
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
