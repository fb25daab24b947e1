"""The interface of a layer's cache, and the layer cache that keeps every token.

Keys are stored in the order of their slots, which keeps masks simple and lets the newest tokens be trimmed.
"""

from abc import ABC, abstractmethod
from typing import Any, Self

import mlx.core as mx

from ..errors import CacheError
from ..layers.attention import align_slots, attend, attends_step_by_step
from ..layers.devices import on_cuda
from ..layers.masks import Mask, SlotRanges, with_hidden_slots
from .packing import KVFormat
from .slots import PackedSlots, PlainSlots, Slots

STEP = 264
"""Number of slots by which a layer cache grows.

Not a multiple of 256: for those, MLX's CUDA backend passes single-token attention to cuDNN, which was slower than
MLX's own kernel up to about 4,000 slots and faster at 16,000 (H200, benchmarks/NOTES.md).
"""

LONG, LONG_STEP = 8192, 256
"""Above LONG slots, a cache with the default step grows by LONG_STEP instead."""

LARGE_GROUP = 4
"""Query heads per key head from which caches grow by `LONG_STEP` on CUDA: MLX's own kernel reads the keys once per
query head, cuDNN once per group (4B, one token after 6,000: 6.5 ms and 4.4 ms, H100, benchmarks/NOTES.md)."""


def step_for(config: Any) -> int:
    """Return the number of slots by which the caches of a model grow on this device."""
    if not on_cuda():
        return STEP
    return LONG_STEP if config.num_attention_heads >= LARGE_GROUP * config.num_key_value_heads else STEP


