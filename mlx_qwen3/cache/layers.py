"""What attention asks of a layer's store, and the store that keeps every token.

Stores keep keys in the order of their slots, so that masks stay simple and the newest tokens can be taken back.
"""

from abc import ABC, abstractmethod
from typing import Any, Self

import mlx.core as mx

from ..errors import CacheError
from ..layers.attention import aligned, attend, attends_step_by_step
from ..layers.devices import on_cuda
from ..layers.masks import Mask, SlotRanges, with_hidden_slots
from .packing import KVFormat
from .slots import PackedSlots, PlainSlots, Slots

STEP = 264
"""Slots by which a store grows.

Not a multiple of 256: for those MLX's CUDA backend leaves attention of one token to cuDNN, which took longer than
MLX's own kernel over stores of up to some 4,000 slots, and less time over 16,000 (H200, benchmarks/RESULTS.md).
"""

LONG, LONG_STEP = 8192, 256
"""Above LONG slots, a store with the default step grows by LONG_STEP instead."""

LARGE_GROUP = 4
"""Query heads per key head from which stores grow by `LONG_STEP` on CUDA: MLX's own kernel reads the keys once per
query head, cuDNN once per group (4B, a token behind 6,000: 6.5 ms and 4.4 ms, H100, benchmarks/RESULTS.md)."""


def step_for(config: Any) -> int:
    """Return the slots by which the stores of a model grow on this device."""
    if not on_cuda():
        return STEP
    return LONG_STEP if config.num_attention_heads >= LARGE_GROUP * config.num_key_value_heads else STEP


