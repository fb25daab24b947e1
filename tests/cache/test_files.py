"""Saved caches: loading restores the cache, and an error names what differs."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.cache import load_cache, save_cache
from mlx_qwen3.errors import CacheError, InputError
from tests.support import tiny

SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "head_dim": 32}
OPTIONS = [{}, {"kv_bits": 8, "kv_group_size": 32}, {"max_kv_size": 9, "kv_bits": 4, "kv_group_size": 32, "step": 2}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float32, 1e-5), (mx.bfloat16, 0.1)])
def test_a_saved_cache_is_loaded_with_the_same_outputs(tmp_path, options, dtype, tolerance):
    model, ids = tiny.model(**SLIDING), tiny.ids(1, 20)
    model.set_dtype(dtype)
    cache = model.make_cache(**options)
    model(ids[:, :15], past_key_values=cache)
    path = tmp_path / "new folder" / "system prompt"
    token_ids = ids[0, :15].tolist()
    save_cache(path, cache, model.config, token_ids=token_ids, identity={"weights": "a1"}, metadata={"name": "é"})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    loaded, info = load_cache(path, model.config, identity={"weights": "a1", "tokenizer": "not in the file"})
    assert (info.token_ids, info.identity, info.metadata) == (token_ids, {"weights": "a1"}, {"name": "é"})
    want = model(ids[:, 15:], past_key_values=cache).logits
    got = model(ids[:, 15:], past_key_values=loaded).logits
    assert got.dtype == want.dtype
    if "max_kv_size" in options:  # tokens outside of the window are removed from the buffer at another time
        np.testing.assert_allclose(np.array(got.astype(mx.float32)), np.array(want.astype(mx.float32)), atol=tolerance)
    else:
        assert mx.array_equal(got, want)


def test_an_empty_cache_can_be_saved(tmp_path):
    model = tiny.model()
    save_cache(tmp_path / "c", model.make_cache(), model.config)
    loaded, info = load_cache(tmp_path / "c", model.config)
    assert loaded.offset == 0
    assert info.token_ids == []
    np.testing.assert_allclose(
        np.array(model(tiny.ids(), past_key_values=loaded).logits), np.array(model(tiny.ids()).logits), atol=1e-6
    )


@pytest.fixture
def saved(tmp_path):
    model = tiny.model(**SLIDING)
    cache = model.make_cache()
    model(tiny.ids(1, 9), past_key_values=cache)
    save_cache(tmp_path / "c", cache, model.config, identity={"tokenizer": "t1"})
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_hidden_layers": 3}, "'num_hidden_layers' is 2 there and 3 here"),
        ({"sliding_window": 5}, "'sliding_window' is 4 there and 5 here"),
        ({"num_key_value_heads": 4}, "'num_key_value_heads' is 2 there and 4 here"),
        ({"head_dim": 64}, "'head_dim' is 32 there and 64 here"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "'rope_parameters'"),
    ],
)
def test_the_cache_of_another_model_is_refused(saved, fields, named):
    with pytest.raises(CacheError, match=named):
        load_cache(saved, tiny.config(**{**SLIDING, **fields}))


def test_the_cache_of_another_tokenizer_is_refused(saved):
    with pytest.raises(CacheError, match="made with another model: 'tokenizer' differs"):
        load_cache(saved, tiny.config(**SLIDING), identity={"tokenizer": "t2"})


def test_truncated_files_are_refused(saved):
    data = saved.read_bytes()
    for size in (0, 5, 8, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:size])
        with pytest.raises(CacheError, match="not a complete saved cache"):
            load_cache(saved, tiny.config(**SLIDING))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (b'"version":"1"', b'"version":"7"', "version 7"),
        (b'"format":"mlx_qwen3.cache"', b'"format":"mlx_other.cache"', "not a cache"),
        (b'\\"offset\\": 9', b'\\"offset\\": 8', "do not fit"),
        (b'\\"kind\\": \\"growing\\"', b'\\"kind\\": \\"unknown\\"', "do not fit"),
        (b'\\"arrays\\": 2', b'\\"arrays\\": 1', "do not fit"),
        (b'"layers":"[', b'"layers":"]', "damaged"),
    ],
)
def test_an_inconsistent_file_is_refused(saved, old, new, named):
    data = saved.read_bytes()
    assert old in data
    saved.write_bytes(data.replace(old, new))
    with pytest.raises(CacheError, match=named):
        load_cache(saved, tiny.config(**SLIDING))


def test_a_missing_file_and_an_unwritable_path_are_reported(saved, tmp_path):
    with pytest.raises(CacheError, match="there is no saved cache"):
        load_cache(tmp_path / "nothing", tiny.config())
    with pytest.raises(CacheError, match="cannot write"):
        save_cache(saved / "below a file", tiny.model().make_cache(), tiny.config())
    with pytest.raises(InputError, match="token_ids holds 2 ids"):
        save_cache(tmp_path / "d", tiny.model().make_cache(), tiny.config(), token_ids=[1, 2])


def test_an_interrupted_save_leaves_the_older_file(saved, monkeypatch):
    before = saved.read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    model = tiny.model(**SLIDING)
    cache = model.make_cache()
    model(tiny.ids(1, 3), past_key_values=cache)
    monkeypatch.setattr("mlx_qwen3.cache.files.os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        save_cache(saved, cache, model.config)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
