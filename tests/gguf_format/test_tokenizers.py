"""The tokenizer of a GGUF file returns the same ids as the tokenizer.json that it was converted from."""

import lzma
import random
import sysconfig
from pathlib import Path

import pytest

from mlx_qwen3 import AutoTokenizer
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.errors import MlxQwen3Error, TokenizerError
from tests.support.gguf_files import write_tokenizer_gguf
from tests.support.tiny_checkpoints import write_tokenizer

DATA = Path(__file__).parent.parent / "data" / "qwen3_tokenizer"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi, who are you?"},
    {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nA model."},
    {"role": "user", "content": "你好"},
]
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_response>"),
    *("<|fim_prefix|>", "<|file_sep|>", "<|box_start|>", "[PAD151700]", "<|im_start", "im_end|>"),
]


def texts(count: int, seed: int = 0) -> list[str]:
    """Return code and prose of the standard library, random characters, white space, digits and special tokens."""
    choose = random.Random(seed)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    sources = [file.read_text(encoding="utf-8", errors="replace") for file in choose.sample(files, 40)]
    ranges = [(32, 126), (0, 31), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x900, 0x97F), (0xAC00, 0xD7A3)]
    ranges += [(0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0x2000, 0x206F), (0x1D400, 0x1D7FF), (0xFE00, 0xFEFF)]

    def characters() -> str:
        low, high = choose.choice(ranges)
        return "".join(chr(choose.randint(low, high)) for _ in range(choose.randint(1, 12)))

    def piece() -> str:
        kind = choose.randrange(6)
        if kind == 0:
            source = choose.choice(sources)
            start = choose.randrange(max(len(source) - 200, 1))
            return source[start : start + choose.randint(5, 200)]
        if kind == 1:
            return "".join(choose.choice(" \t\n\r\u00a0\u3000") for _ in range(choose.randint(1, 8)))
        if kind == 2:
            return choose.choice(SPECIAL)
        if kind == 3:
            return choose.choice(["it's", "DON'T", "we'LL", "3.14e-10", "１２３", "١٢٣", "x**2", "\r\n\r\n"])
        return characters()

    return ["".join(piece() for _ in range(choose.randint(1, 8))) for _ in range(count)]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """Return Qwen3's tokenizer, and the same from a GGUF file with as many tokens as the embedding has rows."""
    folder = tmp_path_factory.mktemp("qwen3")
    (folder / "tokenizer.json").write_bytes(lzma.decompress((DATA / "tokenizer.json.xz").read_bytes()))
    (folder / "tokenizer_config.json").write_bytes((DATA / "tokenizer_config.json").read_bytes())
    original = AutoTokenizer.from_pretrained(folder)
    path = write_tokenizer_gguf(folder / "x.gguf", folder, 151936)
    return original, AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = bundled_model_path()
    original = AutoTokenizer.from_pretrained(folder)
    path = write_tokenizer_gguf(tmp_path_factory.mktemp("bundled") / "x.gguf", folder, len(original) + 5)
    return original, AutoTokenizer.from_pretrained(path)


@pytest.fixture(params=["qwen3", "bundled"])
def pair(request):
    return request.getfixturevalue(request.param)


def compare(original, rebuilt, count):
    rows = texts(count)
    expected, found = original(rows)["input_ids"], rebuilt(rows)["input_ids"]
    for text, ids, ours in zip(rows, expected, found, strict=True):
        assert ours == ids, text
    for ids in expected[:300]:
        for skip in (False, True):
            assert rebuilt.decode(ids, skip_special_tokens=skip) == original.decode(ids, skip_special_tokens=skip)


def test_ids_match_the_original(pair):
    compare(*pair, 300)


@pytest.mark.slow
def test_ids_match_the_original_on_ten_thousand_texts(pair):
    compare(*pair, 10_000)


def test_special_tokens_and_templates_match_the_original(pair):
    original, rebuilt = pair
    assert len(rebuilt) == len(original)
    assert rebuilt.vocab_size == original.vocab_size
    for name in ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "bos_token"):
        assert getattr(rebuilt, name) == getattr(original, name), name
    ours, theirs = rebuilt.added_tokens_decoder, original.added_tokens_decoder
    assert {index: (t.content, t.special) for index, t in ours.items()} == {
        index: (t.content, t.special) for index, t in theirs.items()
    }
    for options in ({}, {"enable_thinking": False}):
        prompts = [t.apply_chat_template(MESSAGES, add_generation_prompt=True, **options) for t in (original, rebuilt)]
        assert prompts[0] == prompts[1]


