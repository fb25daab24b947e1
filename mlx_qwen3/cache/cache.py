"""A model's cache: one store a layer, the number of tokens seen, and the Hugging Face spellings of both."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import mlx.core as mx

from ..errors import CacheError, InputError
from .layers import GrowingLayer, LayerCache, SlidingLayer


class Cache:
    """Keys and values of every layer. Iterating gives (keys, values) a layer, (B, K, n, D) each.

    Args:
        layers: the stores, one a layer.
    """

    def __init__(self, layers: Sequence[LayerCache]):
        self.layers = list(layers)

    @classmethod
    def for_layer_types(cls, layer_types: Sequence[str], window: int | None) -> Self:
        """An empty cache: sliding layers keep a window, the others everything."""
        return cls(
            [
                SlidingLayer(window) if kind == "sliding_attention" and window else GrowingLayer()
                for kind in layer_types
            ]
        )

    @classmethod
    def from_legacy(cls, past: Any, layer_types: Sequence[str], window: int | None) -> Self:
        """A cache from the older format: a (keys, values) pair a layer."""
        cache = cls.for_layer_types(layer_types, window)
        if len(past) != len(cache.layers):
            raise InputError(f"past_key_values holds {len(past)} layers, the model has {len(cache.layers)}")
        for layer, (keys, values, *_) in zip(cache.layers, past, strict=True):
            layer.update(mx.array(keys), mx.array(values))
        return cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens the layer has seen, kept or not."""
        return self.layers[layer_idx].offset

    @property
    def offset(self) -> int:
        """Tokens seen."""
        return self.layers[0].offset

    @property
    def nbytes(self) -> int:
        """Bytes that all layers hold, room to grow included."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def earliest(self) -> int:
        """The smallest offset that `trim` can go back to."""
        return max(layer.earliest for layer in self.layers)

    def trim(self, count: int) -> None:
        """Forgets the newest `count` tokens in every layer, or raises `CacheError` and changes nothing."""
        if count < 0 or self.offset - count < self.earliest:
            raise CacheError(
                f"cannot take back {count} of {self.offset} cached tokens: a sliding layer reaches back only to "
                f"{self.earliest}; start again from an empty cache"
            )
        for layer in self.layers:
            layer.trim(count)

    def copy(self) -> Self:
        """An independent cache with the same content."""
        return type(self)([layer.copy() for layer in self.layers])

    @property
    def arrays(self) -> list[mx.array]:
        """Every array of the content, for `mx.eval`."""
        return [array for layer in self.layers for array in layer.state if array is not None]

    def to_legacy_cache(self) -> tuple[tuple[mx.array | None, mx.array | None], ...]:
        """A (keys, values) pair a layer."""
        return tuple(layer.state for layer in self.layers)

    def __iter__(self) -> Iterator[tuple[mx.array | None, mx.array | None]]:
        return iter(self.to_legacy_cache())

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> tuple[mx.array | None, mx.array | None]:
        return self.layers[index].state
