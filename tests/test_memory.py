"""The fit of a model in this machine, from headers alone."""

import logging

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import model as tiny_model

from mlx_qwen3 import InputError, MemoryFitError
from mlx_qwen3.memory import MemoryFit, check_fit, estimate_fit, machine_memory, wire_memory


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_the_estimate_is_what_the_weights_and_the_cache_take(checkpoint):
    folder, model = checkpoint
    stored = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    fit = estimate_fit(folder, model.config, 100)
    assert fit.weights == stored
    assert fit.memory == machine_memory() > 1e8
    cache = model(mx.ones((1, 100), dtype=mx.int32), use_cache=True).past_key_values
    mx.eval(cache.arrays)
    assert fit.cache >= 100 * 2 * 2 * 2 * 8 * 4
    assert cache.nbytes <= fit.cache <= 2 * cache.nbytes + 2 * 256 * 2 * 2 * 8 * 4
    half = estimate_fit(folder, model.config, 100, dtype="bfloat16")
    assert (half.weights, half.cache) == (stored // 2, fit.cache // 2)
    assert (
        estimate_fit(folder, model.config, 1000, max_kv_size=50).cache < estimate_fit(folder, model.config, 1000).cache
    )


def test_what_does_not_fit_is_refused_with_numbers_and_a_way_out(caplog):
    check_fit(MemoryFit(weights=5 * 10**9, cache=10**9, tokens=8192, memory=16 * 10**9), "x")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_fit(MemoryFit(weights=14 * 10**9, cache=10**9, tokens=8192, memory=16 * 10**9), "x")
    assert "weights 14.00 GB + cache for 8,192 tokens 1.00 GB = 15.00 GB of 16.0 GB" in caplog.text
    with pytest.raises(MemoryFitError, match="--max-kv-size 3276"):
        check_fit(MemoryFit(weights=14 * 10**9, cache=10**9 * 10, tokens=81920, memory=16 * 10**9), "x")
    with pytest.raises(MemoryFitError, match="smaller model"):
        check_fit(MemoryFit(weights=20 * 10**9, cache=10**9, tokens=8192, memory=16 * 10**9), "x")


def test_a_container_has_its_own_limit(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("mlx_qwen3.memory.CGROUP_LIMIT", limit)
    whole = machine_memory()
    limit.write_text("1000000\n")
    assert machine_memory() == 1000000
    limit.write_text("max\n")
    assert machine_memory() == whole


def test_wiring_is_refused_where_there_is_no_metal():
    if mx.metal.is_available():
        with pytest.raises(InputError, match="cannot wire"):
            wire_memory(1e6)
    else:
        with pytest.raises(InputError, match="no Metal"):
            wire_memory(1.0)