def test_offsets_and_masks_match_the_original(bundled):
    original, rebuilt = bundled
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    for text in texts(40, seed=1):
        assert dict(rebuilt(text, **options)) == dict(original(text, **options))


def test_a_saved_copy_returns_the_same_ids(bundled, tmp_path):
    _, rebuilt = bundled
    rebuilt.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    rows = texts(50, seed=2)
    assert again(rows)["input_ids"] == rebuilt(rows)["input_ids"]
    assert again.chat_template == rebuilt.chat_template


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("small"))


def test_padding_rows_match_no_text(small, tmp_path):
    rebuilt = AutoTokenizer.from_pretrained(write_tokenizer_gguf(tmp_path / "x.gguf", small, 450))
    original = AutoTokenizer.from_pretrained(small)
    assert rebuilt.encode("a [PAD440] b") == original.encode("a [PAD440] b")
    assert len(rebuilt) == len(original)


def test_added_tokens_between_the_others_keep_their_ids(small, tmp_path):
    """Qwen3 has no such tokens, but the format allows them."""
    backend = AutoTokenizer.from_pretrained(small).backend
    size = backend.get_vocab_size()
    tokens = [backend.id_to_token(index) for index in range(size)]
    types = [
        3 if token.startswith("<|") else 4 if token in ("<think>", "</think>", "two words") else 1 for token in tokens
    ]
    moved = [*range(3), 400, *range(3, 400), *range(401, size)]  # <|endoftext|> as the fourth token
    changes = {"tokens": [tokens[i] for i in moved], "types": [types[i] for i in moved], "eos": 402, "pad": 3}
    rebuilt = AutoTokenizer.from_pretrained(write_tokenizer_gguf(tmp_path / "x.gguf", small, size, **changes))
    original = AutoTokenizer.from_pretrained(small)
    for text in ["Hello world<|endoftext|> two words <think>x", "the fox's"]:
        assert [moved[i] for i in rebuilt.encode(text)] == original.encode(text)
    assert (rebuilt.pad_token, rebuilt.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_named_chat_templates_are_read(small, tmp_path):
    templates = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    rebuilt = AutoTokenizer.from_pretrained(write_tokenizer_gguf(tmp_path / "x.gguf", small, 410, template=templates))
    assert rebuilt.chat_template == {"default": "D", "tool_use": "T"}


def test_overrides_replace_settings_of_the_file(small, tmp_path):
    path = write_tokenizer_gguf(tmp_path / "x.gguf", small, 410)
    rebuilt = AutoTokenizer.from_pretrained(path, padding_side="left", chat_template="X")
    assert (rebuilt.padding_side, rebuilt.chat_template) == ("left", "X")


BAD = {
    "no tokenizer": ({"model": None}, "has no tokenizer"),
    "another kind": ({"model": "llama"}, "SentencePiece"),
    "another split": ({"pre": "gpt-4o"}, "tokenizer.ggml.pre is 'gpt-4o'"),
    "an unnamed split": ({"pre": None}, "tokenizer.ggml.pre is missing"),
    "more tokens than rows": (
        {"tokens": ["a", "b"] * 300, "types": [1] * 600},
        "600 tokens and an embedding of 410 rows",
    ),
    "types of other tokens": ({"types": [1, 1]}, "410 tokens and 2 token types"),
    "an unknown type": ({"types": [9] * 410}, "unknown type 9"),
    "a token twice": ({"tokens": ["a"] * 410, "types": [1] * 410}, "a token twice"),
    "a merge of one": ({"merges": ["ab"]}, "the merge 'ab'"),
    "a merge of unknown tokens": ({"merges": ["qq zz"]}, "tokens and merges are inconsistent"),
    "an end beyond the tokens": ({"eos": 4000}, "eos_token_id is 4000"),
    "an end that is unused": ({"eos": 409}, "unused token"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_unsupported_tokenizers_are_refused(small, tmp_path, changes, message):
    path = write_tokenizer_gguf(tmp_path / "x.gguf", small, 410, **changes)
    with pytest.raises(MlxQwen3Error, match=message) as caught:
        AutoTokenizer.from_pretrained(path)
    assert isinstance(caught.value, TokenizerError)
    assert "\n" not in str(caught.value)
