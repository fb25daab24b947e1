"""Estimate the memory of a training before it starts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..errors import MemoryFitError
from ..layers.parameters import flatten
from ..memory import machine_memory
from .forward import ROWS_PER_CHUNK
from .options import TrainingOptions

TIGHT = 0.95


def training_bytes(model: Any, names: list[str], longest: int, options: TrainingOptions) -> int:
    """Estimate the bytes of a training: weights, gradients, moments and intermediates.

    Per layer, the arrays that the backward pass needs are kept; see `hidden_states`. The other intermediates exist for
    one layer at a time.

    Args:
        names: names of the trained parameters.
        longest: number of tokens of the longest row.
    """
    config = model.config
    arrays = flatten(model.parameters())
    weights = sum(array.nbytes for array in arrays.values())
    # Float32 gradient, two moments and next value of each trained parameter, and the best weights so far.
    trained = sum(arrays[name].size for name in names) * (4 * 4 + 4)
    tokens = options.batch_size * longest
    itemsize = 2 if model.dtype in (mx.float16, mx.bfloat16) else 4
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    per_layer = 6 * config.hidden_size + 3 * heads * config.head_dim + 5 * config.intermediate_size
    kept_per_layer = config.hidden_size
    if not options.grad_checkpoint:
        kept_per_layer += config.hidden_size + 3 * heads * config.head_dim + 2 * config.intermediate_size
    kept = kept_per_layer * config.num_hidden_layers + per_layer
    head = 3 * 4 * config.vocab_size * min(tokens, ROWS_PER_CHUNK) if hasattr(model, "logits") else 0
    return weights + trained + tokens * kept * itemsize + head


def check_training_fits(model: Any, names: list[str], longest: int, options: TrainingOptions, source: str) -> int:
    """Return the estimated bytes of a training if they fit into memory.

    Raises:
        MemoryFitError: the estimate exceeds the machine's memory; the message suggests options.
    """
    needed, memory = training_bytes(model, names, longest, options), machine_memory()
    if needed > TIGHT * memory:
        steps = []
        if not options.grad_checkpoint:
            steps.append("--grad-checkpoint")
        if options.batch_size > 1:
            steps.append("a smaller --batch-size with more --accumulation")
        steps.append("a smaller --max-length")
        if options.method == "full":
            steps.append("--method lora")
        raise MemoryFitError(
            f"training {source} with batches of {options.batch_size} × {longest} tokens needs about "
            f"{needed / 1e9:.1f} GB of {memory / 1e9:.1f} GB. Use {', or '.join(steps)}."
        )
    return needed
