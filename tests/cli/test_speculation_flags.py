"""`--prompt-lookup` and `--draft-model` do not change the answer."""

import pytest

from mlx_qwen3 import Qwen3ForCausalLM
from mlx_qwen3.cli.main import main
from tests.support import tiny
from tests.support.scripted import byte_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model: Qwen3ForCausalLM = tiny.model(vocab_size=261, max_position_embeddings=512)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def answer(checkpoint, capsys, *flags) -> str:
    base = ["generate", "--model", checkpoint, "--prompt", "to be or not to be", "--ignore-chat-template"]
    assert main([*base, "--temp", "0", "--max-tokens", "40", *flags]) == 0
    return capsys.readouterr().out


def test_speculative_decoding_does_not_change_the_answer(checkpoint, capsys):
    plain = answer(checkpoint, capsys)
    assert answer(checkpoint, capsys, "--prompt-lookup") == plain
    assert answer(checkpoint, capsys, "--draft-model", checkpoint, "--num-draft-tokens", "3") == plain


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt-lookup", "--draft-model", "CHECKPOINT"], "exclude each other"),
        (["--num-draft-tokens", "3"], "needs --prompt-lookup"),
        (["--prompt-lookup", "--num-draft-tokens", "0"], "--num-draft-tokens: 0 is too small"),
    ],
)
def test_invalid_flags_are_reported(checkpoint, capsys, flags, words):
    flags = [checkpoint if flag == "CHECKPOINT" else flag for flag in flags]
    base = ["generate", "--model", checkpoint, "--prompt", "x", "--ignore-chat-template"]
    assert main([*base, "--max-tokens", "2", *flags]) == 2
    assert words in capsys.readouterr().err
