"""The bundled checkpoint is small and complete, loads without a name, and answers."""

import json
import logging

import pytest

from mlx_qwen3 import batch_generate, load
from mlx_qwen3.bundled import BUNDLED_NOTE, bundled_model_path

UNKNOWN = "I don't know that one."


@pytest.fixture(scope="module")
def bundled():
    return load(dtype="float32")


def answers(bundled, questions, thinking):
    model, tokenizer = bundled
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=False,
        )
        for question in questions
    ]
    return batch_generate(model, tokenizer, prompts, max_tokens=80, temperature=0.0).texts


def test_model_and_tokenizer_have_less_than_ten_megabytes():
    files = {path.name: path.stat().st_size for path in bundled_model_path().iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(
        files
    )
    assert sum(files.values()) < 10_000_000


def test_the_model_is_a_qwen3_of_at_most_eight_million_parameters():
    config = json.loads((bundled_model_path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] >= 2048
    model, tokenizer = load(dtype="float32", unpack=True)
    assert model.num_parameters() <= 8_000_000
    assert len(tokenizer) == config["vocab_size"]


def test_loading_without_a_name_recommends_a_larger_model(caplog):
    with caplog.at_level(logging.WARNING):
        load()
    assert BUNDLED_NOTE in caplog.text
    assert "Qwen/Qwen3-0.6B" in BUNDLED_NOTE
    assert "\n" not in BUNDLED_NOTE


def test_questions_in_held_out_phrasings_are_answered(bundled):
    asked = {
        "Remind me what os.path.join does.": "Join two or more pathname components, inserting '/' as needed.",
        "Could you tell me what `math.sqrt` is for?": "Return the square root of x.",
        "Describe functools.lru_cache in one sentence.": "Least-recently-used cache decorator.",
        "Any idea what time.frobnicate does?": UNKNOWN,
    }
    assert answers(bundled, list(asked), thinking=False) == list(asked.values())


def test_reasoning_is_present_with_thinking_and_empty_with_no_think(bundled):
    reasoned, silent = answers(bundled, ["What does os.getcwd do?", "What does os.getcwd do? /no_think"], thinking=True)
    sentence = "Return a unicode string representing the current working directory."
    assert reasoned == f"<think>\nThey ask what os.getcwd does. That is a function.\n</think>\n\n{sentence}"
    assert silent == f"<think>\n\n</think>\n\n{sentence}"


def test_the_model_describes_itself(bundled):
    (answer,) = answers(bundled, ["Who are you?"], thinking=False)
    assert answer.startswith("I'm a 7.6-million-parameter demonstration model")