def roomy(tokens: int, step: int) -> int:
    """Return the slots of a growing store that is rebuilt for `tokens`: room for a sixteenth more, in whole steps.

    Copies then add up to at most some sixteen per token, and unused room to a sixteenth and a step.
    """
    wanted = tokens + 1 + tokens // 16
    if step == STEP and wanted > LONG:
        step = LONG_STEP
    return -(-wanted // step) * step


class LayerCache(ABC):
    """One layer's keys and values.

    Args:
        form: packs what is stored; None keeps it as it is.
        packed_from: with `form`, stays plain until more tokens than this have been seen.
        step: slots by which the store grows.

    Attributes:
        offset: tokens seen, kept or not.
        sinks: the first tokens, which every query may see whatever the window.
    """

    sinks: int = 0

    def __init__(self, form: KVFormat | None = None, packed_from: int = 0, step: int = STEP) -> None:
        self.form = form
        self.packed_from = packed_from
        self.step = step
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.offset = 0
        pack_now = self.form is not None and self.packed_from <= 0
        self.slots: Slots = PackedSlots(self.form) if pack_now and self.form else PlainSlots()
        self._limit = 0  # the slot up to which `update` may simply write

    @property
    def window(self) -> int | None:
        """How many slots a query may see, itself included and the sinks not counted; None for all."""
        return None

    @abstractmethod
    def capacity_at(self, tokens: int) -> int:
        """Return the most slots that the store holds between calls once it has seen `tokens`."""

    @abstractmethod
    def slot_ranges(self, new: int) -> SlotRanges:
        """Return the slots of the keys that `update` will return when given `new` tokens."""

    @abstractmethod
    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Store (B, K, L, D) and return the keys and values that these L tokens may look at.

        Returns:
            (B, K, S, D) each, or packed triples. A quantized store returns what it stored, these L tokens included.
        """

    def attend(self, queries: mx.array, keys: Any, values: Any, scale: float, mask: Mask) -> mx.array:
        """Return attention (B, H, L, D) over what `update` returned."""
        if isinstance(self.slots, PackedSlots):
            return self.slots.form.attend(queries, keys, values, scale, mask)
        return attend(queries, keys, values, scale, mask)

    def unpacked(self, keys: Any, values: Any) -> tuple[mx.array, mx.array]:
        """Return what `update` returned, as plain arrays (B, K, S, D)."""
        return self.slots.unpacked(keys, values)

    @property
    def used(self) -> int:
        """How many slots are written."""
        return self.offset

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        """The keys and values that the next token may look at, (B, K, n, D), unpacked."""
        if not self.slots.arrays:
            return None, None
        return self.slots.unpacked(*self.slots.view(0, self.offset))

    @property
    @abstractmethod
    def earliest(self) -> int:
        """The smallest offset above 0 that `trim` can go back to."""

    def trim(self, count: int) -> None:
        """Drop the newest `count` tokens. Raises `CacheError` when they cannot be taken back."""
        if 0 <= count <= self.offset and self.offset - count >= self.earliest:
            self.offset -= count
        elif count == self.offset:
            self.clear()
        else:
            raise CacheError(
                f"cannot take back {count} of {self.offset} cached tokens: the cache reaches back only to "
                f"{self.earliest}; start again from an empty cache"
            )

    @abstractmethod
    def copy(self) -> Self:
        """Return an independent store with the same content; arrays are shared until one of the two is written."""

    def snapshot(self) -> "LayerCache | None":
        """Return a copy to come back to at this offset; None where `trim` will do."""
        return self.copy()

    @property
    def nbytes(self) -> int:
        """Bytes held, room to grow included."""
        return self.slots.nbytes

    def select_rows(self, rows: list[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self.slots = self.slots.select_rows(rows)

    def repeat(self, count: int) -> None:
        """Make `count` rows of every row."""
        self.slots = self.slots.repeat(count)

    # what a file needs

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        form = None if self.form is None else [self.form.bits, self.form.group_size]
        return {"form": form, "packed_from": self.packed_from, "step": self.step}

    def adopt(self, arrays: list[mx.array], packed: bool, offset: int) -> None:
        """Adopt the written slots of a store with the same settings."""
        self.slots = PackedSlots(self.form, arrays) if packed and self.form else PlainSlots(arrays)
        self.offset = offset
        self._limit = self._writable(self.slots.capacity)

    def _pack_if_due(self, stop: int) -> None:
        if self.form is not None and isinstance(self.slots, PlainSlots) and stop > self.packed_from:
            self.slots = self.slots.packed(self.form)

    def _writable(self, stop: int) -> int:
        """Return the limit of plain writing for a store of `stop` slots: where packing falls due, if that comes
        first.
        """
        pending = self.form is not None and isinstance(self.slots, PlainSlots)
        return min(stop, self.packed_from) if pending else stop

    def _copy_into(self, target: Self) -> Self:
        target.slots, target.offset, target._limit = self.slots.copy(), self.offset, self._limit
        return target


class GrowingLayer(LayerCache):
    """Keeps every token."""

    def capacity_at(self, tokens: int) -> int:
        return roomy(tokens, self.step)

    def slot_ranges(self, new: int) -> SlotRanges:
        return ((0, self.offset + new),)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        start = self.offset
        stop = self.offset = start + keys.shape[2]
        if stop <= self._limit:
            return self.slots.put(keys, values, start, stop, 0)
        self._pack_if_due(stop)
        if stop > self.slots.capacity:
            room = roomy(stop, self.step) - stop
            self.slots = self.slots.rebuilt([(0, start)], self.slots.encode(keys, values), room)
            self._limit = self._writable(self.slots.capacity)
            return self.slots.view(0, stop)
        self._limit = self._writable(self.slots.capacity)
        return self.slots.put(keys, values, start, stop, 0)

    def attend(self, queries: mx.array, keys: Any, values: Any, scale: float, mask: Mask) -> mx.array:
        hidden = min(aligned(self.offset), self.slots.capacity) - self.offset
        if hidden and isinstance(self.slots, PlainSlots) and attends_step_by_step(queries, keys):
            # slots that are not written yet cost nothing, a copy of all the others would
            mask = with_hidden_slots(mask, queries.shape[2], self.offset, hidden)
            keys, values = self.slots.view(0, self.offset + hidden)
        return super().attend(queries, keys, values, scale, mask)

    @property
    def earliest(self) -> int:
        return 0

    def copy(self) -> Self:
        return self._copy_into(type(self)(self.form, self.packed_from, self.step))

    def snapshot(self) -> None:
        return None
