"""Keys and values of a prefix that all rows of a batch share: computed once, used by every row."""

from collections.abc import Sequence

import mlx.core as mx

from ..cache import Cache, GrowingLayer


class TightLayer(GrowingLayer):
    """A layer's cache for a few calls: it reserves no room to grow, and each update concatenates new arrays."""

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.slots.arrays:
            before_keys, before_values = self.slots.arrays
            keys = mx.concatenate([before_keys, keys], axis=2)
            values = mx.concatenate([before_values, values], axis=2)
        self.adopt([keys, values], False, keys.shape[2])
        return keys, values


def tight_cache(layers: int) -> Cache:
    """Return an empty cache that keeps every token of every layer; sliding windows are left to the masks."""
    return Cache([TightLayer() for _ in range(layers)])


def shared_cache(prefix: Sequence[mx.array], rows: int) -> Cache:
    """Return a cache of `rows` rows with the same prefix, from keys and values (1, K, P, D), layer by layer."""
    cache = tight_cache(len(prefix) // 2)
    for layer, keys, values in zip(cache.layers, prefix[::2], prefix[1::2], strict=True):
        layer.update(*(mx.broadcast_to(array, (rows, *array.shape[1:])) for array in (keys, values)))
    return cache
