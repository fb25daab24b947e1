"""Put an adapter's layers into a model whose weights several processes divide, before those are read."""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..layers.parameters import flatten
from .attach import attach_adapter
from .folder import Adapter


def attach_divided(model: Any, adapter: Adapter, base: str, weights: Iterable[str], dtype: mx.Dtype) -> None:
    """Put LoRA or DoRA layers around the layers of a model that holds no weights yet.

    Args:
        weights: the weights that are read afterwards, by their names in memory.
        dtype: what the model computes in.

    Raises:
        InputError: an adapter that replaces weights whole, or changes the vocabulary.
    """
    model.set_dtype(dtype)
    modules, arrays = dict(model.named_modules()), flatten(model.parameters())
    attach_adapter(model, adapter, base=base)
    now = dict(model.named_modules())
    replaced = [name for name in sorted(weights) if not _is_kept(name, modules, arrays, now)]
    if "lm_head" in model and "lm_head" not in modules:
        replaced.append("lm_head.weight")
    if replaced:
        raise InputError(
            f"{adapter.source}: the adapter replaces {replaced[0]} whole, and such a model cannot be divided between "
            "processes. Merge the adapter first: mlx-qwen3 merge"
        )


def _is_kept(name: str, modules: dict[str, Any], arrays: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a weight still belongs to the layer, under an adapter or not, that it is read into."""
    path, _, leaf = name.rpartition(".")
    layer = now[path]
    while "base_layer" in layer:
        layer = layer.base_layer
    return layer is modules[path] and layer.get(leaf) is arrays[name]
