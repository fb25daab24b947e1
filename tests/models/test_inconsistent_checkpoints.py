"""Inconsistent checkpoints are refused in one line, or give the correct logits."""

import json
import struct

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import MlxQwen3Error, convert
from mlx_qwen3.checkpoint.header import BYTES_PER_ELEMENT
from tests.support import tiny

IDS = mx.array([[5, 9, 11, 40, 7], [3, 60, 12, 8, 33]])
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "head_dim": 32,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "num_hidden_layers": 1,
}


def logits(folder):
    return np.array(mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder)(IDS).logits)


def write(folder, dtype=mx.float32, quantize=False):
    model = tiny.model(**SHAPE, num_key_value_heads=1, sliding_window=None, use_sliding_window=False, layer_types=None)
    if dtype != mx.float32:
        model.set_dtype(dtype)
        model.config.dtype = str(dtype).rpartition(".")[2]
    model.save_pretrained(folder)
    if quantize:
        convert(folder, folder.with_name("packed"), quantize=True, q_group_size=32, report=False)
        return folder.with_name("packed")
    return folder


def header(file):
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(file, table, data):
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refused_or_right(folder, expected, tolerance=1e-4):
    """Return whether loading is refused in one line; otherwise check the logits."""
    try:
        found = logits(folder)
    except MlxQwen3Error as error:
        return "\n" not in str(error)
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
    return False


def relabelled(table, name, dtype):
    """Return the header with a tensor labelled as another dtype of the same size; None if no shape fits."""
    entry = table[name]
    old, new = BYTES_PER_ELEMENT[entry["dtype"]], BYTES_PER_ELEMENT[dtype]
    columns, rest = divmod(entry["shape"][-1] * old, new)
    if rest or not columns:
        return None
    shape = [*entry["shape"][:-1], columns]
    return {**table, name: {**entry, "dtype": dtype, "shape": shape}}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [
        (mx.float32, False),
        pytest.param(mx.bfloat16, True, marks=SLOW),
        pytest.param(mx.float16, False, marks=SLOW),
    ],
)
def test_a_tensor_labelled_as_another_type_is_refused_or_read_correctly(tmp_path, dtype, quantize):
    folder = write(tmp_path / "m", dtype, quantize)
    expected = logits(folder)
    file = folder / "model.safetensors"
    table, data = header(file)
    names = [name for name in table if name != "__metadata__"]
    refused = tried = 0
    for name in names:
        for label in BYTES_PER_ELEMENT:
            changed = relabelled(table, name, label) if label != table[name]["dtype"] else None
            if changed is not None:
                rewrite(file, changed, data)
                tried += 1
                refused += refused_or_right(folder, expected)
    assert tried > 5 * len(names)
    assert refused > 0.9 * tried


