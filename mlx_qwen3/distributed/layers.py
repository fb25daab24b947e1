"""Tensor-parallel models over several processes, agreement between ranks, and distribution of rows."""

from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn

from .group import Group, part_of


def _summed_product(product: mx.array, layer: Any) -> mx.array:
    total = mx.distributed.all_sum(product, group=layer._group)
    return total + layer["bias"] if "bias" in layer else total


class SummedLinear(nn.Linear):
    """A linear layer that holds this rank's columns: the products are summed over the ranks, then the bias added."""

    _group: Group

    def __call__(self, x: mx.array) -> mx.array:
        return _summed_product(x @ self["weight"].T, self)


class SummedQuantizedLinear(nn.QuantizedLinear):
    """The same with packed weights."""

    _group: Group

    def __call__(self, x: mx.array) -> mx.array:
        parts = (self["weight"], self["scales"], self.get("biases"))
        settings = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        return _summed_product(mx.quantized_matmul(x, *parts, transpose=True, **settings), self)


class VocabularyHead(nn.Module):
    """The output head's rows of this rank: x (..., M) → the logits (..., V) of all ranks."""

    def __init__(self, layer: Any, group: Group):
        super().__init__()
        self._layer, self._group = layer, group
        for name, array in layer.items():
            self[name] = array

    def __call__(self, x: mx.array) -> mx.array:
        return gathered(self._layer(x), self._group)


def gathered(part: mx.array, group: Group) -> mx.array:
    """Join the last axis (..., V/N) of all ranks: (..., V)."""
    columns = mx.contiguous(part.reshape(-1, part.shape[-1]).T)
    return mx.distributed.all_gather(columns, group=group).T.reshape(*part.shape[:-1], -1)


class VocabularyEmbedding(nn.Module):
    """The embedding's rows of this rank: ids are looked up where they lie, and the vectors summed over the ranks."""

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
    """A layer that knows how to keep a rank's part of what it holds beside its base layer."""

    @property
    def outputs(self) -> int:
        """Number of outputs of the whole layer."""
        ...

    def keep_rows(self, first: int, last: int) -> None:
        """Keep these outputs, in place; the base layer has them already."""
        ...

    def divide_columns(self, group: Group) -> nn.Module:
        """Return a layer of this rank's inputs whose product is summed over the ranks."""
        ...
