"""The cache of a model: keys and values per layer, snapshots to rewind to, and the legacy tuple format."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import mlx.core as mx

from ..errors import CacheError, InputError
from .layers import STEP, GrowingLayer, LayerCache
from .packing import KVFormat
from .sliding import SlidingLayer

SINKS = 4
"""First tokens that stay visible under `max_kv_size`, as in mlx-lm."""

SNAPSHOTS = 8
"""Number of snapshots that a cache keeps; the oldest are dropped first."""


class Cache:
    """The keys and values of every layer. Iteration yields (keys, values) per layer, (B, K, n, D) each.

    Args:
        layers: the cache of each layer.
    """

    def __init__(self, layers: Sequence[LayerCache]):
        self.layers = list(layers)
        self._snapshots: dict[int, list[LayerCache | None]] = {}
        self.marks: list[mx.array] = []
        """Arrays to wait for before the next single-token pass; see `layers.pipelining.Marks`."""

    @classmethod
    def for_layer_types(cls, layer_types: Sequence[str], window: int | None) -> Self:
        """Return an empty cache: sliding layers keep a window, the others everything."""
        return cls(make_cache(layer_types, window).layers)

    @classmethod
    def from_legacy(cls, past: Any, layer_types: Sequence[str], window: int | None) -> Self:
        """Return a cache built from the legacy format: a (keys, values) pair per layer, (B, K, n, D) each.

        A sliding layer's pair holds only the tokens it kept; the length of a full layer gives the number of tokens
        seen.

        Raises:
            InputError: pairs that do not fit the model or one another, or whose number of tokens is unknown: a
                full window and no full layer.
        """
        cache = cls.for_layer_types(layer_types, window)
        if not isinstance(past, Sequence):
            raise InputError(
                f"past_key_values is {type(past).__name__}, expected a Cache or a (keys, values) pair per layer."
            )
        if len(past) != len(cache.layers):
            raise InputError(f"past_key_values holds {len(past)} layers, the model has {len(cache.layers)}.")
        pairs = [_check_pair(pair, i) for i, pair in enumerate(past)]
        sizes = [keys.shape[2] for keys, _ in pairs]
        full = {size for layer, size in zip(cache.layers, sizes, strict=True) if layer.window is None}
        if len(full) > 1:
            raise InputError(f"past_key_values holds full layers of {min(full)} and of {max(full)} tokens.")
        if not full and any(max(sizes) == (layer.window or 0) - 1 for layer in cache.layers):
            raise InputError(
                f"past_key_values holds the {max(sizes)} tokens of a full sliding window, and there is no full layer "
                "to count all tokens. Pass the cache object instead of tuples."
            )
        total = full.pop() if full else max(sizes)
        for i, (layer, (keys, values)) in enumerate(zip(cache.layers, pairs, strict=True)):
            if layer.window is not None and sizes[i] not in (total, min(total, layer.window - 1)):
                raise InputError(
                    f"past_key_values holds {sizes[i]} tokens in layer {i}, expected {total}, "
                    f"or the newest {min(total, layer.window - 1)} of them."
                )
            missing = total - sizes[i]
            if missing:  # tokens outside the window are never read
                blank = [mx.zeros((*x.shape[:2], missing, x.shape[3]), dtype=x.dtype) for x in (keys, values)]
                keys, values = mx.concatenate([blank[0], keys], axis=2), mx.concatenate([blank[1], values], axis=2)
            layer.update(keys, values)
        return cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens the layer has seen, kept or not."""
        return self.layers[layer_idx].offset

    @property
    def offset(self) -> int:
        """The number of tokens seen."""
        return self.layers[0].offset

    @property
    def batch_size(self) -> int | None:
        """Rows of the batch; None while the cache is empty."""
        arrays = self.layers[0].slots.arrays
        return arrays[0].shape[0] if arrays and self.offset else None

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers and snapshots, spare capacity included; shared arrays count each time."""
        saved = [layer for layers in self._snapshots.values() for layer in layers if layer is not None]
        return sum(layer.nbytes for layer in [*self.layers, *saved])

    @property
    def arrays(self) -> list[mx.array]:
        """Every array of the cache, for `mx.eval`."""
        return [array for layer in self.layers for array in layer.slots.arrays]

    # rewinding

    @property
    def earliest(self) -> int:
        """The smallest offset above 0 that the layers can be trimmed to without a snapshot."""
        return max(layer.earliest for layer in self.layers)

    def reach(self, offset: int) -> int:
        """Return the largest offset up to the given one that `trim` and `rewind` can restore; 0 is always possible."""
        offset = min(offset, self.offset)
        if offset >= self.earliest:
            return max(offset, 0)
        return max((saved for saved in self._snapshots if saved <= offset), default=0)

    def trim(self, count: int) -> None:
        """Drop the newest `count` tokens of every layer, or raise `CacheError` and change nothing."""
        target = self.offset - count
        if count < 0 or target < 0 or self.reach(target) != target:
            raise CacheError(
                f"cannot drop {count} of {self.offset} cached tokens: a sliding layer can be trimmed only to "
                f"{self.earliest}. Call rewind({self.reach(target)}) and recompute from there."
            )
        if target >= self.earliest or target == 0:
            for layer in self.layers:
                layer.trim(count)
        else:
            for i, saved in enumerate(self._snapshots[target]):
                if saved is None:
                    self.layers[i].trim(count)
                else:
                    self.layers[i] = saved.copy()
        self._snapshots = {at: saved for at, saved in self._snapshots.items() if at <= target}

    def rewind(self, offset: int) -> int:
        """Go back to `reach(offset)` and return it; later tokens must be computed again."""
        target = self.reach(offset)
        self.trim(self.offset - target)
        return target

    def snapshot(self, limit: int = SNAPSHOTS) -> None:
        """Save the current offset as one to rewind to, for layers that cannot be trimmed. Keep the newest `limit`
        snapshots.

        Full layers cost nothing; a sliding layer costs one copy of its buffer, made when it is next written.
        """
        saved = [layer.snapshot() for layer in self.layers]
        if self.offset and any(layer is not None for layer in saved):
            self._snapshots[self.offset] = saved
            for at in sorted(self._snapshots)[: -limit or None]:
                del self._snapshots[at]

    def copy(self) -> Self:
        """Return an independent cache with the same content and snapshots; arrays are shared until one of them is
        written.
        """
        duplicate = type(self)([layer.copy() for layer in self.layers])
        duplicate._snapshots = dict(self._snapshots)
        return duplicate

    # rows

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order; a row may be named twice. Snapshots are dropped.

        To drop a finished row without copying the others, move the last row there: [0, 1, 4, 3] of five.

        Raises:
            InputError: a row that does not exist, or none.
        """
        size = self.batch_size
        wrong = [row for row in rows if size is not None and not 0 <= row < size]
        if wrong or not rows:
            raise InputError(f"cannot select rows {list(rows)} of a cache with {size or 'no'} rows.")
        self._snapshots = {}
        for layer in self.layers:
            layer.select_rows(list(rows))

    def repeat(self, count: int) -> None:
        """Repeat every row `count` times, for several continuations of one prefix. Snapshots are dropped.

        A single row is shared until the first write.
        """
        if count < 1:
            raise InputError(f"cannot repeat a cache {count} times.")
        self._snapshots = {}
        for layer in self.layers:
            layer.repeat(count)

    @property
    def takes_rows(self) -> bool:
        """Whether `put_rows` works: every layer keeps all tokens, unquantized."""
        return all(type(layer) is GrowingLayer and layer.format is None for layer in self.layers)

    def put_rows(self, indices: Sequence[int], other: "Cache") -> None:
        """Replace some rows by those of another cache, aligned at the last slot.

        A mask must hide the slots before them. Snapshots are dropped.

        Args:
            indices: the row of this cache to replace for each row of `other`; no repeats.
            other: a cache of the same model that holds no more tokens than this one.

        Raises:
            CacheError: a cache with sliding or quantized layers; more tokens, or another number of rows.
            InputError: a row that does not exist, or one named twice.
        """
        if not (self.takes_rows and other.takes_rows):
            raise CacheError("cannot replace rows of sliding or quantized layers. Start another cache.")
        if other.offset > self.offset or other.batch_size != len(indices):
            raise CacheError(
                f"cannot put {other.batch_size} rows of {other.offset} tokens into {len(indices)} rows of "
                f"{self.offset} tokens."
            )
        if len(set(indices)) < len(indices) or not set(indices) <= set(range(self.batch_size or 0)):
            raise InputError(f"cannot put rows into {list(indices)} of a cache with {self.batch_size or 'no'} rows.")
        self._snapshots = {}
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for array, new in zip(mine.slots.arrays, theirs.slots.arrays, strict=True):
                for row, place in enumerate(indices):
                    array[place, :, self.offset - other.offset : self.offset] = new[row, :, : other.offset]

    # legacy Hugging Face interface

    def to_legacy_cache(self) -> tuple[tuple[mx.array | None, mx.array | None], ...]:
        """Return a (keys, values) pair per layer, unpacked."""
        return tuple(layer.state for layer in self.layers)

    def __iter__(self) -> Iterator[tuple[mx.array | None, mx.array | None]]:
        return iter(self.to_legacy_cache())

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> tuple[mx.array | None, mx.array | None]:
        return self.layers[index].state


