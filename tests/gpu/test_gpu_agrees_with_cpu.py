"""A GPU gives the results of the CPU: `pytest -m metal` on a Mac, `pytest -m accelerator` with MLX's CUDA build.

By default MLX's CUDA backend multiplies float32 with ten bits of mantissa. TF32 is disabled here, so that differences
come from this package.
"""

import os

os.environ["MLX_ENABLE_TF32"] = "0"  # read at the first product on the GPU

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.quantization import PackedFormat, quantize_model
from tests.support import tiny

BACKENDS = [pytest.param("metal", marks=pytest.mark.metal), pytest.param("cuda", marks=pytest.mark.accelerator)]
SHAPES = {
    "plain": {},
    "sliding": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "bias": {"attention_bias": True, "num_key_value_heads": 1},
}
# width 128: on CUDA, MLX 0.32.4 multiplies several rows by packed weights of a single group incorrectly
SIZE = {"hidden_size": 128, "head_dim": 64, "intermediate_size": 256}


@pytest.fixture
def gpu(request):
    backend = getattr(mx, request.param)
    if not backend.is_available():
        pytest.skip(f"no {request.param} device")
    before = mx.default_device()
    yield mx.gpu
    mx.set_default_device(before)


def on(device, function):
    mx.set_default_device(device)
    result = function()
    mx.eval(result)
    return np.array(result.astype(mx.float32))


@pytest.mark.parametrize("gpu", BACKENDS, indirect=True)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [None, 4])
def test_calls_and_cached_steps_agree_with_the_cpu(gpu, shape, bits):
    mx.set_default_device(mx.cpu)
    model, ids = tiny.model(**SIZE, **SHAPES[shape]), tiny.ids(length=24)
    if bits:
        quantize_model(model, PackedFormat(bits=bits, group_size=64))

    def whole():
        return model(ids).logits

    def stepwise():
        cache, parts = model.make_cache(), []
        for a, b in ((0, 11), (11, 12), (12, 20), (20, 24)):
            parts.append(model(ids[:, a:b], past_key_values=cache, use_cache=True).logits)
        return mx.concatenate(parts, axis=1)

    want = on(mx.cpu, whole)
    np.testing.assert_allclose(on(gpu, whole), want, atol=1e-4)
    np.testing.assert_allclose(on(gpu, stepwise), want, atol=1e-4)


@pytest.mark.parametrize("gpu", BACKENDS, indirect=True)
@pytest.mark.parametrize("position", [4096, 131071])
def test_rotations_at_distant_positions_agree_with_the_cpu(gpu, position):
    rotary = tiny.model("Qwen3Model", **SIZE)._rotary
    x = mx.random.normal((1, 4, 1, 64))
    want = on(mx.cpu, lambda: rotary.at(position, 1)(x))
    np.testing.assert_allclose(on(gpu, lambda: rotary.at(position, 1)(x)), want, atol=1e-4)
    np.testing.assert_allclose(on(gpu, lambda: rotary.at_positions(mx.array([position]))(x)), want, atol=1e-4)


@pytest.mark.parametrize("gpu", BACKENDS, indirect=True)
def test_greedy_tokens_equal_those_of_the_cpu(gpu):
    mx.set_default_device(mx.cpu)
    model, ids = tiny.model(**SIZE), tiny.ids(batch=1, length=6)
    want = np.array(model.generate(ids, max_new_tokens=12))
    mx.set_default_device(gpu)
    np.testing.assert_array_equal(np.array(model.generate(ids, max_new_tokens=12)), want)
