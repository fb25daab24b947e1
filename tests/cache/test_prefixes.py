"""Prefix cache: the longest stored prefix is returned as an independent copy, within the limit of bytes."""

import numpy as np
import pytest

from mlx_qwen3.cache import PrefixCache
from mlx_qwen3.errors import InputError
from tests.support import tiny

SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def filled(model, ids, **options):
    cache = model.make_cache(**options)
    model(np.array([ids]), past_key_values=cache)
    return cache


def test_the_longest_prefix_is_found_and_returned_as_a_copy():
    model = tiny.model()
    prefixes = PrefixCache(1 << 24)
    prefixes.insert([1, 2, 3, 4, 5], filled(model, [1, 2, 3, 4, 5]))
    prefixes.insert([1, 2, 9, 9], filled(model, [1, 2, 9, 9]))
    for _ in range(2):
        cache, length = prefixes.longest_prefix([1, 2, 3, 4, 8, 8])
        assert length == 4 == cache.offset
        got = model(np.array([[8, 8]]), past_key_values=cache).logits
        want = model(np.array([[1, 2, 3, 4, 8, 8]])).logits[:, 4:]
        np.testing.assert_allclose(np.array(got), np.array(want), atol=1e-5)
    assert prefixes.longest_prefix([7, 1, 2])[0] is None
    assert prefixes.longest_prefix([])[1] == 0
    prefixes.clear()
    assert prefixes.longest_prefix([1, 2]) == (None, 0)


def test_the_least_recently_used_entry_is_evicted_to_stay_within_the_limit():
    model = tiny.model()
    one = filled(model, [1, 2, 3]).nbytes
    prefixes = PrefixCache(2 * one)
    prefixes.insert([1, 2, 3], filled(model, [1, 2, 3]))
    prefixes.insert([4, 5, 6], filled(model, [4, 5, 6]))
    assert prefixes.longest_prefix([1, 2, 3])[1] == 3
    assert prefixes.insert([7, 8, 9], filled(model, [7, 8, 9]))
    assert prefixes.nbytes <= 2 * one
    assert [prefixes.longest_prefix(ids)[1] for ids in ([1, 2, 3], [4, 5, 6], [7, 8, 9])] == [3, 0, 3]
    small = PrefixCache(one - 1)
    assert not small.insert([1, 2, 3], filled(model, [1, 2, 3]))
    assert len(small) == 0


def test_the_total_of_bytes_follows_every_insert_replacement_eviction_and_clear():
    model = tiny.model()
    short, long = (filled(model, ids, step=1) for ids in ([1, 2, 3], [1, 2, 3, 4, 5]))
    other = filled(model, [7, 8, 9], step=1)
    prefixes = PrefixCache(short.nbytes + long.nbytes)
    assert prefixes.nbytes == 0
    for _ in range(2):  # the second insert replaces the entry of the same ids
        prefixes.insert([1, 2, 3], short)
        assert prefixes.nbytes == short.nbytes
    prefixes.longest_prefix([1, 2])
    assert prefixes.nbytes == short.nbytes
    prefixes.insert([1, 2, 3, 4, 5], long)  # covers the short one
    assert prefixes.nbytes == long.nbytes
    prefixes.insert([7, 8, 9], other)
    assert prefixes.nbytes == long.nbytes + other.nbytes
    prefixes.insert([6, 6, 6], filled(model, [6, 6, 6], step=1))  # evicts the long one
    assert len(prefixes) == 2
    assert prefixes.nbytes == 2 * other.nbytes
    prefixes.clear()
    assert prefixes.nbytes == 0


def test_an_entry_is_dropped_if_a_longer_one_can_be_trimmed_to_it():
    ids = list(range(1, 21))
    for fields, left in (({}, 1), (SLIDING, 2)):
        model, prefixes = tiny.model(**fields), PrefixCache(1 << 24)
        prefixes.insert(ids[:8], filled(model, ids[:8], step=1))
        prefixes.insert(ids, filled(model, ids, step=1))
        assert len(prefixes) == left
        assert prefixes.longest_prefix(ids[:8])[1] == 8


def test_sliding_layers_are_rewound_to_the_snapshot():
    model = tiny.model(**SLIDING)
    system, user = list(range(1, 11)), list(range(20, 32))
    cache = filled(model, system, step=1)
    cache.snapshot()
    model(np.array([user]), past_key_values=cache)
    prefixes = PrefixCache(1 << 24)
    prefixes.insert(system + user, cache)
    prompt = [*system, 20, 50, 51]
    found, length = prefixes.longest_prefix(prompt)
    assert length == len(system)
    got = model(np.array([prompt[length:]]), past_key_values=found).logits
    np.testing.assert_allclose(np.array(got), np.array(model(np.array([prompt])).logits[:, length:]), atol=1e-5)


def test_ids_that_do_not_match_the_cache_are_refused():
    model = tiny.model()
    with pytest.raises(InputError, match="does not belong"):
        PrefixCache(1 << 20).insert([1, 2], filled(model, [1, 2, 3]))
    with pytest.raises(InputError, match="max_bytes is -1"):
        PrefixCache(-1)
