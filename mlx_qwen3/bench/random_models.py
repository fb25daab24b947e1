"""Models with random weights in the shapes of Qwen3, to measure speed without a download.

Source of the shapes: config.json of Qwen/Qwen3-0.6B, -1.7B, -4B, -8B, -14B and -32B.
"""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..config import Qwen3Config
from ..errors import InputError, MemoryFitError
from ..memory import machine_memory
from ..models import Qwen3ForCausalLM
from ..quantization import PackedFormat, quantize_model


def _size(width: int, inner: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }


SIZES: dict[str, dict[str, Any]] = {
    "0.6B": _size(1024, 3072, 28, 16, True),
    "1.7B": _size(2048, 6144, 28, 16, True),
    "4B": _size(2560, 9728, 36, 32, True),
    "8B": _size(4096, 12288, 36, 32, False),
    "14B": _size(5120, 17408, 40, 40, False),
    "32B": _size(5120, 25600, 64, 64, False),
    "small": {
        **_size(512, 1536, 8, 8, True),
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 16384,
    },
    "tiny": {
        **_size(128, 384, 4, 4, True),
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 2048,
    },
}
"""Name -> configuration fields. `small` and `tiny` are not released models, but shapes for a slow machine."""


def random_model(size: str, dtype: mx.Dtype = mx.bfloat16, bits: int = 16, group_size: int = 64) -> Qwen3ForCausalLM:
    """Return a causal model of the given size with random weights, in evaluation mode.

    Args:
        size: a key of `SIZES`.
        dtype: dtype of the weights; of the scales, if they are quantized.
        bits: 16 for unquantized weights; 8, 6, 5, 4, 3 or 2 to quantize them.
        group_size: weights that share a scale.

    Raises:
        InputError: `size` is unknown.
        MemoryFitError: the weights do not fit the memory of this machine.
        QuantizationError: MLX does not support `bits` or `group_size`.
    """
    if size not in SIZES:
        raise InputError(f"size is {size!r}, expected one of {', '.join(SIZES)}.")
    mx.random.seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES[size]))
    model.set_dtype(dtype)
    parameters: Any = tree_flatten(model.parameters())  # lazy: no memory is allocated yet
    count = sum(array.size for _, array in parameters)
    bytes_each = dtype.size if bits >= 16 else PackedFormat(bits, group_size).bits_per_weight(dtype.size) / 8
    needed, memory = count * bytes_each / 1e9, machine_memory() / 1e9
    if needed > memory:
        raise MemoryFitError(
            f"{size} in {min(bits, 16)} bits has {needed:.1f} GB of weights, and this machine has {memory:.1f} GB. "
            "Choose a smaller size or fewer --bits."
        )
    if bits < 16:
        quantize_model(model, PackedFormat(bits, group_size))
    for _, array in tree_flatten(model.parameters()):
        mx.eval(array)  # one at a time, or all float32 matrices would be in memory at once
    model.config.dtype = str(dtype).rpartition(".")[2]
    model.eval()
    return model


def with_dtype(model: Qwen3ForCausalLM, dtype: mx.Dtype) -> None:
    """Cast weights and scales to `dtype` in place; quantized codes stay as they are."""
    model.set_dtype(dtype)
    for module in model.modules():
        if getattr(module, "output_dtype", None) is not None:
            module.output_dtype = dtype
    mx.eval(model.parameters())
