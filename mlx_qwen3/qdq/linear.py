"""Linear layers of a fake-quantized model: the one for training and calibration, and its packed version.

Their quantizers have the reference's names, `_input_quantizer` and `_weight_quantizer`, and are plain attributes:
neither modules nor parameters to MLX.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import QuantizationError
from ..layers.devices import on_cuda
from .fake_quantizer import QuantDescriptor, TensorQuantizer


@dataclass(frozen=True)
class LayerDescriptors:
    """The quantization of a layer's activations and of its weight."""

    input: QuantDescriptor
    weight: QuantDescriptor


class QuantLinear(nn.Linear):
    """x·Wᵀ + b with `x` and `W` fake-quantized; the bias is not.

    Source: pytorch-quantization 2.2.1, `nn/modules/quant_linear.py`.

    Args:
        input_dims, output_dims: widths of `x` and of the result.
        descriptors: how `x` and `W` are quantized.
    """

    def __init__(self, input_dims: int, output_dims: int, descriptors: LayerDescriptors, bias: bool = True):
        super().__init__(input_dims, output_dims, bias)
        self._input_quantizer = TensorQuantizer(descriptors.input)
        self._weight_quantizer = TensorQuantizer(descriptors.weight)
        self._weight_quantizer.shape = range_shape(descriptors.weight, (output_dims, input_dims))
        if descriptors.input.axis is None:
            self._input_quantizer.shape = ()

    def __call__(self, x: mx.array) -> mx.array:
        x = self._input_quantizer(x)
        weight = self._weight_quantizer(self.weight)
        return mx.addmm(self.bias, x, weight.T) if "bias" in self else x @ weight.T

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> "PackedLinear":
        """Return the layer with its weight rounded group by group, for `mlx.nn.quantize`.

        This is MLX's own rounding of the plain weight; `pack_calibrated` is exact. The input quantizer is kept.
        """
        plain = nn.Linear.to_quantized(self, group_size, bits, mode, quantize_input)
        return PackedLinear.around(plain, self)

    def packed_around(self, plain: nn.QuantizedLinear) -> "PackedLinear":
        """Return `plain`, the packed version of this layer, with this layer's input quantizer."""
        return PackedLinear.around(plain, self)


class PackedLinear(nn.QuantizedLinear):
    """A linear layer with packed weights whose input is still fake-quantized."""

    _input_quantizer: TensorQuantizer
    _weight_descriptor: QuantDescriptor

    @classmethod
    def around(cls, plain: Any, layer: QuantLinear) -> "PackedLinear":
        """Wrap `plain` (an `nn.QuantizedLinear`) with the input quantizer of `layer`."""
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        for name, array in plain.items():
            setattr(packed, name, array)
        packed.group_size, packed.bits, packed.mode = plain.group_size, plain.bits, plain.mode
        packed._input_quantizer = layer._input_quantizer
        packed._weight_descriptor = layer._weight_quantizer.descriptor
        packed.freeze()
        return packed

    def unpacked(self, weight: mx.array) -> QuantLinear:
        """Return the plain layer with the unpacked weight `weight`.

        If every row has one symmetric scale, the range of the weight quantizer is restored, so that rounding again
        changes nothing; otherwise it is disabled.
        """
        rows, columns = weight.shape
        bias, descriptor = self.get("bias"), self._weight_descriptor
        descriptors = LayerDescriptors(self._input_quantizer.descriptor, descriptor)
        layer = QuantLinear(columns, rows, descriptors, bias is not None)
        layer.weight = weight
        if bias is not None:
            layer.bias = bias
        layer._input_quantizer = self._input_quantizer
        step = self["scales"][:, :1]
        offset = 0 if descriptor.unsigned else 1 << (self.bits - 1)
        symmetric = self.mode == "affine" and (self["scales"] == step).all() & (self["biases"] == -offset * step).all()
        quantizer = layer._weight_quantizer
        if symmetric and quantizer.shape == (rows, 1):
            quantizer.amax = step.astype(mx.float32) * descriptor.bounds[1]
        elif symmetric and quantizer.shape == () and (step == step[0]).all().item():
            quantizer.amax = step[0, 0].astype(mx.float32) * descriptor.bounds[1]
        else:
            quantizer.disable()
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        x = self._input_quantizer(x)
        scales = self["scales"]
        dtype = scales.dtype if mx.issubdtype(scales.dtype, mx.floating) else x.dtype  # exact scales stay float32
        if dtype == mx.float32 and self.group_size == 128 and on_cuda():
            return self._multiply_unpacked(x.astype(dtype)).astype(x.dtype)
        return super().__call__(x.astype(dtype)).astype(x.dtype)

    def _multiply_unpacked(self, x: mx.array) -> mx.array:
        """Multiply by the unpacked weight: MLX's CUDA kernels do not support float32 with groups of 128."""
        parts = (self["weight"], self["scales"], self.get("biases"))
        weight = mx.dequantize(*parts, group_size=self.group_size, bits=self.bits, mode=self.mode)
        return mx.addmm(self["bias"], x, weight.T) if "bias" in self else x @ weight.T


def range_shape(descriptor: QuantDescriptor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the range of a tensor of `shape`: () for one range, else 1 where `axis` does not point."""
    if descriptor.axis is None:
        return ()
    axes = descriptor.axis if isinstance(descriptor.axis, tuple) else (descriptor.axis,)
    if any(not -len(shape) <= a < len(shape) for a in axes):
        raise QuantizationError(f"quant_desc_weight: axis is {descriptor.axis}, a weight has {len(shape)} axes.")
    kept = {a % len(shape) for a in axes}
    kept_shape = tuple(size if i in kept else 1 for i, size in enumerate(shape))
    return () if all(size == 1 for size in kept_shape) else kept_shape
