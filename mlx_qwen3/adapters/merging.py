"""Merge an adapter into the weights of its base model, or return its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError, UnsupportedModelError
from ..layers.parameters import flatten
from .attach import EMBEDDING, LINEAR
from .layers import (
    AdaptedLayer,
    LoRALinear,
    dense_weight,
    is_packed,
    layer_dtype,
    plain_embedding,
    plain_linear,
    set_module,
)


def merge_adapter(model: Any) -> list[tuple[str, nn.Module]]:
    """Replace adapted layers by plain layers with the same outputs, in place. Packed layers are unpacked as well.

    Returns:
        The replaced layers with their names, so that a caller can restore them.

    Raises:
        InputError: the model has no adapter.
        UnsupportedModelError: the adapter has a bias that the architecture does not have; the message names the field.
    """
    if model.adapter is None:
        raise InputError("the model has no adapter to merge. Load one with adapter=.")
    adapted = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, AdaptedLayer)]
    for path, layer in adapted:
        if isinstance(layer, LoRALinear) and "bias" in layer.lora_B and "bias" not in layer.base_layer:
            raise UnsupportedModelError(
                f"adapter field 'lora_bias' cannot be merged: {path} has no bias in Qwen3. Keep the adapter."
            )
    replaced = []
    for path, layer in adapted:
        replaced.append((path, layer))
        set_module(model, path, layer.merged())
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, LINEAR | EMBEDDING) or not is_packed(layer):
            continue
        replaced.append((path, layer))
        weight = dense_weight(layer).astype(layer_dtype(layer))
        bias = layer.bias if isinstance(layer, LINEAR) and "bias" in layer else None
        plain = plain_embedding(weight) if isinstance(layer, EMBEDDING) else plain_linear(weight, bias)
        set_module(model, path, plain)
    return replaced


def adapter_weights(model: Any) -> Mapping[str, mx.array]:
    """Return the parameters of a model that belong to its adapter, by name."""
    held = flatten(model.parameters())
    return {name: held[name] for name in model.adapter.names}
