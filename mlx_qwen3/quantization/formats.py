"""The packed weight formats that MLX supports, and their bits per weight.

Each row of a weight is split into groups; a group is stored as codes of a few bits with one scale and, in
affine mode, one bias: `w = scale * code + bias`. Source: the documentation of `mlx.core.quantize`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import QuantizationError

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)
_FIXED = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
MODES = ("affine", *_FIXED)


@dataclass(frozen=True)
class PackedFormat:
    """The packed format of a weight.

    Args:
        bits: bits per code.
        group_size: weights that share a scale.
        mode: `affine`, `mxfp4`, `nvfp4` or `mxfp8`.

    Raises:
        QuantizationError: MLX does not have this format.
    """

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise QuantizationError(f"unknown quantization mode: {self.mode!r}. Use one of {', '.join(MODES)}.")
        if self.mode == "affine":
            if self.bits not in AFFINE_BITS:
                raise QuantizationError(f"affine quantization has no {self.bits!r} bits: use one of {AFFINE_BITS}.")
            if self.group_size not in AFFINE_GROUP_SIZES:
                raise QuantizationError(
                    f"affine quantization has no group size {self.group_size!r}: use one of {AFFINE_GROUP_SIZES}."
                )
        elif (self.bits, self.group_size) != _FIXED[self.mode]:
            bits, group_size = _FIXED[self.mode]
            raise QuantizationError(
                f"{self.mode} is always {bits} bits in groups of {group_size}, not {self.bits} in groups of "
                f"{self.group_size}. Omit bits and group size."
            )

    @classmethod
    def of(cls, mode: str = "affine", bits: int | None = None, group_size: int | None = None) -> "PackedFormat":
        """Return a format whose missing values come from the mode: affine is 4 bits in groups of 64."""
        default_bits, default_group_size = _FIXED.get(mode, (4, 64)) if isinstance(mode, str) else (4, 64)
        bits = default_bits if bits is None else bits
        return cls(bits, default_group_size if group_size is None else group_size, mode)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> "PackedFormat":
        """Return the format described by an entry of a config's `quantization`."""
        return cls.of(values.get("mode", "affine"), values.get("bits"), values.get("group_size"))

    def to_config(self) -> dict[str, Any]:
        """Return the entry for a config's `quantization`, with mlx-lm's keys."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    @property
    def has_biases(self) -> bool:
        return self.mode == "affine"

    def bits_per_weight(self, scale_bytes: int = 2) -> float:
        """Return stored bits per weight, scales included; `scale_bytes` applies to affine mode only."""
        per_group = 16 * scale_bytes if self.has_biases else 8
        return self.bits + per_group / self.group_size

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of this shape can be packed: its rows must consist of whole groups."""
        return len(shape) == 2 and shape[-1] % self.group_size == 0

    def packed_specs(self, shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        """Return shape and dtype of `weight`, `scales` and (affine) `biases` for a weight of `shape` and `dtype`."""
        rows, columns = shape
        groups = columns // self.group_size
        specs: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {
            "weight": ((rows, columns * self.bits // 32), mx.uint32),
            "scales": ((rows, groups), dtype if self.has_biases else mx.uint8),
        }
        if self.has_biases:
            specs["biases"] = ((rows, groups), dtype)
        return specs

    def quantize(self, weight: mx.array) -> dict[str, mx.array]:
        """Quantize a weight (rows, columns) to `weight`, `scales` and (affine) `biases`."""
        packed = mx.quantize(weight, group_size=self.group_size, bits=self.bits, mode=self.mode)
        return dict(zip(("weight", "scales", "biases"), packed, strict=False))

    def dequantize(self, packed: Mapping[str, mx.array], dtype: mx.Dtype = mx.float32) -> mx.array:
        """Return the weight (rows, columns) that the packed arrays represent, computed in `dtype`."""
        scales, biases = packed["scales"], packed.get("biases")
        if self.has_biases and biases is not None:
            scales, biases = scales.astype(dtype), biases.astype(dtype)
        return mx.dequantize(
            packed["weight"],
            scales,
            biases,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            dtype=dtype,
        )


def infer_format(
    path: str,
    columns: int,
    weight_shape: tuple[int, ...],
    scales_shape: tuple[int, ...],
    byte_scales: bool,
) -> PackedFormat:
    """Infer the format of packed arrays from their shapes.

    Args:
        path: the layer, for error messages.
        columns: the input size of the unpacked weight.
        weight_shape: (rows, words of 32 bits).
        scales_shape: (rows, groups).
        byte_scales: the scales are uint8, as in the modes without biases.

    Raises:
        QuantizationError: no MLX format has these shapes.
    """
    if len(weight_shape) != 2 or len(scales_shape) != 2 or not scales_shape[-1]:
        raise QuantizationError(f"{path} has packed arrays {weight_shape} and {scales_shape}: not a format of MLX.")
    bits, bits_rest = divmod(weight_shape[-1] * 32, columns)
    group_size, group_rest = divmod(columns, scales_shape[-1])
    modes = {(bits, size, name) for name, (bits, size) in _FIXED.items()}
    if not bits_rest and not group_rest:
        if not byte_scales and bits in AFFINE_BITS and group_size in AFFINE_GROUP_SIZES:
            return PackedFormat(bits, group_size, "affine")
        for found_bits, found_size, mode in modes:
            if byte_scales and (bits, group_size) == (found_bits, found_size):
                return PackedFormat(bits, group_size, mode)
    raise QuantizationError(
        f"{path} has packed weights {weight_shape} with scales {scales_shape} for {columns} inputs, which is "
        f"no "
        "format that MLX computes with: convert the original checkpoint again."
    )
