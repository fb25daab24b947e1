"""Memory estimates of models from their headers, and limits of the machine."""

import logging

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3 import InputError, MemoryFitError, Qwen3ForCausalLM, convert
from mlx_qwen3.layers.devices import using
from mlx_qwen3.memory import (
    MemoryFit,
    check_fit,
    estimate_fit,
    gpu_info,
    is_out_of_memory,
    machine_memory,
    wire_memory,
    working_bytes,
)
from tests.support.tiny import model as tiny_model


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_the_estimate_covers_the_weights_and_the_cache(checkpoint):
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


def test_a_model_that_does_not_fit_is_refused_with_numbers_and_a_remedy(caplog):
    check_fit(MemoryFit(weights=5 * 10**9, cache=10**9, tokens=8192, memory=16 * 10**9), "x")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_fit(MemoryFit(weights=14 * 10**9, cache=10**9, tokens=8192, memory=16 * 10**9), "x")
    assert "weights 14.00 GB + cache for 8,192 tokens 1.00 GB = 15.00 GB of 16.0 GB" in caplog.text
    with pytest.raises(MemoryFitError, match="--max-kv-size 3276"):
        check_fit(MemoryFit(weights=14 * 10**9, cache=10**9 * 10, tokens=81920, memory=16 * 10**9), "x")
    too_large = MemoryFit(weights=20 * 10**9, cache=10**9, tokens=8192, memory=16 * 10**9)
    with pytest.raises(MemoryFitError, match=r"21.00 GB of 16.0 GB. Take a smaller model.*--force"):
        check_fit(too_large, "x")
    check_fit(too_large, "x", force=True)
    assert "x does not fit and may" in caplog.text


@pytest.mark.parametrize(("share", "warns"), [(0.89, False), (0.91, True), (1.0, True)])
def test_a_warning_is_logged_above_nine_tenths_of_the_memory(caplog, share, warns):
    total = int(share * 10**10)
    check_fit(MemoryFit(weights=total // 2, cache=0, tokens=1, memory=10**10, working=total - total // 2), "x")
    assert bool(caplog.records) is warns
    assert not warns or "intermediates" in caplog.text


@pytest.mark.parametrize("tokens", [64, 500])
def test_the_estimate_of_the_intermediates_is_close(tokens):
    model = tiny_model(hidden_size=64, intermediate_size=192, num_hidden_layers=6, max_position_embeddings=1024)
    path, ids = model.for_inference(), mx.ones((1, tokens), dtype=mx.int32)
    cache = model.make_cache()
    mx.eval(path.step_logits(ids, model.make_cache()))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(path.step_logits(ids, cache))
    used = mx.get_peak_memory() - before - cache.nbytes
    assert 0.3 * used < working_bytes(model.config, tokens, 4) < 3 * used


def test_a_pipelined_pass_needs_less_memory():
    config = tiny_model().config
    with using(layers_per_step=1):
        one = working_bytes(config, 4096, 2)
        assert one == working_bytes(config, 2048, 2)  # the number of tokens per pass
    with using(layers_per_step=0.5):
        assert 2 * working_bytes(config, 4096, 2) == one
    config.num_hidden_layers = 36
    with using(layers_per_step=4):
        assert working_bytes(config, 4096, 2) == 4 * one
    with using(layers_per_step=1, prefill_step_size=4096):
        assert working_bytes(config, 4096, 2) == 2 * one


@pytest.mark.parametrize(
    ("rows", "itemsize", "counted"), [(0, 2, False), (128, 2, True), (128, 4, False), (999, 2, False)]
)
def test_weights_that_are_dequantized_first_are_counted(rows, itemsize, counted):
    config = tiny_model(hidden_size=64, intermediate_size=192, num_hidden_layers=6).config
    with using(unpacked_work=64 * rows, layers_per_step=1):
        more = working_bytes(config, 512, itemsize, packed=True) - working_bytes(config, 512, itemsize)
    layer = tiny_model(hidden_size=64, intermediate_size=192, num_hidden_layers=6).model.layers[0]
    matrices = sum(array.size for _, array in tree_flatten(layer.parameters()) if array.ndim == 2)
    assert more == (2 * matrices * itemsize if counted else 0)


METAL_INFO = {"max_recommended_working_set_size": 5 * 10**9, "memory_size": 7 * 10**9}


@pytest.fixture
def mac(monkeypatch):
    """Make MLX report a Mac; the default device may be the CPU or the GPU."""
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    described = mx.device_info

    def device_info(device=None):
        gpu = device is not None and device.type == mx.DeviceType.gpu
        return METAL_INFO if gpu else described(mx.Device(mx.cpu, 0))

    monkeypatch.setattr(mx, "device_info", device_info)
    limits = []
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    return limits


def test_the_memory_of_a_gpu_is_its_working_set(mac, monkeypatch):
    assert gpu_info() == METAL_INFO
    assert machine_memory() != 5 * 10**9  # the default device is the CPU
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert machine_memory() == 5 * 10**9


def test_memory_is_wired_for_every_default_device(mac):
    wire_memory(4.5)
    wire_memory(None)
    assert mac == [4500000000, 5000000000]
    with pytest.raises(InputError, match=r"at most 5.0 GB"):
        wire_memory(6)


MESSAGES = [
    "[malloc] Unable to allocate 12 bytes.",
    "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError…)",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_running_out_of_memory_is_recognized(message):
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


def test_other_runtime_errors_are_not_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("[matmul] shapes do not match"))


@pytest.mark.parametrize("bits", [16, 4])
def test_loading_holds_at_most_one_layer_twice(tmp_path, bits):
    model = tiny_model(hidden_size=128, intermediate_size=512, num_hidden_layers=8, head_dim=32)
    model.save_pretrained(tmp_path / "source")
    folder = tmp_path / "source"
    if bits < 16:
        folder = convert(folder, tmp_path / "packed", quantize=True, q_bits=bits, q_group_size=32, report=False).path
    del model
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaded = Qwen3ForCausalLM.from_pretrained(folder)
    mx.eval(loaded.parameters())
    loaded.for_inference()
    layer = sum(array.nbytes for _, array in tree_flatten(loaded.model.layers[0].parameters()))
    held = mx.get_active_memory() - before
    assert mx.get_peak_memory() - before < held + 1.5 * layer


def test_the_memory_limit_of_a_container_is_respected(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("mlx_qwen3.memory.CGROUP_LIMIT", limit)
    whole = machine_memory()
    limit.write_text("1000000\n")
    assert machine_memory() == 1000000
    limit.write_text("max\n")
    assert machine_memory() == whole


def test_wiring_is_refused_without_metal():
    if mx.metal.is_available():
        with pytest.raises(InputError, match="cannot wire"):
            wire_memory(1e6)
    else:
        with pytest.raises(InputError, match="requires a Metal device"):
            wire_memory(1.0)
