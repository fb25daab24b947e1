"""The layer cache that keeps a window of the newest tokens and, optionally, attention sinks.

Attention sinks: arXiv 2309.17453. As in mlx-lm, cached keys keep the positions they were rotated to.
"""

from typing import Any, Self

import mlx.core as mx

from ..layers.masks import SlotRanges
from .layers import STEP, LayerCache, padded_capacity
from .packing import KVFormat


class SlidingLayer(LayerCache):
    """Keep the newest `window − 1` tokens, the first `sinks`, and `slack` more that can still be trimmed.

    The buffer is filled in order: the sinks, then token `sinks + gap` and all later ones. When it is full, the tokens
    to keep move to its front. That costs one copy of the window every `step` tokens and keeps slots in order. With
    sinks, `update` also returns tokens that have left the window but not yet the buffer: the mask hides them, which is
    cheaper than concatenating sinks and window for every token.

    Args:
        window: number of tokens that a query sees, itself included, sinks excluded.
        sinks: number of first tokens that stay visible.
        slack: number of tokens that can be trimmed once the window has moved.
    """

    def __init__(
        self,
        window: int,
        slack: int = 0,
        sinks: int = 0,
        format: KVFormat | None = None,
        packed_from: int = 0,
        step: int = STEP,
    ) -> None:
        self._window, self.slack, self.sinks = window, slack, sinks
        self._kept = window - 1 + slack  # tokens to keep besides the sinks
        super().__init__(format, packed_from, step)

    def clear(self) -> None:
        super().clear()
        self._gap = 0  # dropped tokens between the sinks and the rest

    @property
    def window(self) -> int:
        return self._window

    @property
    def kept(self) -> int:
        """Number of newest tokens that are always kept, sinks excluded."""
        return self._kept

    def capacity_at(self, tokens: int) -> int:
        return min(padded_capacity(tokens, self.step), self.sinks + self._kept + 2 * self.step)

    def _visible_from(self) -> int:
        """Return the first slot after the sinks that the next token may attend to."""
        return max(self.sinks + self._gap, self.offset - self._window + 1)

    def _gap_for(self, stop: int) -> int:
        """Return the gap after `update` has made room for tokens up to `stop`."""
        if stop - self._gap <= self.slots.capacity:
            return self._gap
        return max(self._gap, self.offset - self._kept - self.sinks)

    def slot_ranges(self, new: int) -> SlotRanges:
        stop = self.offset + new
        if not self.sinks:
            return ((self._visible_from(), stop),)
        gap = self._gap_for(stop)
        return ((0, self.sinks), (self.sinks + gap, stop)) if gap else ((0, stop),)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        new = keys.shape[2]
        start = self.offset - self._gap
        if start + new > self._limit:
            return self._make_room(keys, values)
        first = 0 if self.sinks else self._visible_from() - self._gap
        self.offset += new
        return self.slots.put(keys, values, start, start + new, first)

    def _make_room(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Update the buffer where it is full or quantization is due."""
        offset, stop, visible = self.offset, self.offset + keys.shape[2], self._visible_from()
        self._pack_if_due(stop)
        gap = self._gap_for(stop)
        if stop - gap <= self.slots.capacity and gap == self._gap:
            self._limit = self._writable(self.slots.capacity)
            return self.update(keys, values)
        # token sinks+gap is the first kept one after the sinks; `joined` is the buffer without the dropped tokens
        pieces = [(0, self.sinks), (self.sinks + gap - self._gap, offset - self._gap)]
        if gap == self._gap:
            pieces = [(0, offset - self._gap)]
        size, base = stop - gap, self.sinks + self._kept
        encoded = self.slots.encode(keys, values)
        first = 0 if self.sinks else visible - gap
        self.offset, self._gap = stop, gap
        if size <= base + self.step:
            room = -(-(size + 1) // self.step) * self.step - size
            self.slots = self.slots.rebuild(pieces, encoded, room)
            result = self.slots.view(first, size)
        else:
            joined = self.slots.rebuild(pieces, encoded, 0)
            result = joined.view(first, size)
            self._gap += size - base
            tail = joined.cut([(0, self.sinks), (size - self._kept, size)])
            self.slots = tail.rebuild([], tail.arrays, self.step)
        self._limit = self._writable(self.slots.capacity)
        return result

    def _writable(self, stop: int) -> int:
        return super()._writable(stop + self._gap) - self._gap

    @property
    def used(self) -> int:
        return self.offset - self._gap

    @property
    def settings(self) -> dict[str, Any]:
        return {"window": self._window, "slack": self.slack, "sinks": self.sinks, **super().settings}

    def adopt(self, arrays: list[mx.array], packed: bool, offset: int) -> None:
        self._gap = offset - (arrays[0].shape[2] if arrays else 0)
        super().adopt(arrays, packed, offset)

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        if not self.slots.arrays:
            return None, None
        visible = self._visible_from() - self._gap
        if visible <= self.sinks or not self.sinks:
            first = 0 if self.sinks else visible
            return self.slots.unpack(*self.slots.view(first, self.offset - self._gap))
        kept = self.slots.cut([(0, self.sinks), (visible, self.offset - self._gap)])
        return self.slots.unpack(*kept.view(0, kept.capacity))

    @property
    def earliest(self) -> int:
        """The smallest offset above 0 to trim to: the window before it must still be in the buffer."""
        return self.sinks + self._gap + self._window - 1 if self._gap else 0

    def copy(self) -> Self:
        duplicate = type(self)(self._window, self.slack, self.sinks, self.format, self.packed_from, self.step)
        duplicate._gap = self._gap
        return self._copy_into(duplicate)
