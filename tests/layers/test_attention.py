"""Attention in plain operations, used on CUDA for a few queries after a cache, equals the fused kernel."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.layers import attention
from mlx_qwen3.layers.attention import attend
from tests.support import tiny


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Select the path as on CUDA; return a list with one entry per step-by-step attention."""
    taken = []
    plain = attention._attend_step_by_step
    monkeypatch.setattr(attention, "on_cuda", lambda: True)
    monkeypatch.setattr(attention, "_attend_step_by_step", lambda *given: taken.append(1) or plain(*given))
    return taken


def draw(length, slots, dtype=mx.float32, batch=1):
    mx.random.seed(3)
    queries = mx.random.normal((batch, 6, length, 16)).astype(dtype)
    keys, values = (mx.random.normal((batch, 3, slots, 16)).astype(dtype) for _ in range(2))
    return queries, keys, values


def masks(length, slots):
    allowed = mx.arange(slots)[None] <= mx.arange(slots - length, slots)[:, None]
    rows = (allowed & (mx.arange(slots) > 1))[None, None]
    return {"none": None, "causal": "causal", "booleans": rows, "numbers": mx.where(rows, 0.0, -1e9)}


@pytest.mark.parametrize("kind", ["none", "causal", "booleans", "numbers"])
@pytest.mark.parametrize(("length", "slots"), [(2, 11), (5, 11), (5, 16)])
def test_step_by_step_attention_equals_the_fused_kernel(as_on_cuda, kind, length, slots):
    arrays, mask = draw(length, slots), masks(length, slots)[kind]
    want = mx.fast.scaled_dot_product_attention(*arrays, scale=0.3, mask=mask)
    assert mx.allclose(attend(*arrays, 0.3, mask), want, atol=1e-5)
    assert as_on_cuda


@pytest.mark.parametrize("kind", ["none", "causal", "booleans", "numbers"])
def test_scores_are_not_rounded_to_bfloat16(as_on_cuda, kind):
    queries, keys, values = draw(5, 40, mx.bfloat16)
    queries = queries * 8  # large scores, whose error in bfloat16 is up to a tenth
    mask = masks(5, 40)[kind]
    found = attend(queries, keys, values, 0.3, mask)
    exact = [array.astype(mx.float32) for array in (queries, keys, values)]
    want = mx.fast.scaled_dot_product_attention(*exact, scale=0.3, mask=mask)
    assert found.dtype == mx.bfloat16
    # half a unit in the last place of the weights and of the result, both below 4
    assert float(np.abs(np.array(found.astype(mx.float32) - want)).max()) < 0.016


@pytest.mark.parametrize("kind", ["none", "padding", "booleans", "numbers"])
@pytest.mark.parametrize("tokens", [13, 16, 23])
def test_a_cache_passes_a_multiple_of_8_slots_on_cuda(as_on_cuda, monkeypatch, tokens, kind):
    seen, plain = [], attention._attend_step_by_step
    monkeypatch.setattr(
        attention, "_attend_step_by_step", lambda *given: seen.append(given[1].shape[2]) or plain(*given)
    )
    mx.random.seed(3)
    model, ids = tiny.model(), tiny.ids(batch=1, length=tokens)
    cache = model.make_cache()
    first = model(ids[:, :9], past_key_values=cache, use_cache=True).logits
    allowed = masks(tokens - 9, tokens)["booleans"] | (mx.arange(tokens) < 2)  # the default mask as an array
    given = {
        "none": None,
        "padding": mx.ones((1, tokens), dtype=mx.int32),
        "booleans": allowed,
        "numbers": mx.where(allowed, 0.0, -1e9),
    }[kind]
    rest = model(ids[:, 9:], past_key_values=cache, use_cache=True, attention_mask=given).logits
    assert mx.allclose(mx.concatenate([first, rest], axis=1), model(ids).logits, atol=1e-4)
    assert set(seen) == {-(-tokens // 8) * 8}


@pytest.mark.parametrize("kind", ["booleans", "numbers"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("length", [1, 7])
def test_padded_rows_of_a_cache_equal_the_fused_kernel(as_on_cuda, kind, dtype, length):
    arrays = draw(length, 11, dtype, batch=3)
    seen = mx.arange(11)[None] >= mx.array([0, 4, 2])[:, None]
    mask = (seen[:, None] & (mx.arange(11)[None] <= mx.arange(11 - length, 11)[:, None]))[:, None]
    if kind == "numbers":
        mask = mx.where(mask, 0.0, -1e9)
    exact = [array.astype(mx.float32) for array in arrays]
    want = mx.fast.scaled_dot_product_attention(*exact, scale=0.3, mask=mask)
    found = attend(*arrays, 0.3, mask, cached=True)
    assert found.dtype == dtype
    assert float(np.abs(np.array(found.astype(mx.float32) - want)).max()) < (1e-5 if dtype == mx.float32 else 0.03)
    assert len(as_on_cuda) == (length > 1)


def test_masks_of_batches_without_a_cache_keep_the_fused_kernel(as_on_cuda):
    mx.eval(attend(*draw(5, 5, batch=2), 0.3, masks(5, 5)["booleans"]))
    assert not as_on_cuda


@pytest.mark.parametrize(("length", "slots", "taken"), [(1, 9, 0), (2, 9, 1), (128, 200, 1), (129, 200, 0), (9, 9, 0)])
def test_step_by_step_attention_is_used_for_a_few_tokens_after_a_cache(as_on_cuda, length, slots, taken):
    mx.eval(attend(*draw(length, slots), 0.3, "causal" if length > 1 else None))
    assert len(as_on_cuda) == taken


def test_step_by_step_attention_is_not_used_for_many_scores(as_on_cuda, monkeypatch):
    monkeypatch.setattr(attention, "MOST_SCORES", 6 * 5 * 11 - 1)
    mx.eval(attend(*draw(5, 11), 0.3, "causal"))
    assert not as_on_cuda


def test_step_by_step_attention_is_not_used_for_batches(as_on_cuda):
    mx.eval(attend(*draw(5, 11, batch=2), 0.3, "causal"))
    assert not as_on_cuda


@pytest.mark.parametrize("fields", [{}, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}])
def test_a_text_in_parts_gives_the_logits_of_the_whole_text(as_on_cuda, fields):
    model, ids = tiny.model(**fields), tiny.ids(batch=1, length=24)
    cache, parts = model.make_cache(), []
    for a, b in ((0, 11), (11, 12), (12, 20), (20, 24)):
        parts.append(model(ids[:, a:b], past_key_values=cache, use_cache=True).logits)
    assert mx.allclose(mx.concatenate(parts, axis=1), model(ids).logits, atol=1e-4)
    assert as_on_cuda


@pytest.mark.parametrize("shape", [(2, 1, 1, 11), (1, 1, 1, 11), (1, 11), (2, 6, 1, 11), (1, 6, 1, 11)])
def test_one_query_per_row_accepts_masks_of_all_shapes(as_on_cuda, shape):
    arrays = draw(1, 11, batch=2)
    mask = mx.random.bernoulli(0.6, shape) | (mx.arange(11) == 10)
    want = mx.fast.scaled_dot_product_attention(*arrays, scale=0.3, mask=mask)
    assert mx.allclose(attend(*arrays, 0.3, mask, cached=True), want, atol=1e-5)
