"""The estimated size of a cache is close to its actual size."""

import mlx.core as mx
import pytest

from mlx_qwen3.cache import cache_bytes
from mlx_qwen3.cache.layers import padded_capacity
from tests.support import tiny

FIELDS = {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1, "head_dim": 32}
OPTIONS = [
    {},
    {"kv_bits": 8, "kv_group_size": 32},
    {"kv_bits": 4, "kv_group_size": 32, "max_kv_size": 500},
    {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 900},
    {"max_kv_size": 200, "slack": 16},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk", [1, 100, 2000])
def test_the_estimated_bytes_are_a_close_upper_bound(options, chunk):
    config = tiny.config(**FIELDS)
    cache = tiny.model(**FIELDS).make_cache(**options)
    seen = 0
    while seen < (700 if chunk == 1 else 2000):
        new = mx.zeros((3, 2, chunk, 32), dtype=mx.bfloat16)
        for layer in cache.layers:
            layer.update(new, new)
        seen += chunk
        mx.eval(cache.arrays)
        foretold = cache_bytes(config, seen, batch_size=3, dtype="bfloat16", **options)
        assert cache.nbytes <= foretold
        for layer in cache.layers:
            assert layer.capacity_at(seen) - layer.slots.capacity <= 2 * layer.step + seen // 16
    exact = sum(layer.capacity_at(seen) * layer.nbytes // layer.slots.capacity for layer in cache.layers)
    assert foretold == exact


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 4096}, {"max_kv_size": 1024}]
)
def test_32k_tokens_stay_within_the_estimated_bytes(options):
    model = tiny.model(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=32)
    cache, chunk, total = model.make_cache(**options), 256, 32 * 1024
    before = mx.get_active_memory()
    for seen in range(chunk, total + 1, chunk):
        output = model(tiny.ids(1, chunk, seed=seen), past_key_values=cache, logits_to_keep=1)
        mx.eval(output.logits, cache.arrays)
        del output
        foretold = cache_bytes(model.config, seen, dtype="float32", **options)
        assert mx.get_active_memory() - before <= foretold + 64 * 1024
    assert cache.offset == total


@pytest.mark.parametrize("step", [256, 264])
def test_a_growing_cache_copies_few_slots_and_keeps_few_spare_ones(step):
    assert padded_capacity(512, step) == step * -(-513 // step)  # a prompt gets no more than whole steps
    capacity = copied = 0
    for tokens in range(1, 20_001):
        if tokens > capacity:
            copied += tokens - 1
            capacity = padded_capacity(tokens, step)
            assert tokens < capacity <= tokens * 17 / 16 + step + 1
        assert copied <= 17 * tokens
