"""Additive masks stay finite in every dtype, and the attention of a fully masked row is defined."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.layers.attention import attend, attend_with_weights
from mlx_qwen3.layers.masks import additive, decoder_mask, with_hidden_slots
from tests.support import tiny

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Norm of the difference from the float32 path over the norm of the float32 path."""
PAST = 5


def metal_attention(queries, keys, values, *, scale, mask=None):
    """Emulate Metal's attention kernel for more than 8 queries: scores and mask in units of log2, sums in float32.

    Source: MLX `kernels/steel/attn/kernels/steel_attention.h`.
    """
    log2e = np.float32(math.log2(math.e))
    q, k, v = (np.array(array.astype(mx.float32)) for array in (queries, keys, values))
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (q * np.float32(scale) * log2e) @ k.swapaxes(-1, -2)
        if isinstance(mask, str):
            length, slots = scores.shape[-2:]
            hidden = np.arange(slots) > np.arange(slots - length, slots)[:, None]
            scores = np.where(hidden, np.finfo(np.float32).min, scores)
        elif mask is not None and mask.dtype == mx.bool_:
            scores = np.where(np.array(mask), scores, np.finfo(np.float32).min)
        elif mask is not None:
            assert mask.dtype == queries.dtype
            scores = scores + log2e * np.array(mask.astype(mx.float32))
        powers = np.exp2(scores - scores.max(axis=-1, keepdims=True))
        mixed = (powers / powers.sum(axis=-1, keepdims=True)) @ v
    return mx.array(mixed).astype(queries.dtype)


@pytest.fixture
def as_on_metal(monkeypatch):
    """Use the emulated kernel for attention."""
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", metal_attention)


def allowed_keys(length, past=PAST):
    """Return booleans (1, 1, L, S): causal, the first two keys masked, and one fully masked row."""
    order = mx.arange(past, past + length)[:, None]
    slots = mx.arange(past + length)[None]
    seen = (slots <= order) & (slots > 1)
    return (seen & (mx.arange(length)[:, None] != length // 2))[None, None]


def mask_of(kind, length):
    allowed = allowed_keys(length)
    if kind == "bool":
        return allowed
    name, _, least = kind.partition(" ")
    dtype = DTYPES[name]
    hides = {"": mx.finfo(dtype).min, "inf": -math.inf, "-1e9": -1e9}[least]
    return mx.where(allowed, mx.array(0, dtype), mx.array(hides, dtype))


def model_in(dtype):
    """Return a tiny model in a dtype, and the same numbers in float32."""
    made, exact = tiny.model(head_dim=32, initializer_range=0.1), tiny.model(head_dim=32, initializer_range=0.1)
    made.set_dtype(dtype)
    exact.load_weights([(name, value.astype(mx.float32)) for name, value in flatten(made)])
    return made, exact


def flatten(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def states(model, length, mask, packed, weights):
    cache = model.make_cache(**({"kv_bits": 8, "kv_group_size": 32} if packed else {}))
    ids = tiny.ids(batch=1, length=PAST + length)
    model.model(ids[:, :PAST], past_key_values=cache)
    output = model.model(ids[:, PAST:], attention_mask=mask, past_key_values=cache, output_attentions=weights)
    return output.last_hidden_state.astype(mx.float32)


@pytest.mark.parametrize("metal", [False, True], ids=["cpu", "metal"])
@pytest.mark.parametrize(
    "kind", ["bool", "float32", "float32 inf", "float32 -1e9", "bfloat16", "bfloat16 inf", "float16"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_given_mask_gives_finite_outputs_in_every_dtype(request, dtype, kind, metal):
    if metal:
        request.getfixturevalue("as_on_metal")
    model, exact = model_in(DTYPES[dtype])
    for length in (1, 7, 9, 64):
        for packed in (False, True):
            want = states(exact, length, allowed_keys(length), packed, False)
            for weights in (False, True):
                got = states(model, length, mask_of(kind, length), packed, weights)
                assert not mx.any(mx.isnan(got)).item(), (length, packed, weights)
                error = mx.linalg.norm(got - want) / mx.linalg.norm(want)
                assert error.item() < TOLERANCES[dtype], (length, packed, weights, error.item())


def test_the_emulated_kernel_returns_nan_for_the_smallest_float32():
    queries, keys, values = (mx.random.normal((1, 2, 9, 32)) for _ in range(3))
    least = mx.full((1, 1, 9, 9), mx.finfo(mx.float32).min)
    assert mx.all(mx.isnan(metal_attention(queries, keys, values, scale=1.0, mask=least))).item()
    clipped = metal_attention(queries, keys, values, scale=1.0, mask=additive(least, mx.float32))
    assert mx.allclose(clipped, mx.broadcast_to(values.mean(axis=2, keepdims=True), values.shape), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipped_masks_stay_finite_when_scaled(dtype):
    for name in DTYPES:
        for value in (-math.inf, mx.finfo(DTYPES[name]).min, -1e9, 0.0, 1.0):
            found = additive(mx.array([value], DTYPES[name]), DTYPES[dtype])
            assert found.dtype == DTYPES[dtype]
            scaled = np.array((found * math.log2(math.e)).astype(mx.float32))
            assert np.isfinite(scaled).all()
            if value > -30000:
                assert found.item() == value


@pytest.mark.parametrize("kind", ["bool", "float32", "float32 inf"])
def test_a_fully_masked_query_attends_to_itself(as_on_metal, kind):
    length = 9
    queries = mx.random.normal((1, 2, length, 32))
    keys, values = (mx.random.normal((1, 2, PAST + length, 32)) for _ in range(2))
    mask = decoder_mask(length, PAST, ((0, PAST + length),), attention_mask=mask_of(kind, length), dtype=mx.float32)
    for found in (attend(queries, keys, values, 0.2, mask), attend_with_weights(queries, keys, values, 0.2, mask)[0]):
        assert mx.allclose(found[:, :, length // 2], values[:, :, PAST + length // 2], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (1, 1, 6, 1), (1, 1, 1, 1)])
def test_a_broadcast_mask_may_mask_everything(shape):
    model = tiny.model()
    for mask in (mx.zeros(shape, mx.bool_), mx.full(shape, -math.inf), mx.zeros(shape, mx.int32)):
        found = model(tiny.ids(batch=1, length=6), attention_mask=mask).logits
        alone = [
            model(tiny.ids(batch=1, length=6)[:, i : i + 1], position_ids=mx.array([[i]])).logits for i in range(6)
        ]
        assert mx.allclose(found, mx.concatenate(alone, axis=1), atol=1e-5)


def test_masked_slots_are_finite():
    padded = with_hidden_slots(mx.zeros((1, 1, 2, 6), mx.float16), 2, 6, 2)
    assert padded.shape == (1, 1, 2, 8)
    assert np.isfinite(np.array(padded * math.log2(math.e))).all()
    assert padded[0, 0, 0, -1].item() <= -30000
