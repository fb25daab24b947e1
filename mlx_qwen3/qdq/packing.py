"""Calibrated linear layers in MLX's packed format, exactly.

A fake-quantized weight is level/scale with an integer level and one scale per row. That is an affine
format: `w = s·code + b` with `s = amax/high`, `code = level + 2^(bits−1)` and `b = −2^(bits−1)·s`; so the
packed layer and the fake-quantized one differ by the rounding of one product. Codes are stored as in MLX: a
row is one little-endian bit stream, split into 32-bit words.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..errors import QuantizationError
from ..layers.calibrators import TINY_AMAX
from ..quantization.formats import AFFINE_GROUP_SIZES, PackedFormat
from ..quantization.packing import quantization_entry
from .linear import PackedLinear, QuantLinear, range_shape

logger = logging.getLogger(__name__)

EXACT_BITS = (8, 6, 5, 4)


@dataclass
class PackReport:
    """The result of `pack`: the packed layers, and those left fake-quantized with the reason."""

    packed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def pack_calibrated(model: nn.Module, bits: int = 8) -> PackReport:
    """Replace every calibrated `QuantLinear` by its packed version, in place, and record it in `model.config`.

    Args:
        bits: bits per stored code, at least those of the weight quantizers.

    Raises:
        QuantizationError: `bits` is not 8, 6, 5 or 4; a quantizer of a layer has no range; nothing can be
            packed.
    """
    if bits not in EXACT_BITS:
        raise QuantizationError(f"bits is {bits!r}, expected one of {', '.join(map(str, EXACT_BITS))}.")
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, QuantLinear)]
    report, packed_layers, formats = PackReport(), [], {}
    for path, layer in layers:
        reason = _reason_not_packable(layer, bits)
        if reason:
            report.left[path] = reason
            continue
        for attribute in ("_weight_quantizer", "_input_quantizer"):
            quantizer = getattr(layer, attribute)
            if quantizer.enabled and quantizer.amax is None:
                raise QuantizationError(f"{path}.{attribute} has no amax. Calibrate the model before packing it.")
        formats[path] = PackedFormat(bits, _group_size(layer.weight.shape[1]))
    for path, fmt in formats.items():
        packed_layers.append((path, pack_layer(dict(layers)[path], fmt)))
        report.packed.append(path)
    if not packed_layers:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(report.left.items())[:1])
        raise QuantizationError(
            f"nothing can be packed in {bits} bits ({reasons or 'there is no fake-quantized layer'})."
        )
    model.update_modules(tree_unflatten(packed_layers))
    entry = quantization_entry(formats)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.quantization = {**getattr(config, "quantization", {}), **entry}
    for path, reason in report.left.items():
        logger.warning("%s stays fake-quantized: %s", path, reason)
    return report


def pack_layer(layer: QuantLinear, fmt: PackedFormat) -> PackedLinear:
    """Return the packed layer of a calibrated one; its scales are float32."""
    rows, columns = layer.weight.shape
    quantizer = layer._weight_quantizer
    low, high = quantizer.descriptor.bounds
    amax = np.broadcast_to(np.array(quantizer.amax), (rows, 1))
    zero = amax <= TINY_AMAX
    with np.errstate(divide="ignore"):
        scale = np.where(zero, np.float32(0), np.float32(high) / amax)
    weight = np.array(layer.weight.astype(mx.float32))
    levels = np.clip(np.rint(weight * scale), low, high).astype(np.int32)
    offset = 0 if quantizer.unsigned else 1 << (fmt.bits - 1)
    step = np.where(zero, np.float32(0), amax / np.float32(high)).astype(np.float32)
    scales = np.broadcast_to(step, (rows, columns // fmt.group_size))
    plain = nn.QuantizedLinear(columns, rows, False, fmt.group_size, fmt.bits, fmt.mode)
    plain.weight = mx.array(pack_codes((levels + offset).astype(np.uint8), fmt.bits))
    plain.scales, plain.biases = mx.array(scales), mx.array(scales * np.float32(-offset))
    if "bias" in layer:
        plain.bias = layer.bias
    return PackedLinear.around(plain, layer)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes (rows, columns), uint8, into uint32 words (rows, columns·bits/32)."""
    if bits == 8:
        return np.ascontiguousarray(codes).view(np.uint32)
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little").view(np.uint32)


def _group_size(columns: int) -> int:
    """Return the largest group that divides a row; 0 if none does."""
    return next((size for size in sorted(AFFINE_GROUP_SIZES, reverse=True) if columns % size == 0), 0)


def _reason_not_packable(layer: QuantLinear, bits: int) -> str | None:
    """Return why a layer cannot be packed exactly; None if it can."""
    quantizer, (rows, columns) = layer._weight_quantizer, layer.weight.shape
    if not quantizer.enabled:
        return "its weight quantizer is disabled"
    if quantizer.num_bits > bits:
        return (
            f"its levels of {quantizer.num_bits} bits do not fit; "
            f"load with quant_desc_weight={{'num_bits': {bits}}} and calibrate again"
        )
    if not _group_size(columns):
        return f"no group of {', '.join(map(str, AFFINE_GROUP_SIZES))} weights divides its {columns} inputs"
    if range_shape(quantizer.descriptor, (rows, columns)) not in ((), (rows, 1)):
        return "its ranges run along the inputs"
    return None
