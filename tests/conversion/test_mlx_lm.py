"""Exchange of folders with stock mlx-lm: same files, same tokens, and an error for unsupported models."""

import json

import mlx.core as mx
import pytest

import mlx_qwen3
from mlx_qwen3 import convert
from mlx_qwen3.checkpoint import open_checkpoint
from mlx_qwen3.config.stock_mlx_lm import MODEL_FILE, silently_different
from mlx_qwen3.errors import CheckpointError
from tests.support.tiny_checkpoints import write_qwen3

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("stock") / "source", "Qwen3ForCausalLM", **WIDE)


def greedy(logits, steps=24):
    ids = list(PROMPT)
    for _ in range(steps):
        ids.append(int(mx.argmax(logits(mx.array([ids]))[0, -1]).item()))
    return ids[len(PROMPT) :]


def ours(folder):
    model, _ = mlx_qwen3.load(folder, dtype="float32")
    return greedy(lambda ids: model(ids).logits)


def theirs(folder):
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    return greedy(model)


@pytest.mark.reference
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantize": True},
        {"quantize": True, "q_bits": 8, "q_group_size": 32},
        {"quantize": True, "q_mode": "mxfp4"},
        {"quantize": True, "q_mode": "nvfp4"},
        {"quantize": True, "quant_predicate": "mixed_3_6"},
        {"quantize": True, "q_overrides": ["v_proj=8:32", "lm_head=none"]},
        {"quantize": True, "q_mode": "mxfp8", "q_overrides": ["embed_tokens=6:128:affine"]},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)
def test_stock_mlx_lm_generates_the_same_tokens(source, tmp_path, options):
    convert(source, tmp_path / "out", report=False, **options)
    assert ours(tmp_path / "out") == theirs(tmp_path / "out")


@pytest.mark.reference
@pytest.mark.parametrize(
    "options",
    [{"quantize": True}, {"quantize": True, "q_mode": "mxfp8"}, {"quantize": True, "quant_predicate": "mixed_4_6"}],
    ids=["4-bit", "mxfp8", "mixed"],
)
@pytest.mark.filterwarnings("ignore")
def test_stock_mlx_lm_writes_the_same_weights(source, tmp_path, options):
    from mlx_lm import convert as stock_convert

    group_size = {"q_group_size": 64} if "quant_predicate" in options else {}
    stock_convert(str(source), str(tmp_path / "stock"), dtype="float16", **options, **group_size)
    convert(source, tmp_path / "own", dtype="float16", report=False, **options)
    own, stock = open_checkpoint(tmp_path / "own"), open_checkpoint(tmp_path / "stock")
    assert own.names == stock.names
    assert own.metadata == stock.metadata
    for name in own.names:
        assert mx.array_equal(own.read(name), stock.read(name)).item(), name
    index = json.loads((tmp_path / "own" / "model.safetensors.index.json").read_text())
    assert index == json.loads((tmp_path / "stock" / "model.safetensors.index.json").read_text())
    assert ours(tmp_path / "stock") == ours(tmp_path / "own")


DIFFERENT = {
    "window": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gelu": {"hidden_act": "gelu"},
    "yarn-attention-factor": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
    "yarn-truncate": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
    "yarn-mscale": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0}},
    "longrope": {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}},
}
AGREES = {
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "old-yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "theta-in-parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "window-unused": {"sliding_window": 8, "use_sliding_window": False},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_models_that_mlx_lm_computes_differently_are_marked(tmp_path, name):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **WIDE, **DIFFERENT[name])
    done = convert(source, tmp_path / "out")
    assert done.mlx_lm_differences
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_file"] == MODEL_FILE
    assert not list((tmp_path / "out").glob("*.py"))
    assert done.mlx_lm_differences[0] in (tmp_path / "out" / "README.md").read_text()
    ids = mx.array([PROMPT])
    expected = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(source)(ids).logits
    assert mx.array_equal(mlx_qwen3.load(tmp_path / "out")[0](ids).logits, expected).item()
    convert(tmp_path / "out", tmp_path / "again")
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "model_file": "other.py"}))
    with pytest.raises(CheckpointError, match=r"other\.py"):
        mlx_qwen3.load(tmp_path / "out")


@pytest.mark.reference
@pytest.mark.parametrize("name", DIFFERENT)
def test_mlx_lm_refuses_marked_models(tmp_path, name):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **WIDE, **DIFFERENT[name])
    convert(source, tmp_path / "out")
    with pytest.raises(ValueError, match="requires importing"):
        theirs(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["model_file"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    ids = mx.array([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    from mlx_lm.utils import load_model

    difference = mx.abs(load_model(tmp_path / "out")[0](ids) - mlx_qwen3.load(tmp_path / "out")[0](ids).logits)
    assert mx.max(difference).item() > 1e-2  # without the marker, mlx-lm returns different outputs


@pytest.mark.parametrize("name", AGREES)
def test_models_that_mlx_lm_supports_are_not_marked(tmp_path, name):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **WIDE, **AGREES[name])
    assert convert(source, tmp_path / "out").mlx_lm_differences == []
    assert "model_file" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.reference
@pytest.mark.parametrize("name", AGREES)
def test_mlx_lm_computes_unmarked_models_identically(tmp_path, name):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **WIDE, **AGREES[name])
    convert(source, tmp_path / "out")
    assert ours(tmp_path / "out") == theirs(tmp_path / "out")


def test_raw_configurations_are_checked_too():
    assert silently_different({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0})
    assert not silently_different({"use_sliding_window": True, "sliding_window": 4, "num_hidden_layers": 28})
    assert silently_different({"rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert silently_different({"rope_scaling": {"type": "linear", "rope_type": "default"}})
    assert not silently_different({"model_type": "qdqbert", "hidden_act": "gelu"})
    assert not silently_different({"hidden_act": "swish"})
