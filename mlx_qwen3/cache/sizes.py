"""The size of a cache before it is allocated."""

from typing import Any

from .cache import make_cache
from .layers import step_for

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def cache_bytes(
    config: Any,
    tokens: int,
    *,
    batch_size: int = 1,
    dtype: str = "bfloat16",
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 0,
    max_kv_size: int | None = None,
    slack: int = 0,
) -> int:
    """Return the largest number of bytes that the cache of a model holds between calls after `tokens` tokens, spare
    capacity included.

    While a layer's cache is reallocated, the old one exists as well; a call on L tokens needs L more slots per sliding
    layer.

    Args:
        config: a `Qwen3Config`.
        dtype: the dtype of keys and values.

    Raises:
        InputError: invalid options.
    """
    cache = make_cache(
        config.layer_types,
        config.sliding_window,
        max_kv_size=max_kv_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
        slack=slack,
        step=step_for(config),
    )
    itemsize, head_dim = ITEM_BYTES[dtype], config.head_dim
    total = 0
    for layer in cache.layers:
        vector = head_dim * itemsize
        if layer.format is not None and tokens > layer.packed_from:
            layer.format.check_head_dim(head_dim)
            vector = layer.format.vector_bytes(head_dim, itemsize)
        total += 2 * layer.capacity_at(tokens) * vector
    return total * batch_size * config.num_key_value_heads
