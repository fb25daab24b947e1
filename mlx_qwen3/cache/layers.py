"""One layer's keys and values: a growing store, and one that keeps only a sliding window.

Both keep keys in the order of their slots, so that masks stay simple and the newest tokens can be taken back.
"""

from abc import ABC, abstractmethod
from typing import Any, Self

import mlx.core as mx

from ..errors import CacheError
from ..layers.attention import attend
from ..layers.masks import Mask

STEP = 256
"""Slots by which a store grows."""


class LayerCache(ABC):
    """What attention asks of a layer's store. `offset` counts every token seen, kept or not."""

    offset: int = 0

    @abstractmethod
    def slot_ranges(self, new: int) -> tuple[tuple[int, int], ...]:
        """The slots of the keys that `update` will return when given `new` tokens."""

    @abstractmethod
    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Stores (B, K, L, D) and returns every key and value that these L tokens may look at, (B, K, S, D)."""

    def attend(self, queries: mx.array, keys: Any, values: Any, scale: float, mask: Mask) -> mx.array:
        """Attention (B, H, L, D) over what `update` returned."""
        return attend(queries, keys, values, scale, mask)

    def unpacked(self, keys: Any, values: Any) -> tuple[mx.array, mx.array]:
        """What `update` returned, as plain arrays (B, K, S, D)."""
        return keys, values

    @property
    @abstractmethod
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        """The kept keys and values, (B, K, n, D)."""

    @property
    @abstractmethod
    def earliest(self) -> int:
        """The smallest offset that `trim` can go back to."""

    @abstractmethod
    def trim(self, count: int) -> None:
        """Forgets the newest `count` tokens. Raises `CacheError` when they cannot be taken back."""

    @abstractmethod
    def copy(self) -> Self:
        """An independent store with the same content; arrays are shared until one of them is written."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, room to grow included."""

    def _check_trim(self, count: int) -> None:
        if count < 0 or self.offset - count < self.earliest:
            raise CacheError(
                f"cannot take back {count} of {self.offset} cached tokens: the cache still reaches back to "
                f"{self.earliest}; start again from an empty cache"
            )


class GrowingLayer(LayerCache):
    """Keeps every token."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def slot_ranges(self, new: int) -> tuple[tuple[int, int], ...]:
        return ((0, self.offset + new),)

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        start, stop = self.offset, self.offset + keys.shape[2]
        self.offset = stop
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        if stop > self.keys.shape[2]:
            room = -(-(stop - start) // STEP) * STEP
            self.keys = _with_room(self.keys[:, :, :start], room)
            self.values = _with_room(self.values[:, :, :start], room)
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        if self.keys is None or self.values is None:
            return None, None
        return self.keys[:, :, : self.offset], self.values[:, :, : self.offset]

    @property
    def earliest(self) -> int:
        return 0

    def trim(self, count: int) -> None:
        self._check_trim(count)
        self.offset -= count

    def copy(self) -> Self:
        twin = type(self)()
        twin.keys, twin.values, twin.offset = _twin(self.keys), _twin(self.values), self.offset
        return twin

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


class SlidingLayer(LayerCache):
    """Keeps the newest `window − 1` tokens, and `slack` more that can still be taken back.

    The store is a buffer that is filled in order; when it is full, what must be kept moves to its front. That costs
    a copy of the window every `STEP` tokens and keeps slots in order.
    """

    def __init__(self, window: int, slack: int = 0) -> None:
        self.window = window
        self.slack = slack
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0
        self._first = 0  # the slot at the front of the buffer

    @property
    def _kept(self) -> int:
        return self.window - 1 + self.slack

    def _visible_from(self) -> int:
        return max(self._first, self.offset - (self.window - 1))

    def slot_ranges(self, new: int) -> tuple[tuple[int, int], ...]:
        return ((self._visible_from(), self.offset + new),)

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        visible, new = self._visible_from(), keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values, self.offset = keys, values, new
            self._drop_old()
            return keys, values
        start = self.offset - self._first
        if start + new > self.keys.shape[2]:
            kept = max(self._first, self.offset - self._kept) - self._first
            room = -(-new // STEP) * STEP
            self.keys = _with_room(self.keys[:, :, kept:start], room)
            self.values = _with_room(self.values[:, :, kept:start], room)
            self._first += kept
            start -= kept
        self.keys[:, :, start : start + new] = keys
        self.values[:, :, start : start + new] = values
        self.offset += new
        front, stop = visible - self._first, start + new
        result = self.keys[:, :, front:stop], self.values[:, :, front:stop]
        self._drop_old()
        return result

    def _drop_old(self) -> None:
        """After a chunk longer than the window, lets go of what no later token will see."""
        assert self.keys is not None and self.values is not None
        if self.keys.shape[2] <= self._kept + 2 * STEP:
            return
        first = max(self._first, self.offset - self._kept)
        a, b = first - self._first, self.offset - self._first
        self.keys, self.values = self.keys[:, :, a:b], self.values[:, :, a:b]
        self._first = first

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        if self.keys is None or self.values is None:
            return None, None
        a, b = self._visible_from() - self._first, self.offset - self._first
        return self.keys[:, :, a:b], self.values[:, :, a:b]

    @property
    def earliest(self) -> int:
        """Going back needs the window before the new end, unless the buffer still holds the start."""
        return 0 if self._first == 0 else self._first + self.window - 1

    def trim(self, count: int) -> None:
        self._check_trim(count)
        self.offset -= count

    def copy(self) -> Self:
        twin = type(self)(self.window, self.slack)
        twin.keys, twin.values = _twin(self.keys), _twin(self.values)
        twin.offset, twin._first = self.offset, self._first
        return twin

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


def _with_room(array: mx.array, room: int) -> mx.array:
    shape = (*array.shape[:2], room, array.shape[3])
    return mx.concatenate([array, mx.zeros(shape, dtype=array.dtype)], axis=2)


def _twin(array: mx.array | None) -> mx.array | None:
    # indexing makes a new handle: writing into one of them leaves the other as it was
    return None if array is None else array[:]