def padded_capacity(tokens: int, step: int) -> int:
    """Return the capacity of a growing cache that is reallocated for `tokens`, in whole steps.

    Beyond 16 steps it is 1/16 more. The amortized cost is then about 16 copies per token at most, and the unused
    capacity 1/16 plus one step.
    """
    wanted = tokens + 1 + (tokens // 16 if tokens > 16 * step else 0)
    if step == STEP and wanted > LONG:
        step = LONG_STEP
    return -(-wanted // step) * step


class LayerCache(ABC):
    """The keys and values of one layer.

    Args:
        format: quantization of the stored values; None for none.
        packed_from: with `format`, quantize only once more tokens than this have been seen.
        step: number of slots by which the storage grows.

    Attributes:
        offset: number of tokens seen, kept or not.
        sinks: number of first tokens that every query sees regardless of the window.
    """

    sinks: int = 0

    def __init__(self, format: KVFormat | None = None, packed_from: int = 0, step: int = STEP) -> None:
        self.format = format
        self.packed_from = packed_from
        self.step = step
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.offset = 0
        pack_now = self.format is not None and self.packed_from <= 0
        self.slots: Slots = PackedSlots(self.format) if pack_now and self.format else PlainSlots()
        self._limit = 0  # `update` writes in place up to this slot

    @property
    def window(self) -> int | None:
        """Number of slots that a query may see, itself included, sinks excluded; None for all."""
        return None

    @abstractmethod
    def capacity_at(self, tokens: int) -> int:
        """Return the largest number of slots held between calls once `tokens` tokens have been seen."""

    @abstractmethod
    def slot_ranges(self, new: int) -> SlotRanges:
        """Return the slots of the keys that `update` will return for `new` tokens."""

    @abstractmethod
    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Store keys and values (B, K, L, D) and return those that these L tokens may attend to.

        Returns:
            (B, K, S, D) each, or packed triples. A quantized cache returns the quantized values, these L tokens
            included.
        """

    def attend(self, queries: mx.array, keys: Any, values: Any, scale: float, mask: Mask) -> mx.array:
        """Return attention (B, H, L, D) over what `update` returned."""
        if isinstance(self.slots, PackedSlots):
            return self.slots.format.attend(queries, keys, values, scale, mask)
        return attend(queries, keys, values, scale, mask, cached=True)

    def unpack(self, keys: Any, values: Any) -> tuple[mx.array, mx.array]:
        """Return what `update` returned, as plain arrays (B, K, S, D)."""
        return self.slots.unpack(keys, values)

    @property
    def used(self) -> int:
        """Number of written slots."""
        return self.offset

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        """The keys and values that the next token may attend to, (B, K, n, D), unpacked."""
        if not self.slots.arrays:
            return None, None
        return self.slots.unpack(*self.slots.view(0, self.offset))

    @property
    @abstractmethod
    def earliest(self) -> int:
        """The smallest offset above 0 that `trim` can restore."""

    def trim(self, count: int) -> None:
        """Drop the newest `count` tokens. Raise `CacheError` if the layer no longer holds the tokens before them."""
        if 0 <= count <= self.offset and self.offset - count >= self.earliest:
            self.offset -= count
        elif count == self.offset:
            self.clear()
        else:
            raise CacheError(
                f"cannot drop {count} of {self.offset} cached tokens: the cache can be trimmed only to "
                f"{self.earliest}. Start again from an empty cache."
            )

    @abstractmethod
    def copy(self) -> Self:
        """Return an independent copy; arrays are shared until one of the two is written."""

    def snapshot(self) -> "LayerCache | None":
        """Return a copy to restore at this offset; None where `trim` suffices."""
        return self.copy()

    @property
    def nbytes(self) -> int:
        """Bytes held, spare capacity included."""
        return self.slots.nbytes

    def select_rows(self, rows: list[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self.slots = self.slots.select_rows(rows)

    def repeat(self, count: int) -> None:
        """Repeat every row `count` times."""
        self.slots = self.slots.repeat(count)

    # serialization

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        fmt = None if self.format is None else [self.format.bits, self.format.group_size]
        return {"form": fmt, "packed_from": self.packed_from, "step": self.step}

    def adopt(self, arrays: list[mx.array], packed: bool, offset: int) -> None:
        """Adopt the written slots of a layer cache with the same settings."""
        self.slots = PackedSlots(self.format, arrays) if packed and self.format else PlainSlots(arrays)
        self.offset = offset
        self._limit = self._writable(self.slots.capacity)

    def _pack_if_due(self, stop: int) -> None:
        if self.format is not None and isinstance(self.slots, PlainSlots) and stop > self.packed_from:
            self.slots = self.slots.pack(self.format)

    def _writable(self, stop: int) -> int:
        """Return the slot limit of in-place writes for a capacity of `stop` slots: where quantization is due, if that
        comes first.
        """
        pending = self.format is not None and isinstance(self.slots, PlainSlots)
        return min(stop, self.packed_from) if pending else stop

    def _copy_into(self, target: Self) -> Self:
        target.slots, target.offset, target._limit = self.slots.copy(), self.offset, self._limit
        return target


class GrowingLayer(LayerCache):
    """Keeps every token."""

    def capacity_at(self, tokens: int) -> int:
        return padded_capacity(tokens, self.step)

    def slot_ranges(self, new: int) -> SlotRanges:
        return ((0, self.offset + new),)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        start = self.offset
        stop = self.offset = start + keys.shape[2]
        if stop <= self._limit:
            return self.slots.put(keys, values, start, stop, 0)
        self._pack_if_due(stop)
        if stop > self.slots.capacity:
            room = padded_capacity(stop, self.step) - stop
            self.slots = self.slots.rebuild([(0, start)], self.slots.encode(keys, values), room)
            self._limit = self._writable(self.slots.capacity)
            return self.slots.view(0, stop)
        self._limit = self._writable(self.slots.capacity)
        return self.slots.put(keys, values, start, stop, 0)

    def attend(self, queries: mx.array, keys: Any, values: Any, scale: float, mask: Mask) -> mx.array:
        if isinstance(self.slots, PlainSlots) and attends_step_by_step(queries, keys):
            hidden = min(align_slots(self.offset), self.slots.capacity) - self.offset
            if hidden:
                # unwritten slots cost nothing, copying all the others would
                mask = with_hidden_slots(mask, queries.shape[2], self.offset, hidden)
                keys, values = self.slots.view(0, self.offset + hidden)
        return super().attend(queries, keys, values, scale, mask)

    @property
    def earliest(self) -> int:
        return 0

    def copy(self) -> Self:
        return self._copy_into(type(self)(self.format, self.packed_from, self.step))

    def snapshot(self) -> None:
        return None
