"""Rows that join and leave a batch have the logits of the single row, for every type of cache."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.cache import RowSource, join_rows, make_cache
from mlx_qwen3.errors import CacheError, InputError
from tests.support import tiny

SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
CASES = {
    "growing": ({}, {}),
    "sliding": (SLIDING, {}),
    "sliding with slack": (SLIDING, {"slack": 3}),
    "quantized": ({"head_dim": 32}, {"kv_bits": 8, "kv_group_size": 32}),
    "sliding and quantized": ({**SLIDING, "head_dim": 32}, {"kv_bits": 8, "kv_group_size": 32}),
}


def filled(model, ids, options):
    cache = model.make_cache(step=4, **options)
    model.fill_cache(ids, cache)
    mx.eval(cache.arrays)
    return cache


def step(model, cache, tokens, lengths):
    """Return the logits of one more token per row, (B, V)."""
    slot = cache.offset
    padding = np.array([slot - length for length in lengths])
    mask = mx.array((np.arange(slot + 1) >= padding[:, None]).astype(np.int32))
    positions = mx.array(np.array(lengths)[:, None])
    return np.array(model.step_logits(mx.array(tokens)[:, None], cache, 1, mask, positions)[:, -1])


@pytest.mark.parametrize("name", CASES)
def test_joined_rows_continue_like_single_rows(name):
    fields, options = CASES[name]
    model = tiny.model(**fields)
    lengths = [3, 17, 9, 30]
    prompts = [tiny.ids(1, length, seed=length) for length in lengths]
    batch, rows = None, []
    for number, length in enumerate(lengths):
        alone = filled(model, prompts[number], options)
        sources = [RowSource(alone, [0], length)]
        if batch is not None:
            sources.insert(0, RowSource(batch, range(number), batch.offset))
        batch = join_rows(sources)
        rows.append(length)
        for turn in range(2):  # existing rows continue between the joins
            step(model, batch, [7 + turn] * len(rows), rows)
            rows = [row + 1 for row in rows]
    logits = step(model, batch, [11] * 4, rows)
    for number, length in enumerate(lengths):
        own = [7, 8] * (4 - number) + [11]
        cache = filled(model, prompts[number], options)
        for token in own:
            want = np.array(model.step_logits(mx.array([[token]]), cache)[:, -1])
        np.testing.assert_allclose(logits[number], want[0], atol=2e-4 if "kv_bits" in options else 2e-5)
        assert len(own) + length == rows[number] + 1


@pytest.mark.parametrize("name", CASES)
def test_padding_of_a_removed_row_is_dropped(name):
    fields, options = CASES[name]
    model = tiny.model(**fields)
    caches = [filled(model, tiny.ids(1, length, seed=length), options) for length in (25, 6, 8)]
    batch = join_rows([RowSource(cache, [0], cache.offset) for cache in caches])
    kept = join_rows([RowSource(batch, [2, 1], 8)])
    assert kept.offset == 8
    assert kept.nbytes < batch.nbytes
    logits = step(model, kept, [4, 5], [8, 6])
    want = np.array(model.step_logits(mx.array([[4]]), caches[2])[:, -1])
    np.testing.assert_allclose(logits[0], want[0], atol=2e-4 if "kv_bits" in options else 2e-5)


def test_an_extracted_and_trimmed_row_can_join_again():
    model = tiny.model(**SLIDING)
    caches = [filled(model, tiny.ids(1, length, seed=length), {"slack": 4}) for length in (25, 30)]
    alone = join_rows([RowSource(caches[0], [0], 25)], room=False)
    alone.trim(3)
    batch = join_rows([RowSource(caches[1], [0], 30), RowSource(alone, [0], 22)])
    logits = step(model, batch, [4, 5], [30, 22])
    want = filled(model, tiny.ids(1, 25, seed=25)[:, :22], {"slack": 4})
    np.testing.assert_allclose(logits[1], np.array(model.step_logits(mx.array([[5]]), want)[0, -1]), atol=2e-5)


def test_empty_slots_contain_zeros():
    model = tiny.model()
    caches = [filled(model, tiny.ids(1, length), {}) for length in (12, 3)]
    keys, values = join_rows([RowSource(cache, [0], cache.offset) for cache in caches])[0]
    assert not np.array(keys)[1, :, :9].any()
    assert not np.array(values)[1, :, :9].any()


def test_rows_that_cannot_be_joined_are_refused():
    model = tiny.model()
    cache = filled(model, tiny.ids(1, 5), {})
    with pytest.raises(InputError, match="no rows"):
        join_rows([])
    with pytest.raises(InputError, match="cannot take 6 tokens"):
        join_rows([RowSource(cache, [0], 6)])
    sinks = make_cache(model.config.layer_types, max_kv_size=16)
    model.fill_cache(tiny.ids(1, 5), sinks)
    with pytest.raises(CacheError, match="attention sinks"):
        join_rows([RowSource(sinks, [0], 5)])
