"""Adapters of PEFT and mlx-lm are loaded, merged and saved; errors name the field or tensor."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import CheckpointError, InputError, MlxQwen3Error, Qwen3ForCausalLM, UnsupportedModelError, load
from mlx_qwen3.adapters import lora_config
from mlx_qwen3.adapters.folder import read_adapter
from mlx_qwen3.bundled import bundled_model_path
from tests.support.tiny_checkpoints import write_qwen3

IDS = mx.array([[5, 9, 14, 3, 77]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("base"), "Qwen3ForCausalLM")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("tied"), "Qwen3ForCausalLM", tie_word_embeddings=True)


def write_peft(folder: Path, base: Path | None, weights: dict[str, mx.array], **fields: Any) -> Path:
    folder.mkdir()
    config = lora_config(task_type="CAUSAL_LM", base=base and str(base), r=4, alpha=8, targets=["q_proj"])
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    named = {f"base_model.model.{name}": array for name, array in weights.items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), named, {"format": "pt"})
    return folder


def q_weights(layers: int = 2, r: int = 4) -> dict[str, mx.array]:
    mx.random.seed(3)
    found = {}
    for layer in range(layers):
        path = f"model.layers.{layer}.self_attn.q_proj"
        found[f"{path}.lora_A.weight"] = mx.random.normal((r, 32)) * 0.3
        found[f"{path}.lora_B.weight"] = mx.random.normal((32, r)) * 0.3
    return found


def logits(model: Any) -> np.ndarray:
    return np.array(model(IDS).logits)


def test_an_adapter_adds_the_scaled_product_of_its_matrices(tmp_path: Path, base: Path):
    weights = q_weights()
    adapter = write_peft(tmp_path / "a", base, weights)
    expected = Qwen3ForCausalLM.from_pretrained(base)
    for layer in range(2):
        path = f"model.layers.{layer}.self_attn.q_proj"
        projection = expected.model.layers[layer].self_attn.q_proj
        change = 2.0 * weights[f"{path}.lora_B.weight"] @ weights[f"{path}.lora_A.weight"]
        projection.weight = projection.weight + change
    loaded = [
        Qwen3ForCausalLM.from_pretrained(adapter),
        load(adapter)[0],
        load(base, adapter=adapter)[0],
        load(adapter)[0].merge_adapter(),
    ]
    for model in loaded:
        np.testing.assert_allclose(logits(model), logits(expected), atol=2e-5)
    assert np.abs(logits(expected) - logits(load(base)[0])).max() > 0.1


def test_saving_writes_the_adapter_or_the_merged_model(tmp_path: Path, base: Path):
    model, _ = load(write_peft(tmp_path / "a", base, q_weights()))
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()
    model.save_pretrained(tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    for folder in ("again", "merged"):
        np.testing.assert_allclose(
            logits(Qwen3ForCausalLM.from_pretrained(tmp_path / folder)), logits(model), atol=2e-5
        )
    with pytest.raises(CheckpointError, match="holds an adapter"):
        load(base)[0].save_pretrained(tmp_path / "again")
    with pytest.raises(CheckpointError, match="holds a model"):
        model.save_pretrained(tmp_path / "merged")
    with pytest.raises(InputError, match="no adapter to merge"):
        load(base)[0].merge_adapter()


def test_generation_uses_the_adapter(tmp_path: Path, base: Path):
    model, _ = load(write_peft(tmp_path / "a", base, q_weights()))
    merged, _ = load(write_peft(tmp_path / "b", base, q_weights()))
    merged.merge_adapter()
    kept, plain = (m.generate(IDS, max_new_tokens=6, do_sample=False) for m in (model, merged))
    assert np.array(kept).tolist() == np.array(plain).tolist()


def test_an_adapter_on_a_quantized_base_merges_into_floats(tmp_path: Path, base: Path):
    packed = tmp_path / "packed"
    mlx_qwen3.convert(base, packed, quantize=True, q_bits=8, q_group_size=32, report=False)
    adapter = write_peft(tmp_path / "a", packed, q_weights())
    model, _ = load(adapter)
    dense, _ = load(packed, adapter=adapter, unpack=True)
    np.testing.assert_allclose(logits(model), logits(dense), atol=1e-4)
    before = logits(model)
    model.merge_adapter().save_pretrained(tmp_path / "merged")
    again = Qwen3ForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits(again), before, atol=1e-4)
    assert "quantization" not in json.loads((tmp_path / "merged" / "config.json").read_text())


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_retrained_rows_of_a_quantized_base_merge_without_rounding(tmp_path: Path, base: Path, mode: str):
    packed = tmp_path / "packed"
    mlx_qwen3.convert(base, packed, quantize=True, q_mode=mode, q_group_size=32, report=False)
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": mx.random.normal((2, 32))}
    adapter = write_peft(tmp_path / "a", packed, {**q_weights(), **rows}, trainable_token_indices=[9, 3])
    model, _ = load(adapter)
    before = logits(model)
    np.testing.assert_allclose(logits(model.merge_adapter()), before, atol=1e-4)


def test_a_tied_head_uses_the_base_rows_with_lora_on_the_embedding(tmp_path: Path, tied: Path):
    weights = {
        "model.embed_tokens.lora_embedding_A": mx.random.normal((4, 416)),
        "model.embed_tokens.lora_embedding_B": mx.random.normal((32, 4)),
    }
    adapter = write_peft(tmp_path / "a", tied, weights, target_modules=["embed_tokens"])
    model, plain = load(adapter)[0], load(tied)[0]
    rows = plain.model.embed_tokens.weight
    change = 2.0 * (weights["model.embed_tokens.lora_embedding_B"] @ weights["model.embed_tokens.lora_embedding_A"]).T
    hidden = plain.model(inputs_embeds=(rows + change)[IDS]).last_hidden_state
    np.testing.assert_allclose(logits(model), np.array(hidden @ rows.T), atol=1e-4)
    model.save_pretrained(tmp_path / "merged", merge=True)
    np.testing.assert_allclose(logits(Qwen3ForCausalLM.from_pretrained(tmp_path / "merged")), logits(model), atol=1e-4)


def test_mlx_lm_adapters_are_loaded_and_saved_as_peft_adapters(tmp_path: Path, base: Path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    config = {
        "fine_tune_type": "lora",
        "model": str(base),
        "num_layers": 1,
        "lora_parameters": {"rank": 4, "scale": 5.0, "dropout": 0.0, "keys": ["self_attn.v_proj"]},
    }
    path = "model.layers.1.self_attn.v_proj"
    a, b = mx.random.normal((32, 4)), mx.random.normal((4, 16))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "adapters.safetensors"), {f"{path}.lora_a": a, f"{path}.lora_b": b})
    expected, model = load(base)[0], load(folder)[0]
    projection = expected.model.layers[1].self_attn.v_proj
    projection.weight = projection.weight + 5.0 * (a @ b).T
    np.testing.assert_allclose(logits(model), logits(expected), atol=1e-4)
    model.save_pretrained(tmp_path / "peft")
    np.testing.assert_allclose(logits(load(tmp_path / "peft")[0]), logits(expected), atol=1e-4)


def test_a_head_of_the_adapter_sets_the_number_of_labels(tmp_path: Path, base: Path):
    weights = {**q_weights(), "score.weight": mx.random.normal((3, 32))}
    adapter = write_peft(tmp_path / "a", base, weights, task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
    model, _ = load(adapter)
    assert type(model).__name__ == "Qwen3ForSequenceClassification"
    assert model.config.num_labels == 3
    assert not model.fresh_weights
    assert model(IDS).logits.shape == (1, 3)
    with pytest.raises(UnsupportedModelError, match="Qwen3ForSequenceClassification, not Qwen3ForCausalLM"):
        Qwen3ForCausalLM.from_pretrained(adapter)


@pytest.mark.parametrize(
    ("fields", "changes", "named"),
    [
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({"sparkle_config": {"beta": 1}}, {}, "sparkle_config"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights"),
        ({"target_modules": ["query"]}, {}, "target_modules"),
        ({"target_modules": "(q_proj"}, {}, "target_modules"),
        ({"use_bdlora": {"nblocks": 2}}, {}, "use_bdlora"),
        ({"task_type": "SEQ_2_SEQ_LM"}, {}, "task_type"),
        ({"task_type": ["CAUSAL_LM"]}, {}, "task_type"),
        ({"use_rslora": "false"}, {}, "use_rslora"),
        ({"lora_alpha": float("nan")}, {}, "lora_alpha"),
        ({"lora_alpha": 10**400}, {}, "lora_alpha"),
        ({"lora_dropout": 1.5}, {}, "lora_dropout"),
        ({"r": 10**30}, {}, "'r'"),
        ({"r": 8}, {}, "lora_A"),
        ({"rank_pattern": {"q_proj": "many"}}, {}, "rank_pattern"),
        ({"base_model_name_or_path": None}, {}, "base_model_name_or_path"),
        ({"modules_to_save": ["lm_head"]}, {}, "lm_head"),
        ({"use_dora": True}, {}, "lora_magnitude_vector"),
        ({"bias": "some"}, {}, "bias"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_B.weight": None}, "q_proj.lora_B"),
        ({}, {"model.layers.7.self_attn.q_proj.lora_B.weight": mx.zeros((32, 4))}, "layers.7"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_B.weight": mx.zeros((32, 4), mx.int32)}, "int32"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_C.weight": mx.zeros((4, 4))}, "lora_C"),
    ],
)
def test_unsupported_adapters_are_refused_by_name(
    tmp_path: Path, base: Path, fields: dict[str, Any], changes: dict[str, Any], named: str
):
    weights = {**q_weights(), **changes}
    adapter = write_peft(tmp_path / "a", base, {k: v for k, v in weights.items() if v is not None}, **fields)
    with pytest.raises(MlxQwen3Error) as caught:
        load(adapter)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["3", '{"id2label": 3}', '{"id2label": {"a": "x"}}'])
def test_a_malformed_training_record_is_refused(tmp_path: Path, base: Path, config: str):
    adapter = write_peft(tmp_path / "a", base, q_weights())
    (adapter / "training.json").write_text(f'{{"config": {config}}}')
    with pytest.raises(CheckpointError, match=r"training\.json: field 'config'"):
        load(adapter)


def test_pickles_are_refused_and_adapters_in_subfolders_are_listed(tmp_path: Path, base: Path):
    adapter = write_peft(tmp_path / "a", base, q_weights())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin"):
        load(adapter)
    outer = tmp_path / "outer"
    outer.mkdir()
    write_peft(outer / "second", base, q_weights())
    with pytest.raises(CheckpointError, match="second"):
        load(outer)


def test_full_fine_tuning_of_mlx_lm_replaces_base_weights(tmp_path: Path, base: Path):
    folder = tmp_path / "full"
    folder.mkdir()
    config = {"fine_tune_type": "full", "model": str(base), "num_layers": 1}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "model.layers.1.mlp.up_proj.weight"
    mx.save_safetensors(str(folder / "adapters.safetensors"), {name: mx.random.normal((64, 32))})
    model, _ = load(folder)
    changed = logits(model)
    assert np.abs(changed - logits(load(base)[0])).max() > 0.01
    model.save_pretrained(tmp_path / "plain")
    model.merge_adapter().save_pretrained(tmp_path / "merged")
    for saved in ("plain", "merged"):
        np.testing.assert_allclose(logits(Qwen3ForCausalLM.from_pretrained(tmp_path / saved)), changed, atol=1e-5)


def test_an_adapter_for_the_bundled_model_loads_in_another_installation(tmp_path: Path):
    absent = tmp_path / "lib" / "mlx_qwen3" / "bundled" / bundled_model_path().name
    adapter = write_peft(tmp_path / "a", absent, {})
    assert read_adapter(str(adapter)).base == str(bundled_model_path())
    other = write_peft(tmp_path / "b", tmp_path / "absent", {})
    assert read_adapter(str(other)).base == str(tmp_path / "absent")
