"""Keys and values of a beginning that every row of a batch shares: computed once, seen by all rows."""

from collections.abc import Sequence
from typing import Self

import mlx.core as mx

from ..cache import Cache, GrowingLayer


class SharedPrefixLayer(GrowingLayer):
    """A layer's store whose first P tokens belong to one row (1, K, P, D) and are seen by every row of the batch."""

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        super().__init__()
        self.keys, self.values, self.offset = keys, values, keys.shape[2]

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = _joined(self.keys, keys), _joined(self.values, values)
        self.offset += keys.shape[2]
        return self.keys, self.values

    def copy(self) -> Self:
        assert self.keys is not None
        assert self.values is not None
        return type(self)(self.keys[:], self.values[:])


def growing_cache(layers: int) -> Cache:
    """An empty cache that keeps every token of every layer; masks, not the store, make a layer slide."""
    return Cache([GrowingLayer() for _ in range(layers)])


def shared_cache(prefix: Sequence[mx.array]) -> Cache:
    """A cache that begins with a shared prefix, given as keys and values, a layer after the other."""
    return Cache([SharedPrefixLayer(k, v) for k, v in zip(prefix[::2], prefix[1::2], strict=True)])


def common_prefix(rows: Sequence[list[int]], least: int) -> int:
    """How many ids all rows begin with, leaving each at least one; 0 when fewer than `least`, or with a single row."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # in the order of lists, what these two share all share
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    length = min(length, min(map(len, rows)) - 1)
    return length if length >= least else 0


def _joined(old: mx.array, new: mx.array) -> mx.array:
    return mx.concatenate([mx.broadcast_to(old, (new.shape[0], *old.shape[1:])), new], axis=2)
