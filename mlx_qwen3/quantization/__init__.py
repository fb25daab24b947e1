"""Weight quantization: packed formats, the choice of format per layer, and its effect on quality.

Fake quantization (QDQ with `amax`) is in `qdq`, the quantized key/value cache in `cache`. This package
handles packed weights; it works on modules and arrays and is independent of models and folders.
"""

from .formats import PackedFormat, infer_format
from .packing import apply_quantization, prepare_quantized, quantize_model, unpack_quantized

__all__ = [
    "PackedFormat",
    "apply_quantization",
    "infer_format",
    "prepare_quantized",
    "quantize_model",
    "unpack_quantized",
]
