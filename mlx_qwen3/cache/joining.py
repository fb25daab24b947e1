"""Join rows of several caches into a new cache, aligned at their ends, for continuous batching."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import CacheError, InputError
from .cache import Cache
from .layers import LayerCache, padded_capacity
from .sliding import SlidingLayer
from .slots import PackedSlots, Slots


@dataclass(frozen=True)
class RowSource:
    """The rows of a cache to copy.

    Args:
        cache: the source; it is not changed.
        rows: their indices.
        length: number of newest tokens to copy per row; fewer than the cache has where all of them start with padding.
    """

    cache: Cache
    rows: Sequence[int]
    length: int


def join_rows(sources: Sequence[RowSource], room: bool = True) -> Cache:
    """Return a new cache with the rows of all sources, in order, whose newest tokens share the last slot.

    A shorter row starts with empty slots (zeros), which a mask must hide. Supports growing and sliding layers, plain
    and quantized; a window counts slots, and the tokens of a row lie in consecutive slots.

    Args:
        sources: from caches of one model, made with the same options.
        room: leave room to grow; False for the least memory.

    Raises:
        CacheError: attention sinks or delayed quantization: their slots depend on where a row begins.
        InputError: no sources, or a length above that of the cache.
    """
    if not sources:
        raise InputError("no rows to join. Give at least one source.")
    for source in sources:
        if not 0 < source.length <= source.cache.offset:
            raise InputError(f"cannot take {source.length} tokens of a cache that has {source.cache.offset}.")
    first = sources[0].cache
    if any(layer.sinks or (layer.format is not None and layer.packed_from > 0) for layer in first.layers):
        raise CacheError("rows with attention sinks or delayed quantization cannot be joined. Run them one by one.")
    length = max(source.length for source in sources)
    return Cache([_join_layer(sources, index, length, room) for index in range(len(first.layers))])


def _join_layer(sources: Sequence[RowSource], index: int, length: int, room: bool) -> LayerCache:
    like = sources[0].cache.layers[index]
    joined = like.copy()
    joined.clear()
    kept = length
    if isinstance(like, SlidingLayer):  # a layer that was trimmed has fewer slots than it may keep
        layers = [(source.cache.layers[index].used, source.length) for source in sources]
        kept = min(length, like.kept, *(used for used, wanted in layers if used < wanted))
    spare = 0 if isinstance(like, SlidingLayer) or not room else padded_capacity(length, like.step) - length
    parts = [_take_newest(source.cache.layers[index], source, kept) for source in sources]
    arrays = []
    for number in range(len(parts[0])):
        pieces = [part[number] for part in parts]
        array = mx.concatenate(pieces, axis=0) if len(pieces) > 1 else pieces[0]
        if spare:
            array = mx.pad(array, [(0, 0), (0, 0), (0, spare), (0, 0)])
        elif len(pieces) == 1:
            array = _copy_slots(array)
        arrays.append(array)
    joined.adopt(arrays, isinstance(like.slots, PackedSlots), length)
    return joined


def _copy_slots(array: mx.array) -> mx.array:
    """Copy slots into memory of their own: a slice would keep the whole source batch alive."""
    half = array.shape[2] // 2
    return mx.concatenate([array[:, :, :half], array[:, :, half:]], axis=2) if half else array + 0


def _take_newest(layer: LayerCache, source: RowSource, kept: int) -> list[mx.array]:
    """Return the newest `kept` slots of a source's rows, with zeros for slots before the first token."""
    slots: Slots = layer.slots
    taken = min(source.length, kept)
    start = layer.used - taken
    rows = list(source.rows)
    every = rows == list(range(slots.arrays[0].shape[0]))
    arrays = []
    for array in slots.arrays:
        part = array[:, :, start : layer.used]
        if not every:
            part = part[rows[0] : rows[0] + 1] if len(rows) == 1 else mx.take(part, mx.array(rows), axis=0)
        if taken < kept:
            part = mx.pad(part, [(0, 0), (0, 0), (kept - taken, 0), (0, 0)])
        arrays.append(part)
    return arrays
