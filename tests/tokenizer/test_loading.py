"""Loading tokenizers: files, overrides, special tokens, and damaged configurations."""

import json
import subprocess
import sys

import pytest

from mlx_qwen3 import AutoTokenizer
from mlx_qwen3.errors import InputError, MlxQwen3Error, TokenizerError
from tests.support.vocabularies import split_files


def test_importing_and_loading_does_not_import_transformers_or_torch(byte_level_folder):
    program = (
        "import sys, mlx_qwen3; tokenizer = mlx_qwen3.AutoTokenizer.from_pretrained(sys.argv[1]);"
        "tokenizer('hi', return_tensors='mlx');"
        "tokenizer.apply_chat_template([{'role': 'user', 'content': 'hi'}]);"
        "print({'transformers', 'torch', 'mlx_lm'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(byte_level_folder)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


TEXTS = [
    "Hello world  it's\n\n fine",
    "<|im_start|>user\nhi<|im_end|><think> two words",
    "cafe\u0301 naïve 12345",
    "你好 😀",
]


def test_vocab_and_merges_equal_tokenizer_json(byte_level, byte_level_folder, tmp_path):
    split_files(byte_level_folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_vocab() == byte_level.get_vocab()
    for text in TEXTS:
        ids = byte_level.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == byte_level.decode(ids)


def test_added_tokens_json_gives_the_same_ids(byte_level, byte_level_folder, tmp_path):
    config = split_files(byte_level_folder, tmp_path)
    added = {token["content"]: int(index) for index, token in config.pop("added_tokens_decoder").items()}
    config["extra_special_tokens"] = ["<|im_start|>"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_added_vocab() == byte_level.get_added_vocab()
    assert tokenizer.added_tokens_decoder[added["<|im_start|>"]].special
    assert not tokenizer.added_tokens_decoder[added["<think>"]].special


def test_an_added_token_with_an_inconsistent_id_is_reported(byte_level_folder, tmp_path):
    config = split_files(byte_level_folder, tmp_path)
    config["added_tokens_decoder"] = {"7000": {"content": "<new>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TokenizerError, match="'<new>' has id 7000"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_special_tokens_map_fills_an_old_configuration(byte_level_folder, tmp_path):
    split_files(byte_level_folder, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    names = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "<|endoftext|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.special_tokens_map == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_the_model_type_replaces_a_missing_tokenizer_class(byte_level_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.tokenizer_class, tokenizer.eos_token) == ("Qwen2Tokenizer", "<|endoftext|>")


def test_lengths_stored_in_tokenizer_json_are_defaults_and_not_applied(word_piece, tmp_path):
    backend = word_piece.backend
    backend.enable_truncation(4)
    backend.enable_padding(direction="left", pad_token="[PAD]", length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer.encode("hello world the quick fox")) == 7
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[PAD]", "left")
    saved = json.loads(tokenizer.serialized())
    assert saved["truncation"]["max_length"] == 4
    assert saved["padding"]["strategy"] == {"Fixed": 9}
    assert len(tokenizer.encode("hello world the quick fox")) == 7


def test_overrides_replace_fields(byte_level_folder, word_piece_folder):
    tokenizer = AutoTokenizer.from_pretrained(
        byte_level_folder, padding_side="left", pad_token="<|im_end|>", model_max_length=5, use_fast=True
    )
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<|im_end|>")
    assert len(tokenizer.encode("a b c d e f g h", truncation=True)) == 5
    cased = AutoTokenizer.from_pretrained(word_piece_folder, do_lower_case=False)
    assert cased.tokenize("Hello hello") == ["[UNK]", "hello"]


def test_case_in_the_configuration_overrides_tokenizer_json(word_piece, tmp_path):
    word_piece.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["do_lower_case"] = False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("Hello hello") == ["[UNK]", "hello"]


def test_defaults_of_a_class_do_not_grow_the_vocabulary(word_piece_folder, tmp_path):
    words = (word_piece_folder / "vocab.txt").read_text(encoding="utf-8").replace("[MASK]\n", "")
    (tmp_path / "vocab.txt").write_text(words, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.mask_token is None
    assert len(tokenizer) == tokenizer.vocab_size == len(words.split())
    grown = AutoTokenizer.from_pretrained(tmp_path, mask_token="[MASK]")
    assert grown.mask_token_id == len(tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", '{"version": "1.0", "model"', "tokenizer.json cannot be read"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[]", "not contain a mapping of names to values"),
        ("tokenizer.model", "", "only a SentencePiece vocabulary"),
        ("vocab.txt", "[CLS]\n[SEP]\n", "no unknown token '\\[UNK\\]'"),
        ("readme.md", "", "has no vocabulary. Add tokenizer.json"),
    ],
)
def test_unusable_files_are_reported_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message) as caught:
        AutoTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_a_folder_is_resolved_as_a_checkpoint(byte_level_folder, monkeypatch):
    requests = {}

    def resolve_checkpoint(path_or_id, revision, allow_patterns, gguf_file, hub):
        requests[path_or_id, revision] = allow_patterns
        return byte_level_folder

    monkeypatch.setattr("mlx_qwen3.tokenizer.auto.resolve_checkpoint", resolve_checkpoint)
    assert AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B", revision="v1").vocab_size == 400
    patterns = requests["Qwen/Qwen3-0.6B", "v1"]
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt"} <= set(patterns)
    assert not any("safetensors" in pattern for pattern in patterns)


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(MlxQwen3Error, match="nothing-here"):
        AutoTokenizer.from_pretrained(tmp_path / "nothing-here")


def test_named_templates_of_the_configuration_are_loaded(byte_level_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    templates = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == {"default": "D", "tool_use": "T"}
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "x"}]}', encoding="utf-8")
    with pytest.raises(TokenizerError, match="chat_template in tokenizer_config"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_an_unknown_override_is_rejected(byte_level_folder):
    with pytest.raises(InputError, match=r"'padding_sid'\. Did you mean padding_side"):
        AutoTokenizer.from_pretrained(byte_level_folder, padding_sid="left")


def test_keywords_of_models_do_not_change_tokens(byte_level_folder):
    plain = AutoTokenizer.from_pretrained(byte_level_folder)
    made = AutoTokenizer.from_pretrained(
        byte_level_folder, dtype="auto", config=None, legacy=False, add_bos_token=False
    )
    assert made("some text")["input_ids"] == plain("some text")["input_ids"]
    with pytest.raises(InputError, match="in the text"):
        AutoTokenizer.from_pretrained(byte_level_folder, add_eos_token=True)
    with pytest.raises(InputError, match="model_max_length"):
        AutoTokenizer.from_pretrained(byte_level_folder, max_length=8)


def test_template_files_take_precedence_and_can_be_named(byte_level_folder, tmp_path):
    for file in byte_level_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("from the file", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "from the file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "from the file"
    assert tokenizer.apply_chat_template(messages, tools=[{}], tokenize=False) == "with tools"
    assert tokenizer.apply_chat_template(messages, tokenize=False, chat_template="tool_use") == "with tools"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_class", 5),
        ("model_max_length", "x"),
        ("extra_special_tokens", 5),
        ("added_tokens_decoder", [1]),
        ("added_tokens_decoder", {"0": 5}),
        ("eos_token", {"content": 5}),
        ("eos_token", {}),
        ("padding_side", []),
        ("truncation_side", "top"),
        ("clean_up_tokenization_spaces", "yes"),
        ("split_special_tokens", 1),
        ("chat_template", [5]),
        ("chat_template", []),
        ("chat_template", 5),
    ],
)
def test_a_field_of_the_wrong_type_is_reported(byte_level_folder, tmp_path, name, value):
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: value}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=name) as caught:
        AutoTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_token_and_an_infinite_length_are_not_set(byte_level_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    fields = '{"bos_token": "", "model_max_length": Infinity}'
    (tmp_path / "tokenizer_config.json").write_text(fields, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.bos_token is None
    assert len(tokenizer("a b c", truncation=True, max_length=tokenizer.model_max_length)["input_ids"]) > 1


def test_a_template_that_is_not_utf8_is_reported(byte_level_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(TokenizerError, match="is not UTF-8"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_the_configuration_decides_which_tokens_are_special(byte_level, byte_level_folder, tmp_path):
    name, index = next((t, i) for t, i in byte_level.get_added_vocab().items())
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    fields = {"added_tokens_decoder": {str(index): {"content": name, "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode([index, *tokenizer.encode("a")], skip_special_tokens=True) == "a"
