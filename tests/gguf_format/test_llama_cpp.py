"""llama.cpp loads the files that this package writes and computes the same outputs."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import AutoTokenizer, load
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.conversion import convert_to_gguf
from tests.support.tiny_checkpoints import write_qwen3

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


def decoded(path):
    """Return a copy of a file with every tensor decoded to float32 by the `gguf` package.

    llama.cpp rounds activations to the type of the weights, to 8 bits where these are packed: only on float32 weights
    does it compute what the file says.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    copy = path.with_name(f"decoded-{path.name}")
    writer = gguf.GGUFWriter(copy, "qwen3")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        types = [gguf.GGUFValueType(number) for number in field.types]
        sub_type = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_match(tmp_path, kind, tied):
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
    assert np.abs(ours - scores(llama(decoded(path)), ids)).max() < 1e-4
    assert np.isfinite(scores(llama(path), ids)).all()  # the file itself is accepted


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_bundled_model_matches(tmp_path, kind):
    path = convert_to_gguf(bundled_model_path(), tmp_path / "x.gguf", kind).path
    model, tokenizer = load(path, dtype="float32")
    theirs = llama(decoded(path))
    for text in ("What does os.path.join do?", "<|im_start|>user\nHi<|im_end|>\n", "naïve  code:\n\tx = 1"):
        ids = tokenizer.encode(text)
        assert llama(path).tokenize(text.encode(), add_bos=False, special=True) == ids
        ours = np.array(model(mx.array([ids])).logits[0])
        assert np.abs(ours - scores(theirs, ids)).max() < 1e-3
    original = AutoTokenizer.from_pretrained(bundled_model_path())
    assert theirs.token_eos() == original.eos_token_id
