"""Saved tokenizers load with the same tokens, templates and settings."""

import json

import pytest

from mlx_qwen3 import AutoTokenizer
from mlx_qwen3.errors import TokenizerError

MESSAGES = [{"role": "user", "content": "hi 你"}]


def assert_same(first, second):
    for text in ("Hello <|im_end|> two words 😀", "unaffable [MASK] it's"):
        assert dict(first(text, text)) == dict(second(text, text))
    for name in (
        "special_tokens_map",
        "padding_side",
        "truncation_side",
        "model_max_length",
        "tokenizer_class",
    ):
        assert getattr(first, name) == getattr(second, name)
    assert first.extra_special_tokens == second.extra_special_tokens
    assert first.get_vocab() == second.get_vocab()
    assert first.chat_template == second.chat_template
    assert first.model_input_names == second.model_input_names


def test_saved_equals_loaded(byte_level, word_piece, tmp_path):
    byte_level.add_special_tokens({"extra_special_tokens": ["<a>"]})
    byte_level.add_tokens("<b>")
    byte_level.padding_side = "left"
    byte_level.pad_token = "<b>"
    for name, tokenizer in (("bpe", byte_level), ("wp", word_piece)):
        paths = tokenizer.save_pretrained(tmp_path / name)
        assert {str(path) for path in (tmp_path / name).iterdir()} == set(paths)
        assert_same(tokenizer, AutoTokenizer.from_pretrained(tmp_path / name))


def test_unknown_configuration_fields_are_kept(byte_level_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_level_folder)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["errors"] == "replace"
    assert config["add_prefix_space"] is False
    assert config["bos_token"] is None
    assert "chat_template" not in config
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == tokenizer.chat_template


def test_several_templates_are_saved_by_name(byte_level, tmp_path):
    byte_level.chat_template = {"default": "D", "tool_use": "T"}
    byte_level.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == {"default": "D", "tool_use": "T"}
    byte_level.chat_template = {"../../evil": "E"}
    with pytest.raises(TokenizerError, match="cannot be saved under the name"):
        byte_level.save_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_reported(byte_level, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"cannot write .*file is in the way"):
        byte_level.save_pretrained(tmp_path / "file")
