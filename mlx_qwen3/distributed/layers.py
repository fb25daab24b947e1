"""Sharded linear layers, embedding and output head."""

from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn

from ..layers.packed_products import packed_product
from .group import Group, part_of


def _sum_product(product: mx.array, layer: Any) -> mx.array:
    total = mx.distributed.all_sum(product, group=layer._group)
    return total + layer["bias"] if "bias" in layer else total


class SummedLinear(nn.Linear):
    """A linear layer that holds this rank's columns. It sums the products over the ranks, then adds the bias."""

    _group: Group

    def __call__(self, x: mx.array) -> mx.array:
        return _sum_product(x @ self["weight"].T, self)


class SummedQuantizedLinear(nn.QuantizedLinear):
    """`SummedLinear` with packed weights."""

    _group: Group

    def __call__(self, x: mx.array) -> mx.array:
        parts = (self["weight"], self["scales"], self.get("biases"))
        return _sum_product(packed_product(x, *parts, self.group_size, self.bits, self.mode), self)


class VocabularyHead(nn.Module):
    """An output head that holds this rank's rows, and maps x (..., M) to the logits (..., V) of all ranks."""

    def __init__(self, layer: Any, group: Group):
        super().__init__()
        self._layer, self._group = layer, group
        for name, array in layer.items():
            self[name] = array

    def __call__(self, x: mx.array) -> mx.array:
        return gathered(self._layer(x), self._group)


def gathered(part: mx.array, group: Group) -> mx.array:
    """Concatenate the last axis (..., V/N) of all ranks to (..., V)."""
    columns = mx.contiguous(part.reshape(-1, part.shape[-1]).T)
    return mx.distributed.all_gather(columns, group=group).T.reshape(*part.shape[:-1], -1)


class VocabularyEmbedding(nn.Module):
    """An embedding that holds this rank's rows.

    Each rank returns zeros for ids outside its rows, so that the sum over the ranks is the embedding.
    """

    def __init__(self, layer: Any, group: Group):
        super().__init__()
        self._layer, self._group = layer, group
        for name, array in layer.items():
            self[name] = array
        self._first = part_of(layer["weight"].shape[0] * group.size(), group)[0]
        self._rows = layer["weight"].shape[0]

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up ids (...) → vectors (..., M)."""
        local = ids.astype(mx.int32) - self._first
        here = (local >= 0) & (local < self._rows)
        rows = self._layer(mx.where(here, local, 0))
        return mx.distributed.all_sum(mx.where(here[..., None], rows, 0), group=self._group)

    def as_linear(self, x: mx.array) -> mx.array:
        """Multiply x (..., M) by the embedding: the logits (..., V) of all ranks."""
        return gathered(self._layer.as_linear(x), self._group)


@runtime_checkable
class Divisible(Protocol):
    """A layer with parameters beside its base layer, such as an adapter, that can be sharded."""

    @property
    def outputs(self) -> int:
        """Number of outputs of the unsharded layer."""
        ...

    def keep_rows(self, first: int, last: int) -> None:
        """Keep the outputs `first` to `last` - 1, in place. The base layer is already sharded."""
        ...

    def divide_columns(self, group: Group) -> nn.Module:
        """Return a layer for this rank's inputs that sums its product over the ranks."""
        ...
