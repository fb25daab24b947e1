"""Random weights: of a new model, and of rows added to its vocabulary."""

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError


def init_weights(module: nn.Module, initializer_range: float, pad_token_id: int | None = None) -> None:
    """Initialize weights lazily as the reference does: normal with `initializer_range`, biases 0, padding row 0."""
    for _, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            layer.weight = mx.random.normal(layer.weight.shape) * initializer_range
            if isinstance(layer, nn.Linear) and "bias" in layer:
                layer.bias = mx.zeros_like(layer.bias)
            if isinstance(layer, nn.Embedding) and pad_token_id is not None:
                row = pad_token_id % layer.weight.shape[0]
                layer.weight = mx.where(mx.arange(layer.weight.shape[0])[:, None] == row, 0.0, layer.weight)


def resize_rows(layer: nn.Module, count: int, initializer_range: float) -> None:
    """Resize a layer's weight (rows, columns) to `count` rows; new rows are initialized like new weights.

    Raises:
        InputError: the layer is quantized.
    """
    if not isinstance(layer, nn.Embedding | nn.Linear):
        raise InputError("a quantized vocabulary cannot be resized. Resize before converting.")
    weight = layer.weight[:count]
    missing = count - layer.weight.shape[0]
    if missing > 0:
        rows = mx.random.normal((missing, weight.shape[1])) * initializer_range
        weight = mx.concatenate([weight, rows.astype(weight.dtype)])
    layer.weight = weight
