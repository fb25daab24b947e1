"""After an error or interruption at any file event, the old or the new content is saved."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import ChatSession, MlxQwen3Error
from mlx_qwen3.cache import load_cache, make_cache, save_cache
from mlx_qwen3.chat.transcript import load_transcript, save_transcript
from mlx_qwen3.checkpoint import save_checkpoint
from mlx_qwen3.conversion import convert
from tests.support import tiny
from tests.support.interruptions import fail_at_every_event

ERRORS = (MlxQwen3Error,)
IDS = mx.array([[1, 2, 3]])


def seen(folder):
    """Return the settings and the logits of the model in a folder."""
    model = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder)
    return model.config.to_json_string(), np.array(model(IDS).logits).round(5).tolist()


def models():
    mx.random.seed(0)
    old, new = tiny.model(), tiny.model(num_hidden_layers=1, tie_word_embeddings=True)
    mx.eval(old.parameters(), new.parameters())
    return old, new


@pytest.mark.parametrize("shard", [5 << 30, pytest.param(20_000, marks=pytest.mark.slow)])
def test_an_interrupted_save_leaves_the_old_or_the_new_model(tmp_path, shard):
    old, new = models()
    events = fail_at_every_event(
        tmp_path,
        lambda root: old.save_pretrained(root / "m", max_shard_size=20_000 if shard > 1 << 20 else 5 << 30),
        lambda root: new.save_pretrained(root / "m", max_shard_size=shard),
        lambda root: seen(root / "m"),
        ERRORS,
    )
    assert events > 10


def test_an_interrupted_conversion_leaves_the_old_or_the_new_model(tmp_path):
    old, new = models()
    old.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "new")

    events = fail_at_every_event(
        tmp_path,
        lambda root: convert(tmp_path / "old", root / "m", report=False),
        lambda root: convert(tmp_path / "new", root / "m", force=True, report=False),
        lambda root: seen(root / "m"),
        ERRORS,
    )
    assert events > 8


def test_an_interrupted_save_leaves_the_old_or_the_new_conversation(tmp_path):
    def write(root, *texts):
        save_transcript(root / "chat.json", None, [{"role": "user", "content": text} for text in texts])

    events = fail_at_every_event(
        tmp_path,
        lambda root: write(root, "one"),
        lambda root: write(root, "one", "two"),
        lambda root: load_transcript(root / "chat.json"),
        ERRORS,
    )
    assert events > 2
    assert callable(ChatSession.save)


def test_an_interrupted_save_leaves_the_old_or_the_new_cache(tmp_path):
    config = tiny.model().config

    def write(root, tokens):
        cache = make_cache(config.layer_types, config.sliding_window)
        for layer in cache.layers:
            shape = (1, config.num_key_value_heads, tokens, config.head_dim)
            layer.update(mx.full(shape, float(tokens)), mx.ones(shape))
        save_cache(root / "cache", cache, config)

    def look(root):
        cache, _ = load_cache(root / "cache", config)
        return cache.offset, float(cache.arrays[0].max().item())

    assert fail_at_every_event(tmp_path, lambda root: write(root, 2), lambda root: write(root, 3), look, ERRORS) > 2


def test_an_interrupted_save_leaves_the_old_or_the_new_weights(tmp_path):
    def write(root, value):
        save_checkpoint(root / "w", {"a": mx.full((3,), value), "b": mx.full((2,), value)}, max_shard_size=8)

    def look(root):
        from mlx_qwen3.checkpoint import open_checkpoint, resolve_checkpoint

        found = open_checkpoint(resolve_checkpoint(root / "w")).read_all()
        return {name: array.tolist() for name, array in found.items()}

    assert fail_at_every_event(tmp_path, lambda root: write(root, 1.0), lambda root: write(root, 2.0), look, ERRORS) > 8
