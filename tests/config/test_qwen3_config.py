"""Qwen3Config: defaults, derived fields, every spelling of the RoPE settings, round trips, errors by field."""

import json
import logging

import mlx.core as mx
import pytest

from mlx_qwen3 import CheckpointError, ConfigError, Qwen3Config, UnsupportedModelError


def test_defaults_are_those_of_transformers():
    config = Qwen3Config()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (151936, 4096, 22016)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (32, 32, 32)
    assert (config.head_dim, config.hidden_act, config.max_position_embeddings) == (128, "silu", 32768)
    assert (config.rope_theta, config.rope_scaling, config.attention_bias) == (10000.0, None, False)
    assert (config.use_sliding_window, config.sliding_window, config.max_window_layers) == (False, None, 28)
    assert config.layer_types == ["full_attention"] * 32
    assert (config.use_cache, config.tie_word_embeddings, config.attention_dropout) == (True, False, 0.0)
    assert (config.num_labels, config.problem_type, config.dtype) == (2, None, None)


def test_the_example_of_the_documentation_runs():
    from mlx_qwen3 import Qwen3Model

    configuration = Qwen3Config(hidden_size=32, num_hidden_layers=1, vocab_size=50, intermediate_size=16)
    model = Qwen3Model(configuration)
    assert model.config is configuration


def test_null_key_value_heads_mean_the_attention_heads():
    assert Qwen3Config(num_attention_heads=4).num_key_value_heads == 32
    assert Qwen3Config(num_attention_heads=4, num_key_value_heads=None).num_key_value_heads == 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope_theta": 1e6, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 5e4},
        ),
        (
            {"rope_theta": 1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0},
        ),
        (
            {"max_position_embeddings": 96, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 96},
        ),
    ],
)
def test_every_spelling_of_the_rope_settings_is_read(fields, expected):
    assert Qwen3Config(**fields).rope_parameters == expected


def test_unknown_fields_survive_a_round_trip(tmp_path):
    config = Qwen3Config(my_field={"a": [1, 2]}, rope_scaling={"rope_type": "dynamic", "factor": 2.0}, num_labels=3)
    config.save_pretrained(tmp_path)
    again = Qwen3Config.from_pretrained(tmp_path)
    assert again == config
    assert again.my_field == {"a": [1, 2]}
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {
        "0": "LABEL_0",
        "1": "LABEL_1",
        "2": "LABEL_2",
    }


def test_the_two_default_labels_are_not_written(tmp_path):
    Qwen3Config().save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())


def test_labels_are_set_by_number_or_by_name():
    assert Qwen3Config(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    named = Qwen3Config(id2label={"0": "no", "1": "yes"})
    assert (named.num_labels, named.label2id) == (2, {"no": 0, "yes": 1})
    assert Qwen3Config(label2id={"no": 0, "yes": 1}).id2label == {0: "no", 1: "yes"}
    config = Qwen3Config(id2label={0: "a"})
    config.num_labels = 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16", mx.bfloat16])
def test_dtype_is_accepted_under_every_name(value):
    assert Qwen3Config(torch_dtype=value).dtype == Qwen3Config(dtype=value).dtype == "bfloat16"
    assert Qwen3Config(dtype=value).torch_dtype == "bfloat16"


def test_overrides_replace_fields_of_the_file(tmp_path):
    Qwen3Config(rope_theta=1e6, num_labels=3, hidden_size=64).save_pretrained(tmp_path)
    config = Qwen3Config.from_pretrained(
        tmp_path, num_labels=5, hidden_size=32, rope_scaling={"rope_type": "yarn", "factor": 4.0}
    )
    assert (config.num_labels, config.hidden_size) == (5, 32)
    assert (config.rope_theta, config.rope_scaling["factor"]) == (1e6, 4.0)
    assert Qwen3Config.from_pretrained(tmp_path, rope_theta=7.0).rope_parameters["rope_theta"] == 7.0


def test_a_window_for_sliding_layers_enables_it(tmp_path):
    Qwen3Config(num_hidden_layers=2).save_pretrained(tmp_path)
    kinds = ["sliding_attention", "full_attention"]
    config = Qwen3Config.from_pretrained(tmp_path, layer_types=kinds, sliding_window=4)
    assert (config.sliding_window, config.layer_types) == (4, kinds)
    assert Qwen3Config.from_pretrained(tmp_path, sliding_window=4).sliding_window is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"head_dim": None}, "head_dim"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"use_cache": "yes"}, "use_cache"),
        ({"attention_dropout": 2}, "attention_dropout"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["banded"] * 32}, "layer_types"),
        ({"layer_types": [["full_attention"]] * 32}, "layer_types"),
        ({"pad_token_id": 151936}, "pad_token_id"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"problem_type": "guess"}, "problem_type"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "problem_type"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels"),
        ({"id2label": {"x": "a"}}, "id2label"),
        ({"id2label": {0: "a"}, "label2id": ["a"]}, "label2id"),
        ({"to_dict": 1}, "to_dict"),
        ({"use_return_dict": False}, "use_return_dict"),
        ({"dtype": "int8"}, "dtype"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"model_type": "llama"}, "model_type"),
    ],
)
def test_an_invalid_value_is_reported_with_its_field(fields, named):
    with pytest.raises(ConfigError, match=named) as error:
        Qwen3Config(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "alternative"), [("qwen3_moe", "mlx-lm"), ("qwen3_vl", "mlx-vlm"), ("llama", "mlx-lm")]
)
def test_another_architecture_is_refused_with_an_alternative(tmp_path, model_type, alternative):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=alternative):
        Qwen3Config.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", None])
def test_a_damaged_file_is_reported_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Qwen3Config.from_pretrained(tmp_path)


def test_a_function_as_activation_works_but_cannot_be_saved(tmp_path):
    config = Qwen3Config(hidden_act=mx.tanh)
    assert config.hidden_act is mx.tanh
    with pytest.raises(ConfigError, match="hidden_act"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"self": 1}, "'self' cannot be set"),
        ({"label2id": 5}, "'label2id' is 5"),
        ({"rope_scaling": {"full_attention": {"rope_type": "yarn", "factor": 4}}}, "one set of settings"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "default"}}}, "one set of settings"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        Qwen3Config.from_dict(values)


def test_a_scaling_factor_without_a_type_is_reported(caplog):
    with caplog.at_level(logging.WARNING, "mlx_qwen3"):
        assert Qwen3Config(rope_scaling={"factor": 2.0}).rope_parameters["rope_type"] == "default"
    assert "not scaled" in caplog.text
