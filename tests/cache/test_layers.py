"""The cache of one layer returns what was stored, in the slots it reports, after any updates and trims."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.cache import GrowingLayer, KVFormat, LayerCache, SlidingLayer
from mlx_qwen3.cache.layers import LONG_STEP, STEP, step_for
from mlx_qwen3.errors import CacheError, InputError
from mlx_qwen3.layers.attention import attend_with_weights
from mlx_qwen3.layers.masks import decoder_mask, key_slots
from tests.support import tiny

LONGEST = 48


def vectors(length: int, heads: int = 2, size: int = 32, seed: int = 0, batch: int = 1) -> mx.array:
    return mx.random.normal((batch, heads, length, size), key=mx.random.key(seed))


def stored(fmt: KVFormat | None, x: mx.array) -> mx.array:
    return x if fmt is None else fmt.unpack(fmt.pack(x))


@st.composite
def layers(draw: st.DrawFn) -> LayerCache:
    fmt = draw(st.sampled_from([None, KVFormat(8, 32), KVFormat(4, 32)]))
    step = draw(st.sampled_from([1, 3, 256]))
    if draw(st.booleans()):
        return GrowingLayer(fmt, step=step)
    window, slack, sinks = draw(st.integers(1, 9)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    return SlidingLayer(window, slack, sinks, fmt, step=step)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(layers(), st.lists(st.tuples(st.integers(1, 14), st.integers(0, 6)), min_size=1, max_size=7))
def test_a_layer_returns_what_was_stored_and_attends_only_within_the_window(layer, way):
    keys, values = vectors(LONGEST, seed=1), vectors(LONGEST, seed=2)
    stored_keys, stored_values = np.array(stored(layer.format, keys)), np.array(stored(layer.format, values))
    for fed, back in way:
        start, stop = layer.offset, min(layer.offset + fed, LONGEST)
        if start == stop:
            break
        ranges = layer.slot_ranges(stop - start)
        slots = np.array(key_slots(ranges))
        packed = layer.update(keys[:, :, start:stop], values[:, :, start:stop])
        got_keys, got_values = layer.unpack(*packed)
        assert np.array_equal(np.array(got_keys), stored_keys[:, :, slots])
        assert np.array_equal(np.array(got_values), stored_values[:, :, slots])
        seen = np.tri(stop, dtype=bool)[start:]
        if layer.window is not None:
            near = np.arange(stop)[None] > np.arange(start, stop)[:, None] - layer.window
            seen = seen & (near | (np.arange(stop) < layer.sinks)[None])
        queries = vectors(stop - start, heads=4, seed=3)
        mask = decoder_mask(stop - start, start, ranges, layer.window, sinks=layer.sinks)
        got = layer.attend(queries, *packed, 0.2, mask)
        all_keys, all_values = mx.array(stored_keys[:, :, :stop]), mx.array(stored_values[:, :, :stop])
        want, _ = attend_with_weights(queries, all_keys, all_values, 0.2, mx.array(seen))
        np.testing.assert_allclose(np.array(got), np.array(want), atol=2e-5)
        if layer.offset - back >= layer.earliest:
            layer.trim(back)


def test_additive_and_causal_masks_apply_in_packed_attention():
    layer = GrowingLayer(KVFormat(8, 32))
    packed = layer.update(vectors(6, seed=1), vectors(6, seed=2))
    queries = vectors(3, heads=4, seed=3)
    causal = mx.array(np.tri(6, dtype=bool)[3:])
    plain = layer.unpack(*packed)
    want = np.array(attend_with_weights(queries, *plain, 0.2, causal)[0])
    added = mx.where(causal, 0.0, -1e30)[None, None]
    for mask in ("causal", causal, added):
        np.testing.assert_allclose(np.array(layer.attend(queries, *packed, 0.2, mask)), want, atol=1e-5)


def test_packed_and_unpacked_attention_agree(monkeypatch):
    layer, queries = SlidingLayer(5, 2, 1, KVFormat(4, 32), step=2), vectors(3, heads=4, seed=3)
    layer.update(vectors(9, seed=1), vectors(9, seed=2))
    ranges = layer.slot_ranges(3)
    stored_form = layer.update(vectors(3, seed=4), vectors(3, seed=5))
    mask = decoder_mask(3, 9, ranges, 5, sinks=1)
    packed = layer.attend(queries, *stored_form, 0.2, mask)
    monkeypatch.setattr("mlx_qwen3.cache.packing.multiplies_packed_views", lambda: False)
    np.testing.assert_allclose(np.array(packed), np.array(layer.attend(queries, *stored_form, 0.2, mask)), atol=1e-5)


def test_packing_starts_at_the_given_length_and_includes_earlier_tokens():
    for layer in (GrowingLayer(KVFormat(8, 32), packed_from=5, step=2), SlidingLayer(9, 0, 0, KVFormat(8, 32), 5, 2)):
        keys = vectors(8)
        layer.update(keys[:, :, :3], keys[:, :, :3])
        got, _ = layer.update(keys[:, :, 3:5], keys[:, :, 3:5])
        assert np.array_equal(np.array(got), np.array(keys[:, :, :5]))
        got, _ = layer.unpack(*layer.update(keys[:, :, 5:6], keys[:, :, 5:6]))
        assert np.array_equal(np.array(got), np.array(stored(layer.format, keys[:, :, :6])))
        layer.trim(3)
        got, _ = layer.unpack(*layer.update(keys[:, :, 6:7], keys[:, :, 6:7]))
        expected = mx.concatenate([keys[:, :, :3], keys[:, :, 6:7]], axis=2)
        assert np.array_equal(np.array(got), np.array(stored(layer.format, expected)))


def test_the_slack_limits_the_number_of_trimmed_tokens():
    for slack in (0, 3):
        layer = SlidingLayer(4, slack, step=1)
        for i in range(12):
            layer.update(vectors(1, seed=i), vectors(1, seed=i))
        assert layer.offset - slack - 2 <= layer.earliest <= layer.offset - slack
        with pytest.raises(CacheError, match="can be trimmed only to"):
            layer.trim(layer.offset - layer.earliest + 1)
        assert layer.offset == 12
        layer.trim(12)
        assert layer.state == (None, None)


def test_the_arrays_of_the_caller_are_not_changed():
    keys, values = vectors(3, seed=1), vectors(3, seed=2)
    before = np.array(keys)
    for layer in (GrowingLayer(), SlidingLayer(5)):
        layer.update(keys, values)
        layer.trim(2)
        layer.update(vectors(2, seed=3), vectors(2, seed=4))
        mx.eval(layer.slots.arrays)
        assert np.array_equal(np.array(keys), before)


@pytest.mark.parametrize("window", [None, 512])
def test_no_more_than_the_reported_bytes_is_allocated(window):
    """A view keeps its whole buffer in memory, so the bytes are measured instead of summed."""
    layer = GrowingLayer() if window is None else SlidingLayer(window)
    mx.synchronize()
    before = mx.get_active_memory()
    for seed in range(12):
        joined = vectors(700, heads=6, seed=seed)
        result = layer.update(joined[:, :2], joined[:, 2:4])
        mx.eval(result, layer.slots.arrays)
        del joined, result
        assert mx.get_active_memory() - before <= layer.nbytes + 64 * 1024
    bound = layer.capacity_at(8400) * 2 * 2 * 32 * 4
    assert layer.nbytes <= bound
    if window is None:
        assert bound < 8400 * 2 * 2 * 32 * 4 * 1.1
    else:
        assert bound == (window - 1 + 2 * STEP) * 2 * 2 * 32 * 4


@pytest.mark.parametrize(
    ("bits", "group", "named"), [(3, 64, "kv_bits is 3"), (8, 48, "kv_group_size is 48"), (True, 64, "kv_bits")]
)
def test_an_invalid_format_is_reported(bits, group, named):
    with pytest.raises(InputError, match=named):
        KVFormat(bits, group)


def test_a_group_size_that_does_not_divide_the_head_is_refused_with_one_that_does():
    with pytest.raises(InputError, match="Choose kv_group_size 32"):
        KVFormat(8, 64).check_head_dim(96)
    with pytest.raises(InputError, match="Omit kv_bits"):
        KVFormat(8, 64).check_head_dim(80)


@pytest.mark.parametrize(("heads", "cuda", "step"), [(4, True, LONG_STEP), (4, False, STEP), (2, True, STEP)])
def test_caches_of_large_groups_grow_by_other_steps_on_cuda(monkeypatch, heads, cuda, step):
    monkeypatch.setattr("mlx_qwen3.cache.layers.on_cuda", lambda: cuda)
    model = tiny.model(num_attention_heads=heads, num_key_value_heads=1)
    assert step_for(model.config) == step
    assert {layer.step for layer in model.make_cache().layers} == {step}
    assert {layer.step for layer in model.make_cache(step=8).layers} == {8}
