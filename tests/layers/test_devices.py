"""Every variant gives the same outputs, and each device has its defaults."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import InputError
from mlx_qwen3.generation.context import prefill_step_for
from mlx_qwen3.generation.prompt_lookup import prompt_lookup
from mlx_qwen3.layers import devices as module
from mlx_qwen3.layers.devices import DEFAULTS, Variants, device_kind, using, variants
from mlx_qwen3.layers.rotary import ConsecutivePositions, Rotation, SinglePosition, periods_of
from tests.support import tiny

LENGTHS = (9, 1, 4, 1)
FIELDS = {"head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 2}


def outputs(dtype=mx.float32, fused=True, **options):
    model = tiny.model(**FIELDS)
    model.set_dtype(dtype)
    path, cache = model.for_inference() if fused else model, model.make_cache(**options)
    ids = tiny.ids(batch=1, length=sum(LENGTHS))
    parts, start = [], 0
    for length in LENGTHS:
        parts.append(path.step_logits(ids[:, start : start + length], cache, length))
        start += length
    return mx.concatenate(parts, axis=1).astype(mx.float32)


@pytest.mark.parametrize("rope", ["fast", "table", "compiled"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_every_rotation_variant_gives_the_same_outputs(rope, fused, dtype):
    with using(prefill_rope="table"):
        want = outputs(fused=fused)
    with using(prefill_rope=rope):
        got = outputs(dtype, fused)
    assert mx.linalg.norm(got - want) / mx.linalg.norm(want) < (1e-6 if dtype == mx.float32 else 3e-3)


@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=["plain", "packed"])
def test_joined_and_separate_head_norms_give_the_same_outputs(options):
    with using(head_norms="separate"):
        got = outputs(**options)
    assert mx.allclose(got, outputs(**options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", ["group", "single", "auto"])
def test_every_variant_of_packed_values_gives_the_same_outputs(rows):
    options = {"kv_bits": 4, "kv_group_size": 32}
    want = outputs(**options)
    with using(packed_values=rows):
        assert mx.allclose(outputs(**options), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("heads", "single"), [(2, False), (8, True)])
def test_auto_uses_single_rows_for_four_or_more_heads(monkeypatch, heads, single):
    shapes = []
    product = mx.quantized_matmul

    def watched(x, *rest, **options):
        shapes.append(x.shape)
        return product(x, *rest, **options)

    monkeypatch.setattr(mx, "quantized_matmul", watched)
    model = tiny.model(**{**FIELDS, "num_attention_heads": heads})
    with using(packed_values="auto"):
        model.step_logits(mx.array([[5]]), model.make_cache(kv_bits=8, kv_group_size=32))
    assert shapes[1] == ((1, 2, heads // 2, 1, 1) if single else (1, 2, heads // 2, 1))


@pytest.mark.parametrize("theta", [10000.0, 1000000.0])
def test_the_inverse_periods_are_the_frequencies(theta):
    frequencies = tiny.model("Qwen3Model", head_dim=128, rope_theta=theta)._rotary._fixed
    found = np.float32(1) / periods_of(frequencies)
    assert np.abs(found.astype(np.float64) / frequencies - 1).max() < 6.1e-8  # half a unit in the last place
    assert (found == frequencies).mean() > 0.6


@pytest.mark.parametrize("position", [0, 500, 4000, 32000])
def test_fast_rotation_in_bfloat16_is_at_least_as_exact_as_the_table(position):
    rotary = tiny.model("Qwen3Model", head_dim=128, rope_theta=1e6)._rotary
    x = mx.random.normal((1, 4, 32, 128), key=mx.random.key(0)).astype(mx.bfloat16)
    exact = rotary.at(position, 32)(x.astype(mx.float32))

    def error(rope):
        with using(prefill_rope=rope):
            return mx.abs(rotary.at(position, 32, mx.bfloat16)(x).astype(mx.float32) - exact).mean().item()

    assert error("fast") <= error("table")


def test_float32_uses_the_exact_rotation():
    rotary = tiny.model("Qwen3Model")._rotary
    assert isinstance(rotary.at(0, 5), Rotation)
    assert isinstance(rotary.at(0, 5, mx.bfloat16), ConsecutivePositions)
    assert isinstance(rotary.at(7, 1, mx.bfloat16), SinglePosition)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("position", [0, 1, 700, 32000])
@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}]
)
def test_a_single_position_is_rotated_alike_by_its_angles_and_its_position(dtype, position, scaling):
    rotary = tiny.model("Qwen3Model", head_dim=128, rope_theta=1e6, rope_scaling=scaling)._rotary
    x = mx.random.normal((2, 4, 1, 128), key=mx.random.key(0)).astype(dtype)
    exact = rotary.at(position, 1)(x.astype(mx.float32))
    with using(decode_rope="position"):
        rotation = rotary.at(position, 1, dtype)
        assert isinstance(rotation, ConsecutivePositions)
        assert rotary.at(position, 1, dtype).periods is rotation.periods  # they stay on the device
        assert not isinstance(rotary.at(position, 1), ConsecutivePositions)
    eps = mx.finfo(dtype).eps
    angle = position * 2 * np.finfo(np.float32).eps  # frequencies are at most 1, and rounded twice
    largest = float(mx.abs(x).max())
    assert mx.allclose(rotation(x).astype(mx.float32), exact, atol=2 * eps + angle * largest, rtol=2 * eps)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_each_row_is_rotated_by_its_own_position(dtype):
    rotary = tiny.model("Qwen3Model")._rotary
    x = mx.random.normal((3, 2, 1, 8), key=mx.random.key(0)).astype(dtype)
    positions = mx.array([[3], [61], [7]])
    rotation = rotary.at_positions(positions, dtype)
    assert isinstance(rotation, ConsecutivePositions)
    exact = rotary.at_positions(positions)(x.astype(mx.float32))
    assert mx.allclose(rotation(x).astype(mx.float32), exact, atol=2 * mx.finfo(dtype).eps, rtol=mx.finfo(dtype).eps)


def test_the_attention_factor_is_applied():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    rotary = tiny.model("Qwen3Model", rope_scaling=scaling)._rotary
    x = mx.random.normal((1, 2, 5, 8))
    got = rotary.at(3, 5, mx.float16)(x.astype(mx.float16)).astype(mx.float32)
    assert mx.allclose(got, rotary.at(3, 5)(x), atol=1e-2)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_each_device_has_its_defaults(monkeypatch, kind):
    monkeypatch.setattr(module, "device_kind", lambda: kind)
    assert variants() is DEFAULTS[kind]
    assert prompt_lookup().longest == DEFAULTS[kind].longest_draft
    assert prefill_step_for(tiny.config(), None) == DEFAULTS[kind].prefill_step_size
    with using(prefill_step_size=7):
        assert prefill_step_for(tiny.config(), None) == 7
    assert variants() is DEFAULTS[kind]


def test_the_device_of_this_machine_is_recognized(monkeypatch):
    assert device_kind() in DEFAULTS
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert device_kind() == ("cuda" if mx.cuda.is_available() else "metal")


def test_unknown_variants_are_refused():
    with pytest.raises(InputError, match="prefill_rope is 'x'"):
        Variants(prefill_rope="x")
