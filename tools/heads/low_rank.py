"""Low-rank additions to a frozen backbone: what a small head needs of it, in a file of a megabyte.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685). After training an addition is merged into its weight.
"""

import math

import mlx.core as mx
import mlx.nn as nn


class LowRank(nn.Module):
    """A frozen linear layer plus x·A·B; A starts random, B zero."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        rows, columns = linear.weight.shape
        self.linear = linear
        self.lora_a = mx.random.normal((columns, rank)) / math.sqrt(columns)
        self.lora_b = mx.zeros((rank, rows))

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + (x @ self.lora_a) @ self.lora_b


def add_low_rank(backbone: nn.Module, rank: int) -> None:
    """Freeze the backbone and give every linear layer in its blocks an addition that learns."""
    backbone.freeze()
    for layer in backbone.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in block.children().items():
                if isinstance(linear, nn.Linear):
                    setattr(block, name, LowRank(linear, rank))
    for layer in backbone.layers:
        for block in (layer.self_attn, layer.mlp):
            for part in block.children().values():
                if isinstance(part, LowRank):
                    part.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
