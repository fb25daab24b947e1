"""Weight quantization: formats of packed weights, which layer gets which, and what it costs in quality.

Fake quantization (QDQ with `amax`) lives in `layers`, the quantized key/value cache in `cache`; this package
is about weights that are stored packed. It knows modules and arrays, no model and no folder.
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
