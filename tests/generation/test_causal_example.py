"""The example in the reference's documentation of the causal model, line by line, with a small checkpoint."""

import lzma
import shutil
from pathlib import Path

import pytest

from tests.support.tiny import model as tiny_model

DATA = Path(__file__).parent.parent / "data" / "qwen3_tokenizer"


@pytest.fixture
def checkpoint(tmp_path):
    tiny_model(vocab_size=151936, hidden_size=16, intermediate_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
    shutil.copy(DATA / "tokenizer_config.json", tmp_path)
    with lzma.open(DATA / "tokenizer.json.xz") as packed, (tmp_path / "tokenizer.json").open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return tmp_path


def test_the_example_of_the_reference_runs_unchanged(checkpoint):
    from mlx_qwen3 import AutoTokenizer, Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    prompt = "Hey, are you conscious? Can you talk to me?"
    inputs = tokenizer(prompt, return_tensors="mlx")

    # Generate
    generate_ids = model.generate(inputs.input_ids, max_length=30)
    text = tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]

    assert generate_ids.shape == (1, 30)
    assert text.startswith(prompt)
    assert len(text) > len(prompt)
