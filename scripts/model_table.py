"""Print README's table "Which model fits which Mac", from the package's memory estimate.

    python scripts/model_table.py

The estimate is that of `mlx-qwen3 chat` and `info`: weights, keys and values of 8,192 tokens, and the intermediates of
a prompt. It is computed from the shapes of the released models, not measured. The GPU is assumed to use at most two
thirds of a Mac's memory; `mlx-qwen3 doctor` prints the limit of a machine.
"""

from dataclasses import asdict
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_qwen3 import Qwen3Config, Qwen3ForCausalLM
from mlx_qwen3.bench.random_models import SIZES
from mlx_qwen3.cache import cache_bytes
from mlx_qwen3.layers.devices import DEFAULTS, using
from mlx_qwen3.memory import working_bytes
from mlx_qwen3.quantization import PackedFormat

MACS = (8, 16, 24, 32, 48, 64, 96, 128)
"""Memory sizes in GB."""
USABLE = 2 / 3
"""Fraction of the memory that the GPU may use."""
TOKENS = 8192
"""Length of the conversation."""
BITS = (4, 8, 16)
MODELS = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")


def needed_gigabytes(size: str, bits: int) -> float:
    """Return the memory in GB that a model needs on Metal with a conversation of `TOKENS` tokens."""
    config = Qwen3Config(**SIZES[size])
    named: Any = tree_flatten(Qwen3ForCausalLM(config).parameters())  # lazy: nothing is computed
    arrays = [array for _, array in named]
    matrix_bits = bits if bits == 16 else PackedFormat(bits, 64).bits_per_weight()
    weights = sum(array.size * (matrix_bits / 8 if array.ndim > 1 else 2) for array in arrays)
    with using(**asdict(DEFAULTS["metal"])):
        return (weights + cache_bytes(config, TOKENS) + working_bytes(config, TOKENS, mx.bfloat16.size)) / 1e9


def smallest_mac(gigabytes: float) -> str:
    """Return the memory of the smallest Mac that fits, or "none"."""
    fitting = [mac for mac in MACS if gigabytes <= USABLE * mac]
    return f"{fitting[0]} GB" if fitting else "none"


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| Model | 4 bits | 8 bits | 16 bits |", "| --- | ---: | ---: | ---: |"]
    for size in MODELS:
        needed = [needed_gigabytes(size, bits) for bits in BITS]
        cells = [f"{gigabytes:.1f} GB: **{smallest_mac(gigabytes)}**" for gigabytes in needed]
        lines.append(f"| Qwen3-{size} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