@pytest.mark.parametrize("quantize", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_weight_stored_twice_under_two_prefixes_is_refused_or_read_correctly(tmp_path, quantize):
    folder = write(tmp_path / "m", quantize=quantize)
    expected = logits(folder)
    file = folder / "model.safetensors"
    table, data = header(file)
    prefixes = ("", "transformer.", "bert.", "model.model.", "module.", "_orig_mod.", "base_model.model.", "x.")
    for name in [name for name in table if name != "__metadata__"]:
        for prefix in prefixes:
            double = prefix + name.removeprefix("model.")
            if double in table:
                continue
            begin, end = table[name]["data_offsets"]
            copy = np.frombuffer(data[begin:end], dtype=np.uint8) ^ 1
            entry = {**table[name], "data_offsets": [len(data), len(data) + end - begin]}
            rewrite(file, {**table, double: entry}, data + copy.tobytes())
            refused_or_right(folder, expected)
            if prefix in ("", "transformer.", "module.", "_orig_mod.", "base_model.model.") and name != double:
                with pytest.raises(MlxQwen3Error):
                    convert(folder, tmp_path / "out", force=True, report=False)


CONTRADICTIONS = {
    "vocab_size": [63, 128],
    "hidden_size": [32, 2**31 - 1],
    "intermediate_size": [32, 4096],
    "num_hidden_layers": [2, 300_000_000],
    "num_attention_heads": [1, 4],
    "num_key_value_heads": [2, 4],
    "head_dim": [16, 64, 2**31 - 2],
    "tie_word_embeddings": [True],
    "attention_bias": [True],
    "num_labels": [300_000_000],
    "architectures": [["Qwen3Model"], ["Qwen3ForTokenClassification"], ["BertModel"]],
    "model_type": ["bert", "llama", {}],
    "quantization": [
        {"bits": 8, "group_size": 64},
        {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        {"bits": 4, "group_size": 32, "model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64}},
        {"bits": 4, "group_size": 32, "model.layers.0.mlp.up_proj": False},
        {},
        5,
        None,
    ],
    "quantization_config": [
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        {"quant_method": "fp8"},
        {"quant_method": "mlx", "bits": 2, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ],
    "torch_dtype": ["float16", "bfloat16", "float64"],
}


@pytest.mark.parametrize("quantize", [False, True])
def test_a_setting_that_contradicts_the_weights_is_refused_or_read_correctly(tmp_path, quantize):
    folder = write(tmp_path / "m", quantize=quantize)
    expected = logits(folder)
    config = json.loads((folder / "config.json").read_text())
    for name, values in CONTRADICTIONS.items():
        for value in values:
            (folder / "config.json").write_text(json.dumps({**config, name: value}))
            try:
                refused_or_right(folder, expected)
            except AssertionError as error:
                raise AssertionError(f"{name} = {value!r} gives other logits") from error


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("score.bias", "score.bias"),
        ("lm_head.bias", "lm_head.bias"),
        ("lm_head.qweight", "quantized layer"),
        ("score.modules_to_save.default.weight", "PEFT"),
        ("score.0.weight", "score.0.weight"),
        ("classifier.dense.weight", "classifier.dense"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "adapter"),
        ("model.layers.0.mlp.up_proj.weight_scale", "quantized layer"),
        ("language_model.model.norm.weight", "modalities"),
        ("model.language_model.norm.weight", "modalities"),
        ("model.layers.0.mlp.up_proj.weight_mask", "prune"),
        ("model.layers.0.mlp.up_proj.weight_v", "weight norm"),
        ("model.layers.0.self_attn.qkv_proj.weight", "fused"),
        ("v_head.summary.weight", "value head"),
        ("visual.patch_embed.weight", "vision"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "mixture of experts"),
    ],
)
def test_unused_weights_are_refused_with_their_meaning(tmp_path, name, says):
    from mlx_qwen3.checkpoint import open_checkpoint, save_checkpoint

    write(tmp_path)
    weights = {**open_checkpoint(tmp_path).read_all(), name: mx.ones((2, 64))}
    if name.startswith(("score", "classifier")):
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(
            json.dumps({**config, "architectures": ["Qwen3ForSequenceClassification"]})
        )
        weights.setdefault("score.weight", mx.ones((2, 64)))
    save_checkpoint(tmp_path, weights)
    kind = mlx_qwen3.models.model_class(json.loads((tmp_path / "config.json").read_text()), "x")
    with pytest.raises(MlxQwen3Error, match=says):
        kind.from_pretrained(tmp_path)
    with pytest.raises(MlxQwen3Error, match=says):
        convert(tmp_path, tmp_path.with_name("out"), report=False)


@pytest.mark.parametrize("prefix", ["student.", "net.", "transformer.", "model.", "policy.actor."])
def test_weight_names_under_any_prefix_are_read(tmp_path, prefix):
    from mlx_qwen3.checkpoint import open_checkpoint, save_checkpoint

    write(tmp_path)
    weights = open_checkpoint(tmp_path).read_all()
    save_checkpoint(tmp_path, {prefix + name: array for name, array in weights.items()})
    for call in (logits, lambda folder: convert(folder, tmp_path / "out", report=False)):
        with pytest.raises(MlxQwen3Error, match=f"begin with '{prefix}'"):
            call(tmp_path)
    assert not (tmp_path / "out").exists()
