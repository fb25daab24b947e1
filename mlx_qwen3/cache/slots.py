"""The arrays behind one layer's cache: keys and values by slot, plain or packed, independent of windows.

Every array has rows on axis 0 and slots on axis 2. Writing replaces the handle, so arrays shared with another cache or
a caller never change; MLX writes in place when there is no other reference.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx

from .packing import KVFormat

ALL = slice(None)


class Slots(ABC):
    """Keys and values of consecutive slots. An empty list of arrays means that nothing is stored yet."""

    def __init__(self, arrays: Sequence[mx.array] = ()):
        self.arrays = list(arrays)

    @property
    def capacity(self) -> int:
        """Number of slots, written or not."""
        return self.arrays[0].shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, written or not."""
        return sum(array.nbytes for array in self.arrays)

    @abstractmethod
    def encode(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Convert keys and values (B, K, L, D) to the format of `arrays`."""

    @abstractmethod
    def put(self, keys: mx.array, values: mx.array, start: int, stop: int, first: int) -> tuple[Any, Any]:
        """Write slots start … stop−1 and return slots first … stop−1, as `view` does."""

    @abstractmethod
    def view(self, first: int, stop: int) -> tuple[Any, Any]:
        """Return the stored slots first … stop−1: arrays (B, K, S, D), or packed triples."""

    @abstractmethod
    def unpack(self, keys: Any, values: Any) -> tuple[mx.array, mx.array]:
        """Convert the result of `view` to plain arrays (B, K, S, D)."""

    @abstractmethod
    def _new_like(self, arrays: Sequence[mx.array]) -> Self:
        """Return slots of the same format with other arrays."""

    def rebuild(self, pieces: Sequence[tuple[int, int]], new: Sequence[mx.array], room: int) -> Self:
        """Return new slots: ranges of these, then new encoded ones, then `room` unwritten ones."""
        joined = []
        for i, fresh in enumerate(new):
            parts = [self.arrays[i][:, :, a:b] for a, b in pieces if b > a]
            if parts:
                fresh = fresh.astype(parts[0].dtype)
            parts.append(fresh)
            if room:
                parts.append(mx.zeros((*fresh.shape[:2], room, fresh.shape[3]), dtype=fresh.dtype))
            joined.append(mx.concatenate(parts, axis=2))
        return self._new_like(joined)

    def cut(self, pieces: Sequence[tuple[int, int]]) -> Self:
        """Return new slots with ranges of these and no spare capacity."""
        pieces = [(a, b) for a, b in pieces if b > a] or [(0, 0)]
        return self._new_like([mx.concatenate([x[:, :, a:b] for a, b in pieces], axis=2) for x in self.arrays])

    def copy(self) -> Self:
        """Return slots that share these arrays until one of the two is written."""
        return self._new_like([array[:] for array in self.arrays])

    def select_rows(self, rows: Sequence[int]) -> Self:
        """Return these rows. Rows that keep their index are not copied when most of them do."""
        if not self.arrays:
            return self.copy()
        moved = [(to, source) for to, source in enumerate(rows) if to != source]
        if len(rows) > self.arrays[0].shape[0] or 2 * len(moved) > len(rows):
            index = mx.array(list(rows))
            return self._new_like([mx.take(array, index, axis=0) for array in self.arrays])
        kept = []
        for array in self.arrays:
            reordered = array[: len(rows)]
            for to, source in moved:
                reordered[to : to + 1] = array[source : source + 1]
            kept.append(reordered)
        return self._new_like(kept)

    def repeat(self, count: int) -> Self:
        """Repeat every row `count` times; a single row is shared until the first write."""
        if self.arrays and self.arrays[0].shape[0] == 1:
            return self._new_like([mx.broadcast_to(array, (count, *array.shape[1:])) for array in self.arrays])
        return self._new_like([mx.repeat(array, count, axis=0) for array in self.arrays])


class PlainSlots(Slots):
    """Unquantized keys and values."""

    def encode(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        return [keys, values]

    def put(self, keys: mx.array, values: mx.array, start: int, stop: int, first: int) -> tuple[mx.array, mx.array]:
        all_keys, all_values = self.arrays
        written, read = (ALL, ALL, slice(start, stop)), (ALL, ALL, slice(first, stop))
        all_keys[written] = keys
        all_values[written] = values
        return all_keys[read], all_values[read]

    def view(self, first: int, stop: int) -> tuple[mx.array, mx.array]:
        keys, values = self.arrays
        return keys[:, :, first:stop], values[:, :, first:stop]

    def unpack(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def pack(self, fmt: KVFormat) -> "PackedSlots":
        """Return the same slots, quantized."""
        pack = PackedSlots(fmt)
        return PackedSlots(fmt, pack.encode(*self.arrays)) if self.arrays else pack

    def _new_like(self, arrays: Sequence[mx.array]) -> Self:
        return type(self)(arrays)


class PackedSlots(Slots):
    """Quantized keys and values: bits, scales and biases of the keys, then those of the values."""

    def __init__(self, fmt: KVFormat, arrays: Sequence[mx.array] = ()):
        super().__init__(arrays)
        self.format = fmt

    def encode(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        return [*self.format.pack(keys), *self.format.pack(values)]

    def put(self, keys: mx.array, values: mx.array, start: int, stop: int, first: int) -> tuple[Any, Any]:
        for array, new in zip(self.arrays, self.encode(keys, values), strict=True):
            array[:, :, start:stop] = new
        return self.view(first, stop)

    def view(self, first: int, stop: int) -> tuple[Any, Any]:
        cut = [array[:, :, first:stop] for array in self.arrays]
        return tuple(cut[:3]), tuple(cut[3:])

    def unpack(self, keys: Any, values: Any) -> tuple[mx.array, mx.array]:
        return self.format.unpack(keys), self.format.unpack(values)

    def _new_like(self, arrays: Sequence[mx.array]) -> Self:
        return type(self)(self.format, arrays)
