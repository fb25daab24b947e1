"""Loading and saving models: names, prefixes, new heads, tied embeddings, shards, dtypes, damaged files."""

import json
import logging

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3 import CheckpointError, InputError, MlxQwen3Error, UnsupportedModelError
from tests.support import tiny


def same(a, b):
    np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-6)


NAMES = [
    "Qwen3Model",
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    "Qwen3ForTokenClassification",
    "Qwen3ForQuestionAnswering",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shard", [5 << 30, 4000])
def test_a_saved_model_is_loaded_with_the_same_outputs(tmp_path, name, shard):
    model = tiny.model(name, pad_token_id=0)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    again = getattr(mlx_qwen3, name).from_pretrained(tmp_path)
    assert not again.training
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == 4000)
    mine, theirs = dict(tree_flatten(model.parameters())), dict(tree_flatten(again.parameters()))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        same(value, theirs[key])
    same(model(tiny.ids())[0], again(tiny.ids())[0])


@pytest.mark.parametrize("place", ["file", "file/folder", "", None, 3])
def test_saving_to_an_invalid_path_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("precious")
    model = tiny.model()
    before = model.config.to_dict()
    with pytest.raises(MlxQwen3Error, match=r"cannot (save to|write) .*([Gg]ive|Pass)"):
        model.save_pretrained(tmp_path / place if isinstance(place, str) and place else place)
    assert (tmp_path / "file").read_text() == "precious"
    assert model.config.to_dict() == before


def test_a_name_of_the_wrong_type_is_refused():
    with pytest.raises(InputError, match="3 names no model"):
        mlx_qwen3.load(3)


def test_the_registry_returns_the_class_of_a_configuration(tmp_path):
    from mlx_qwen3.models.registry import model_class

    for name in NAMES:
        assert model_class({"model_type": "qwen3", "architectures": [name]}, "x") is getattr(mlx_qwen3, name)
    with pytest.raises(UnsupportedModelError, match="mlx-lm"):
        model_class({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "x")
    with pytest.raises(UnsupportedModelError, match="Qwen3ForDreaming"):
        model_class({"model_type": "qwen3", "architectures": ["Qwen3ForDreaming"]}, "x")


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_new_head_causes_one_warning(tmp_path, caplog, name):
    tiny.model().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = getattr(mlx_qwen3, name).from_pretrained(tmp_path, num_labels=2)
    assert len([r for r in caplog.records if "random weights" in r.message]) == 1
    assert not np.isnan(np.array(model(tiny.ids(1))[0])).any()


def test_a_bare_model_and_a_model_with_a_head_load_each_other(tmp_path):
    causal = tiny.model(tie_word_embeddings=True)
    causal.save_pretrained(tmp_path / "causal")
    bare = mlx_qwen3.Qwen3Model.from_pretrained(tmp_path / "causal")
    same(bare(tiny.ids())[0], causal.model(tiny.ids())[0])
    bare.save_pretrained(tmp_path / "bare")
    again = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path / "bare")
    same(again(tiny.ids()).logits, causal(tiny.ids()).logits)
    answering = mlx_qwen3.Qwen3ForQuestionAnswering.from_pretrained(tmp_path / "bare")
    assert "transformer.norm.weight" in dict(tree_flatten(answering.parameters()))


def test_a_head_of_another_size_is_refused_or_initialized(tmp_path):
    tiny.model("Qwen3ForSequenceClassification", num_labels=3).save_pretrained(tmp_path)
    load = mlx_qwen3.Qwen3ForSequenceClassification.from_pretrained
    with pytest.raises(CheckpointError, match=r"score\.weight.*\(3, 32\).*\(5, 32\)"):
        load(tmp_path, num_labels=5)
    assert load(tmp_path, num_labels=5, ignore_mismatched_sizes=True)(tiny.ids(1)).logits.shape == (1, 5)
    assert load(tmp_path).config.num_labels == 3


def edit(folder, change):
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)  # it would list the removed weights
    file = folder / "model.safetensors"
    weights = dict(mx.load(str(file)))
    change(weights)
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "pt"})


def test_tied_weights_are_read_from_every_layout(tmp_path, caplog):
    model = tiny.model(tie_word_embeddings=True)
    want = model(tiny.ids()).logits
    load = mlx_qwen3.Qwen3ForCausalLM.from_pretrained

    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] * 1}))
    same(load(tmp_path)(tiny.ids()).logits, want)
    edit(tmp_path, lambda w: w.pop("model.embed_tokens.weight"))
    same(load(tmp_path)(tiny.ids()).logits, want)

    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] * 2}))
    with caplog.at_level(logging.WARNING):
        same(load(tmp_path)(tiny.ids()).logits, want * 2)
    assert "differ" in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"model\.layers\.1\.mlp\.up_proj\.weight.*missing"),
        (lambda w: w.update({"model.extra.weight": mx.zeros((2,))}), r"model\.extra\.weight"),
        (lambda w: w.update({"model.norm.weight": mx.zeros((3,))}), r"model\.norm\.weight.*\(3,\).*\(32,\)"),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": mx.zeros((32,))}),
            r"q_proj\.bias.*attention_bias",
        ),
    ],
)
def test_an_invalid_weight_is_reported_by_name(tmp_path, change, named):
    tiny.model().save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=named):
        mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path)


def test_obsolete_buffers_of_old_files_are_ignored(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    edit(tmp_path, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros((4,))}))
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path)


def test_the_dtype_argument_selects_the_dtype_of_computation(tmp_path):
    model = tiny.model(dtype="bfloat16")
    model.set_dtype(mx.bfloat16)
    model.save_pretrained(tmp_path)
    load = mlx_qwen3.Qwen3ForCausalLM.from_pretrained
    assert load(tmp_path).dtype == mx.float32  # on a CPU
    assert load(tmp_path, dtype="auto").dtype == mx.bfloat16
    assert load(tmp_path, dtype="float16").dtype == load(tmp_path, torch_dtype=mx.float16).dtype == mx.float16
    with pytest.raises(InputError, match="int4"):
        load(tmp_path, dtype="int4")


def test_a_given_config_is_used(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    config = mlx_qwen3.Qwen3Config.from_pretrained(tmp_path)
    config.use_cache = False
    model = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path, config=config)
    assert model.config is config
    assert model(tiny.ids()).past_key_values is None


def test_damaged_and_unsafe_folders_are_refused(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    load = mlx_qwen3.Qwen3ForCausalLM.from_pretrained
    with pytest.raises(InputError, match="trust_remote_code"):
        load(tmp_path, trust_remote_code=True)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickle"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    with pytest.raises(UnsupportedModelError, match="mlx-lm"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_parameters_are_counted():
    model = tiny.model()
    total = sum(w.size for _, w in tree_flatten(model.parameters()))
    assert model.num_parameters() == total
    assert model.num_parameters(exclude_embeddings=True) == total - 61 * 32
    model.freeze()
    model.lm_head.unfreeze()
    assert model.num_parameters(only_trainable=True) == 61 * 32
