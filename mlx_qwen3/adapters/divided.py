"""LoRA and DoRA around a layer of which each rank of several processes holds some columns."""

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from ..distributed.group import Group, summed

if TYPE_CHECKING:
    from .layers import LoRALinear


class SummedLoRALinear(nn.Module):
    """A `LoRALinear` that holds this rank's columns of W and of A.

    The products with W and with B·A are added before the one sum over the ranks; magnitude and bias follow it.
    """

    def __init__(self, layer: "LoRALinear", group: Group):
        super().__init__()
        self.layer, self._group = layer, group
        if "bias" in layer.lora_B and group.rank():
            layer.lora_B.bias = mx.zeros_like(layer.lora_B.bias)  # rank 0 adds it to the sum, once
        self._ratio = None
        if "lora_magnitude_vector" in layer:
            squares = summed(mx.square(layer.changed_weight()).sum(axis=1), group)
            self._ratio = layer.lora_magnitude_vector / mx.sqrt(squares)
            mx.eval(self._ratio)

    def __call__(self, x: mx.array) -> mx.array:
        """Multiply this rank's part of x (..., in/N) → (..., out) of all ranks."""
        base = self.layer.base_layer
        product = base(x)
        bias = base.bias if "bias" in base else None
        if bias is not None:
            product = product - bias
        total = mx.distributed.all_sum(product + self.layer.change(x).astype(product.dtype), group=self._group)
        if self._ratio is not None:
            total = self._ratio.astype(total.dtype) * total
        return total if bias is None else total + bias
