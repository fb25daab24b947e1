"""llama.cpp accepts the files that this package writes and computes the same from them."""

import mlx.core as mx
import numpy as np
import pytest
from tiny_checkpoints import write_qwen3

from mlx_qwen3 import AutoTokenizer, load
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.conversion import convert_to_gguf

pytestmark = pytest.mark.reference

F32 = 0
"""The number of this type in ggml, for keys and values."""


def llama(path):
    llama_cpp = pytest.importorskip("llama_cpp")
    options = {"logits_all": True, "n_ctx": 128, "n_threads": 1, "verbose": False}
    return llama_cpp.Llama(str(path), type_k=F32, type_v=F32, flash_attn=False, **options)


def scores(model, ids):
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


# llama.cpp rounds activations to the type of the weights, to 8 bits where these are packed.
@pytest.mark.parametrize(("kind", "bound"), [("f16", 0.01), ("bf16", 0.05), ("q8_0", 0.05), ("q4_0", 0.05)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits(tmp_path, kind, bound, tied):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.3}
    folder = write_qwen3(
        tmp_path / "model",
        "Qwen3ForCausalLM",
        tie_word_embeddings=tied,
        rope_scaling=scaling,
        max_position_embeddings=128,
    )
    path = convert_to_gguf(folder, tmp_path / "x.gguf", kind).path
    ids = [3, 50, 301, 77, 9, 120, 8, 8, 250, 33]
    ours = np.array(load(path, dtype="float32")[0](mx.array([ids])).logits[0])
    theirs = scores(llama(path), ids)
    assert np.abs(ours - theirs).max() < bound * ours.std()


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_bundled_model(tmp_path, kind):
    path = convert_to_gguf(bundled_model_path(), tmp_path / "x.gguf", kind).path
    model, tokenizer = load(path, dtype="float32")
    theirs = llama(path)
    for text in ("What does os.path.join do?", "<|im_start|>user\nHi<|im_end|>\n", "naïve  code:\n\tx = 1"):
        ids = tokenizer.encode(text)
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ids
        ours = np.array(model(mx.array([ids])).logits[0])
        assert np.array_equal(ours.argmax(-1), scores(theirs, ids).argmax(-1))
    original = AutoTokenizer.from_pretrained(bundled_model_path())
    assert theirs.token_eos() == original.eos_token_id
