"""Products with packed weights: by the packed kernel, or by a plain product after dequantizing the weights."""

import mlx.core as mx

from .devices import variants


def unpacks_first(rows: int, width: int, dtype: mx.Dtype) -> bool:
    """Return whether a product dequantizes packed weights first.

    Args:
        rows: rows of activations. width: the smaller side of the matrix. dtype: that of the activations.
    """
    return rows > 1 and dtype != mx.float32 and 0 < variants().unpacked_work <= rows * width


def packed_product(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    mode: str,
) -> mx.array:
    """Return the product of x (..., M) and a packed matrix (N, M): (..., N), in x's dtype."""
    inputs = x.shape[-1]
    if unpacks_first(x.size // inputs, min(weight.shape[0], inputs), x.dtype):
        return x @ mx.dequantize(weight, scales, biases, group_size, bits, mode, dtype=x.dtype).T
    return mx.quantized_matmul(x, weight, scales, biases, True, group_size, bits, mode)