def make_cache(
    layer_types: Sequence[str],
    window: int | None = None,
    *,
    max_kv_size: int | None = None,
    sinks: int = SINKS,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 0,
    slack: int = 0,
    step: int = STEP,
) -> Cache:
    """Return an empty cache.

    Args:
        layer_types: `config.layer_types`.
        window: `config.sliding_window`, which sliding layers keep.
        max_kv_size: limit of the tokens a query sees in any layer: the newest and, in full layers, the first `sinks`
            (in a left-padded row those are padding). None keeps everything in full layers.
        kv_bits: 8 or 4 to quantize keys and values; None for no quantization.
        kv_group_size: numbers that share a scale; divides `head_dim`.
        quantized_kv_start: quantize only once more tokens than this have been seen.
        slack: tokens that can still be trimmed from a layer whose window has moved.
        step: number of slots by which the storage grows.

    Raises:
        InputError: an invalid value.
    """
    kv_format = None if kv_bits is None else KVFormat(kv_bits, kv_group_size)
    if max_kv_size is not None and max_kv_size <= sinks:
        raise InputError(f"max_kv_size is {max_kv_size}, expected more than the {sinks} first tokens it keeps.")
    if slack < 0 or quantized_kv_start < 0 or sinks < 0 or step < 1:
        raise InputError("slack, sinks and quantized_kv_start cannot be negative, step must be at least 1.")
    storage = {"format": kv_format, "packed_from": quantized_kv_start, "step": step}
    layers: list[LayerCache] = []
    for kind in layer_types:
        if kind == "sliding_attention" and window is not None:
            layers.append(SlidingLayer(min(window, max_kv_size or window), slack, **storage))
        elif max_kv_size is not None:
            layers.append(SlidingLayer(max_kv_size - sinks, slack, sinks, **storage))
        else:
            layers.append(GrowingLayer(**storage))
    return Cache(layers)


def _check_pair(pair: Any, index: int) -> tuple[mx.array, mx.array]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or any(x is None for x in pair):
        raise InputError(f"past_key_values holds no (keys, values) pair in layer {index}.")
    keys, values = mx.array(pair[0]), mx.array(pair[1])
    if keys.ndim != 4 or keys.shape != values.shape:
        raise InputError(
            f"past_key_values holds keys {tuple(keys.shape)} and values {tuple(values.shape)} in layer {index}, "
            "expected the same (batch, key/value heads, tokens, head size)."
        )
    return keys, values
