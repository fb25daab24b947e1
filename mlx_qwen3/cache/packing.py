"""Keys and values in 8 or 4 bits: the format, and attention over quantized keys and values.

Groups of `group_size` numbers along the head share a scale and a bias, as in MLX's affine weight quantization.
"""

from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError
from ..layers.attention import apply_mask, attend
from ..layers.devices import on_cuda, variants
from ..layers.masks import Mask

Packed = tuple[mx.array, mx.array, mx.array]
"""Packed bits (B, K, S, D·bits/32) as uint32, scales and biases (B, K, S, D/group_size)."""

MULTIPLIED_QUERIES = 8
"""Up to this many queries attention multiplies the packed keys; above, it unpacks them once and uses the fused
kernel.
"""

SINGLE_ROWS_FROM = 4
"""Query heads per key head from which "auto" multiplies packed values by one row per head: Metal's vector kernel ends
at 4 rows, and its kernel for more rows does not split the slots."""


def multiplies_packed_views() -> bool:
    """Return whether `mx.quantized_matmul` accepts a slice of a layer cache.

    MLX's CUDA kernels require contiguous arrays (`mlx/backend/cuda/quantized/qmm`); a view of some slots is not one.
    """
    return not on_cuda()


@dataclass(frozen=True)
class KVFormat:
    """The quantization of the vectors in a cache.

    Args:
        bits: 8 or 4.
        group_size: 32, 64 or 128 numbers that share a scale; it must divide the head size.

    Raises:
        InputError: an invalid value.
    """

    bits: int = 8
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"kv_bits is {self.bits!r}, expected 8 or 4.")
        if self.group_size not in (32, 64, 128):
            raise InputError(f"kv_group_size is {self.group_size!r}, expected 32, 64 or 128.")

    def check_head_dim(self, head_dim: int) -> None:
        """Raise `InputError` unless heads of this size can be packed."""
        if head_dim % self.group_size:
            fits = [size for size in (128, 64, 32) if head_dim % size == 0]
            advice = f"Choose kv_group_size {fits[0]}." if fits else "Omit kv_bits."
            raise InputError(f"kv_group_size {self.group_size} does not divide 'head_dim' {head_dim}. {advice}")

    def pack(self, vectors: mx.array) -> Packed:
        """Quantize (B, K, L, D); return bits, scales and biases."""
        self.check_head_dim(vectors.shape[-1])
        bits, scales, biases = mx.quantize(vectors, group_size=self.group_size, bits=self.bits)
        return bits, scales, biases

    def unpack(self, packed: Packed) -> mx.array:
        """Dequantize to (B, K, S, D), in the dtype of the scales."""
        return mx.dequantize(*packed, group_size=self.group_size, bits=self.bits)

    def vector_bytes(self, head_dim: int, itemsize: int) -> int:
        """Return the bytes of one packed vector whose scales take `itemsize` bytes."""
        return head_dim * self.bits // 8 + 2 * itemsize * (head_dim // self.group_size)

    def attend(self, queries: mx.array, keys: Packed, values: Packed, scale: float, mask: Mask) -> mx.array:
        """Return softmax(q·kᵀ·scale)·v over the stored values, softmax in float32; (B, H, L, D)."""
        batch, heads, length, size = queries.shape
        if length > MULTIPLIED_QUERIES or not multiplies_packed_views():
            return attend(queries, self.unpack(keys), self.unpack(values), scale, mask)
        kv_heads, slots = keys[0].shape[1:3]
        # the query heads of one key head are rows of one product, so that each key is read once
        rows = (queries * scale).reshape(batch, kv_heads, -1, size)
        scores = mx.quantized_matmul(rows, *keys, transpose=True, group_size=self.group_size, bits=self.bits)
        scores = apply_mask(scores.reshape(batch, heads, length, slots), mask).reshape(batch, kv_heads, -1, slots)
        weights = mx.softmax(scores, axis=-1, precise=True)
        rows = variants().packed_values
        if rows == "single" or (rows == "auto" and heads // kv_heads >= SINGLE_ROWS_FROM):
            weights = weights.reshape(batch, kv_heads, heads // kv_heads, length, slots)
            values = tuple(mx.expand_dims(part, 2) for part in values)  # pyright: ignore[reportAssignmentType]
        mixed = mx.quantized_matmul(weights, *values, transpose=False, group_size=self.group_size, bits=self.bits)
        return mixed.reshape(batch, heads, length, size)
