"""Decode 8-bit floats. All their values are exact in bfloat16.

- e4m3: sign, 4 exponent bits with bias 7, 3 mantissa bits, no infinities; 0x7f and 0xff are NaN.
- e5m2: the upper byte of float16.
- e8m0, for scales: 2^(code - 127); 0xff is NaN.

Sources: "FP8 formats for deep learning", https://arxiv.org/abs/2209.05433; for e8m0, OCP Microscaling Formats (MX)
Specification 1.0, section 5.4.1.
"""

from functools import cache

import mlx.core as mx
import numpy as np

FLOAT8 = ("F8_E4M3", "F8_E5M2")


@cache
def float8_values(kind: str) -> mx.array:
    """Return the values (256,) in float32 of all codes of "F8_E4M3" or "F8_E5M2"."""
    code = np.arange(256)
    if kind == "F8_E5M2":
        values = (code.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    else:
        exponent, mantissa = (code >> 3) & 15, code & 7
        size = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
        size = np.where((code & 127) == 127, np.nan, size)
        values = np.where(code & 128, -size, size).astype(np.float32)
    table = mx.array(values)
    mx.eval(table)  # evaluated here because several threads use it
    return table


@cache
def float8_exponents() -> mx.array:
    """Return the values (256,) in float32 of all codes of e8m0."""
    values = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan)
    table = mx.array(values.astype(np.float32))
    mx.eval(table)  # evaluated here because several threads use it
    return table
