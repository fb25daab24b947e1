"""Attach an adapter to a model that is sharded over several processes, before its weights are read."""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..layers.parameters import flatten
from .attach import attach_adapter
from .folder import Adapter


def attach_divided(model: Any, adapter: Adapter, base: str, weights: Iterable[str], dtype: mx.Dtype) -> None:
    """Wrap the layers of a model whose weights are not loaded yet in LoRA or DoRA.

    Args:
        base: name of the base model.
        weights: names in memory of the weights that are read afterwards.
        dtype: the dtype the model computes in.

    Raises:
        InputError: the adapter replaces complete weights or changes the vocabulary.
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
            f"{adapter.source}: the adapter replaces {replaced[0]}, so the model cannot be divided between processes. "
            "Merge the adapter first: mlx-qwen3 merge."
        )


def _is_kept(name: str, modules: dict[str, Any], arrays: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether the layer that a weight is read into is still the original one, adapted or not."""
    path, _, leaf = name.rpartition(".")
    layer = now[path]
    while "base_layer" in layer:
        layer = layer.base_layer
    return layer is modules[path] and layer.get(leaf) is arrays[name]
