"""The cache of a whole model: rewinding, rows, attention sinks, legacy tuples, invalid options."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.cache import Cache, make_cache
from mlx_qwen3.errors import CacheError, InputError
from tests.support import tiny

SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def logits(model, ids, cache=None, **inputs):
    return np.array(model(ids, past_key_values=cache, **inputs).logits)


def test_a_snapshot_rewinds_a_sliding_layer_beyond_its_window():
    model = tiny.model(**SLIDING)
    ids, other = tiny.ids(1, 30), tiny.ids(1, 30, seed=2)
    cache = model.make_cache(step=1)
    logits(model, ids[:, :9], cache)
    cache.snapshot()
    logits(model, ids[:, 9:], cache)
    assert cache.reach(20) == 9
    with pytest.raises(CacheError, match=r"rewind\(9\)"):
        cache.trim(10)
    assert cache.offset == 30
    assert cache.rewind(12) == 9
    want = logits(model, mx.concatenate([ids[:, :9], other[:, 9:]], axis=1))[:, 9:]
    np.testing.assert_allclose(logits(model, other[:, 9:], cache), want, atol=1e-5)
    assert cache.rewind(8) == 0 == cache.offset  # the snapshot at 9 is beyond 8, so only the beginning can be reached
    np.testing.assert_allclose(logits(model, other, cache), logits(model, other), atol=1e-5)
    assert cache.reach(9) == 0  # the tokens of the snapshot were replaced


def test_the_newest_snapshots_are_kept():
    model = tiny.model(**SLIDING)
    cache = model.make_cache(step=1)
    for _ in range(5):
        logits(model, tiny.ids(1, 8), cache)
        cache.snapshot(limit=2)
    assert [cache.reach(at) for at in (33, 31, 24)] == [32, 0, 0]
    held = cache.nbytes
    cache.rewind(32)
    assert cache.nbytes < held


def test_full_layers_need_no_snapshot():
    model = tiny.model()
    cache = model.make_cache()
    logits(model, tiny.ids(1, 8), cache)
    before = cache.nbytes
    cache.snapshot()
    assert cache.nbytes == before
    assert cache.rewind(3) == 3


def test_sinks_and_window_equal_a_mask():
    model = tiny.model()
    ids, size, sinks = tiny.ids(2, 25), 9, 3
    at = np.arange(25)
    seen = (at[None] <= at[:, None]) & ((at[None] > at[:, None] - (size - sinks)) | (at[None] < sinks))
    mask = mx.broadcast_to(mx.array(seen)[None, None], (2, 1, 25, 25))
    want = logits(model, ids, attention_mask=mask, use_cache=False)
    for chunks in ([25], [1] * 25, [10, 1, 1, 8, 5]):
        cache, got = model.make_cache(max_kv_size=size, sinks=sinks, step=4), []
        for chunk in chunks:
            got.append(logits(model, ids[:, cache.offset : cache.offset + chunk], cache))
        np.testing.assert_allclose(np.concatenate(got, axis=1), want, atol=1e-5)
        assert all(keys is not None and keys.shape[2] == size - 1 for keys, _ in cache)


def test_a_rotating_cache_below_its_size_equals_a_full_cache():
    model, ids = tiny.model(), tiny.ids(1, 12)
    cache = model.make_cache(max_kv_size=12)
    np.testing.assert_allclose(logits(model, ids, cache), logits(model, ids), atol=1e-6)


def test_a_packed_cache_returns_attentions():
    model = tiny.model(head_dim=32)
    ids = tiny.ids(2, 6)
    cache = model.make_cache(kv_bits=8, kv_group_size=32)
    output = model(ids, past_key_values=cache, output_attentions=True)
    assert [w.shape for w in output.attentions] == [(2, 4, 6, 6)] * 2
    again = logits(model, ids, model.make_cache(kv_bits=8, kv_group_size=32))
    np.testing.assert_allclose(np.array(output.logits), again, atol=1e-4)


def test_selected_rows_keep_their_tokens():
    model = tiny.model(**SLIDING)
    ids = tiny.ids(5, 9)
    for order in ([0, 1, 4, 3], [2], [3, 3, 0, 1, 2, 4], [4, 3, 2, 1, 0]):
        cache = model.make_cache(step=2)
        logits(model, ids[:, :7], cache)
        cache.select_rows(order)
        rows = ids[mx.array(order)]
        assert cache.batch_size == len(order)
        np.testing.assert_allclose(logits(model, rows[:, 7:], cache), logits(model, rows)[:, 7:], atol=1e-5)
    with pytest.raises(InputError, match="rows"):
        cache.select_rows([5])
    with pytest.raises(InputError, match="rows"):
        cache.select_rows([])


def test_rows_of_another_cache_replace_rows():
    model, ids, new = tiny.model(), tiny.ids(3, 12), tiny.ids(2, 6, seed=5)
    cache, other = model.make_cache(step=2), model.make_cache()
    logits(model, ids[:, :9], cache)
    before = [np.array(keys) for keys, _ in cache]
    kept = cache.copy()
    logits(model, new[:, :5], other)
    assert cache.takes_rows
    cache._snapshots = {4: []}
    cache.put_rows([2, 0], other)
    assert not cache._snapshots  # they belonged to other rows
    mask = mx.array([[0] * 4 + [1] * 6, [1] * 10, [0] * 4 + [1] * 6])
    positions = mx.array([[5], [9], [5]])
    step = mx.stack([new[1, 5:], ids[1, 9:10], new[0, 5:]])
    found = logits(model, step, cache, attention_mask=mask, position_ids=positions)[:, 0]
    want = logits(model, new)[:, 5]
    np.testing.assert_allclose(found[[2, 0]], want, atol=1e-5)
    np.testing.assert_allclose(found[1], logits(model, ids[1:2, :10])[0, 9], atol=1e-5)
    for keys, old in zip((keys for keys, _ in kept), before, strict=True):
        np.testing.assert_array_equal(np.array(keys), old)  # an earlier copy does not change


def test_rows_that_cannot_replace_others_are_refused():
    model = tiny.model()
    cache, longer = model.make_cache(), model.make_cache()
    logits(model, tiny.ids(2, 5), cache)
    logits(model, tiny.ids(1, 6), longer)
    with pytest.raises(CacheError, match="1 rows of 6 tokens into 1 rows of 5"):
        cache.put_rows([0], longer)
    with pytest.raises(CacheError, match="into 2 rows"):
        longer.put_rows([0, 0], longer)
    short = model.make_cache()
    logits(model, tiny.ids(1, 3), short)
    for places in ([2], [-1]):
        with pytest.raises(InputError, match="2 rows"):
            cache.put_rows(places, short)
    short.repeat(2)
    with pytest.raises(InputError, match=r"\[0, 0\]"):
        cache.put_rows([0, 0], short)
    sliding = model.make_cache(max_kv_size=8)
    assert not sliding.takes_rows
    assert not make_cache(["full_attention"] * 2, kv_bits=8).takes_rows
    with pytest.raises(CacheError, match="sliding or quantized"):
        sliding.put_rows([0], cache)


def test_a_shared_prefix_is_repeated_for_many_rows():
    model = tiny.model(**SLIDING)
    prefix, rest = tiny.ids(1, 7), tiny.ids(3, 4, seed=5)
    cache = model.make_cache()
    logits(model, prefix, cache)
    held = mx.get_active_memory()
    cache.repeat(3)
    mx.eval(cache.arrays)
    assert mx.get_active_memory() - held < 4096
    whole = mx.concatenate([mx.repeat(prefix, 3, axis=0), rest], axis=1)
    np.testing.assert_allclose(logits(model, rest, cache), logits(model, whole)[:, 7:], atol=1e-5)
    with pytest.raises(InputError, match="repeat"):
        cache.repeat(0)


def test_another_number_of_rows_is_reported():
    model = tiny.model()
    cache = model.make_cache()
    logits(model, tiny.ids(2, 3), cache)
    with pytest.raises(InputError, match="holds 2 rows, the input has 3"):
        model(tiny.ids(3, 1), past_key_values=cache)


def test_a_cache_from_tuples_has_the_position_of_sliding_layers():
    model = tiny.model(**SLIDING)
    ids = tiny.ids(2, 12)
    cache = model.make_cache()
    logits(model, ids[:, :9], cache)
    past = cache.to_legacy_cache()
    assert [keys.shape[2] for keys, _ in past] == [9, 3]
    output = model(ids[:, 9:], past_key_values=past)
    assert output.past_key_values.get_seq_length() == 12
    np.testing.assert_allclose(np.array(output.logits), logits(model, ids)[:, 9:], atol=1e-5)


def test_tuples_of_unknown_length_are_refused():
    kinds, pair = ["sliding_attention"] * 2, (mx.zeros((1, 2, 3, 8)), mx.zeros((1, 2, 3, 8)))
    with pytest.raises(InputError, match="Pass the cache object"):
        Cache.from_legacy([pair, pair], kinds, 4)
    assert Cache.from_legacy([pair, pair], kinds, 5).offset == 3
    with pytest.raises(InputError, match="in layer 1, expected 3"):
        Cache.from_legacy([pair, (pair[0][:, :, :1], pair[1][:, :, :1])], ["full_attention", kinds[0]], 4)
    with pytest.raises(InputError, match="1 layers, the model has 2"):
        Cache.from_legacy([pair], kinds, 5)
    with pytest.raises(InputError, match="in layer 0"):
        Cache.from_legacy([(pair[0][0], pair[1]), pair], kinds, 5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_kv_size": 4}, "max_kv_size is 4"),
        ({"kv_bits": 5}, "kv_bits is 5"),
        ({"slack": -1}, "negative"),
        ({"kv_bits": 8}, "kv_group_size 64 does not divide 'head_dim' 8"),
    ],
)
def test_invalid_options_are_reported(options, named):
    with pytest.raises(InputError, match=named):
        tiny.model().make_cache(**options)


def test_a_window_wider_than_the_cache_is_reduced():
    cache = make_cache(["sliding_attention", "full_attention"], 100, max_kv_size=10)
    assert [(layer.window, layer.sinks) for layer in cache.layers] == [(10, 0), (6, 4)]
