"""Keywords of `generate` in transformers: neutral values are accepted, others are refused with the next step."""

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import InputError
from mlx_qwen3.bundled import bundled_model_path
from tests.support import tiny

PROMPT = mx.array([[5, 9, 3]])
NEUTRAL = [
    *({"trust_remote_code": value} for value in (None, False)),
    *({name: None} for name in ("token_type_ids", "decoder_input_ids", "head_mask", "mtp", "device")),
    *({name: False} for name in ("padding", "truncation", "synced_gpus", "early_stopping")),
]
REFUSED = {
    "trust_remote_code": (True, "never run"),
    "return_tensors": ("pt", "tokenizer"),
    "skip_special_tokens": (True, "decode"),
    "device": ("cpu", "set_default_device"),
    "custom_generate": ("x", "never run"),
}
ARRAYS = {
    "attention_mask": "omit it",
    "streamer": "stream_generate",
    "past_key_values": "prompt_cache",
    "input_ids": "as prompt",
    "position_ids": "model.generate",
    "logits_processor": "logits_processors",
}


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def tokenizer():
    return mlx_qwen3.AutoTokenizer.from_pretrained(bundled_model_path())


@pytest.mark.parametrize("keywords", NEUTRAL, ids=str)
def test_neutral_values_have_no_effect(model, keywords):
    plain = model.generate(PROMPT, max_new_tokens=3)
    assert mx.array_equal(model.generate(PROMPT, max_new_tokens=3, **keywords), plain).item()


@pytest.mark.parametrize("name", REFUSED)
def test_other_values_are_refused_with_the_next_step(model, name):
    value, advice = REFUSED[name]
    with pytest.raises(InputError, match=advice) as caught:
        model.generate(PROMPT, max_new_tokens=3, **{name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ARRAYS)
def test_arguments_of_model_generate_are_refused_by_generate(model, tokenizer, name):
    value: Any = np.zeros((2, 3))
    with pytest.raises(InputError, match=ARRAYS[name]) as caught:
        mlx_qwen3.generate(model, tokenizer, [5, 9, 3], max_tokens=3, **{name: value})
    assert "\n" not in str(caught.value)
    given = {name: None, "trust_remote_code": False}
    plain = mlx_qwen3.generate(model, tokenizer, [5, 9, 3], max_tokens=3)
    assert mlx_qwen3.generate(model, tokenizer, [5, 9, 3], max_tokens=3, **given) == plain


def test_the_quickstart_of_the_model_card_runs_with_arrays_of_mlx(model, tokenizer):
    inputs = tokenizer(["Hello"], return_tensors="mlx").to(model.device)
    inputs["input_ids"] = inputs["input_ids"] % 61
    assert model.to("cuda") is model.to(model.device) is model
    assert model.generate(**inputs, max_new_tokens=3)[0].shape[0] == inputs.input_ids.shape[1] + 3
    for dtype in (mx.float16, "bfloat16"):
        with pytest.raises(InputError, match="set_dtype"):
            model.to(dtype)


class _Foreign:
    """Stands for an object of transformers, which computes with torch."""

    def __call__(self, ids, scores):
        raise AssertionError("called")

    def to_diff_dict(self):
        return {"max_new_tokens": 2}


def test_objects_of_transformers_are_refused_before_they_compute(model, tokenizer, monkeypatch):
    monkeypatch.setattr(_Foreign, "__module__", "transformers.generation.logits_process")
    foreign: Any = _Foreign()
    for keywords in ({"logits_processor": [foreign]}, {"stopping_criteria": [foreign]}):
        with pytest.raises(InputError, match="_Foreign of transformers, which computes with torch"):
            model.generate(PROMPT, max_new_tokens=2, **keywords)
    with pytest.raises(InputError, match=r"Pass mlx_qwen3.GenerationConfig\(\*\*config.to_diff_dict\(\)\)"):
        model.generate(PROMPT, generation_config=foreign)
    with pytest.raises(InputError, match="tokenizer is a _Foreign"):
        mlx_qwen3.pipeline("text-generation", model=model, tokenizer=foreign)
    with pytest.raises(InputError, match="as past_key_values"):
        model(PROMPT, cache=model.make_cache())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("input_embeddings", [[1.0]], "inputs_embeds"),
        ("formatter", print, "returned"),
        ("return_prompt_caches", True, "prompt_caches"),
        ("prefill_batch_size", 4, "completion_batch_size"),
    ],
)
def test_keywords_of_mlx_lm_name_the_next_step(model, tokenizer, name, value, says):
    with pytest.raises(InputError, match=says) as caught:
        mlx_qwen3.batch_generate(model, tokenizer, [[5, 9]], max_tokens=2, **{name: value})
    assert name in str(caught.value)
    nothing: dict[str, Any] = {name: None}
    mlx_qwen3.batch_generate(model, tokenizer, [[5, 9]], max_tokens=2, **nothing)


def test_generation_configurations_convert_as_in_transformers():
    config = mlx_qwen3.GenerationConfig.from_dict({"max_new_tokens": 3, "top_k": 5}, top_k=7)
    assert config.update(max_new_tokens=4, note="x") == {"note": "x"}
    assert config == mlx_qwen3.GenerationConfig(max_new_tokens=4, top_k=7)
    assert json.loads(config.to_json_string()) == {"max_new_tokens": 4, "top_k": 7}
    with pytest.raises(mlx_qwen3.ConfigError, match="top_k"):
        config.update(max_new_tokens=9, top_k="many")
    assert config.max_new_tokens == 4
