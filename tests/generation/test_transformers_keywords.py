"""Keywords of `generate` in transformers: neutral values are accepted, others are refused with the next step."""

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
