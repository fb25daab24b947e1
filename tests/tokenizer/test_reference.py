"""Compare the tokenizers with those of transformers, argument by argument."""

import copy
import itertools
import json
import random
from typing import Any

import numpy as np
import pytest

from mlx_qwen3 import AutoTokenizer
from tests.support.vocabularies import split_files

pytestmark = [
    pytest.mark.reference,
    # transformers warns about its own deprecated calls, and about max_length without truncation
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

TEXTS = [
    *("Hello world", "  two  spaces ", "\r\n\r\n", " ", "", "it's DON'T we'll", "12345 x**2", "a\tb\n\n\nc"),
    *("naïve cafe\u0301 İstanbul ﬁ", "你好,世界!", "😀 👩‍👩‍👧 🇫🇷", "한국어와 العربية हिन्दी", "𝔘𝔫𝔦 𝟙𝟚"),
    *(
        "<|im_start|>user\nhi<|im_end|>",
        "<think>\nplan</think>",
        "[CLS] [MASK] [SEP]",
        "unaffable plays isn't.",
    ),
    *("\u0000\u200b\ufeff\ufffd", "the quick brown fox was it ? hello , world !" * 3),
]


@pytest.fixture(scope="module")
def vocab_and_merges_folder(byte_level_folder, tmp_path_factory):
    """A folder in the format before `tokenizer.json`, with added and special tokens in the configuration."""
    folder = tmp_path_factory.mktemp("vocab_and_merges")
    config = split_files(byte_level_folder, folder)
    config["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(params=["qwen3", "byte_level", "vocab_and_merges", "word_piece"])
def both(request):
    transformers = pytest.importorskip("transformers")
    folder = request.getfixturevalue(f"{request.param}_folder")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder), theirs


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)
    for key in theirs:
        assert ours[key] == theirs[key], key


def test_attributes_equal_transformers(both):
    ours, theirs = both
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token"), name
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    for name in ("vocab_size", "model_max_length", "padding_side", "truncation_side", "model_input_names"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("all_special_tokens", "all_special_ids", "special_tokens_map", "is_fast", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("name_or_path", "vocab", "added_tokens_encoder"):
        assert getattr(ours, name) == getattr(theirs, name), name
    ids = [*ours.all_special_ids, *ours.encode("the fox")]
    options = {"already_has_special_tokens": True}
    assert ours.get_special_tokens_mask(ids, **options) == theirs.get_special_tokens_mask(ids, **options)
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.tokenizer_class == type(theirs).__name__


def test_texts_and_pairs_equal_transformers(both):
    ours, theirs = both
    options = {
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
        "return_token_type_ids": True,
    }
    for text in TEXTS:
        assert ours.tokenize(text) == theirs.tokenize(text)
        for special in (True, False):
            assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)
        for pair in (None, "the brown fox, 你好"):
            mine, other = ours(text, pair, **options), theirs(text, pair, **options)
            assert_equal(mine, other)
            assert mine.word_ids() == other.word_ids()
            assert mine.sequence_ids() == other.sequence_ids()
            assert mine.tokens() == other.tokens()
            for index in range(len(text)):
                assert mine.char_to_token(index) == other.char_to_token(index)
                assert mine.char_to_word(index) == other.char_to_word(index)
            for index in range(len(mine.input_ids)):
                assert mine.token_to_chars(index) == other.token_to_chars(index)
                assert mine.token_to_word(index) == other.token_to_word(index)
    assert_equal(ours(TEXTS, TEXTS[::-1]), theirs(TEXTS, TEXTS[::-1]))
    words = [["unaffable", "fox", "plays"], ["the"]]
    assert_equal(ours(words, is_split_into_words=True), theirs(words, is_split_into_words=True))


def test_an_empty_second_text_is_not_a_pair(both):
    ours, theirs = both
    for text in ("", "the fox"):
        assert_equal(ours(text, ""), theirs(text, ""))
        assert_equal(ours([text], [""]), theirs([text], [""]))


def test_positions_outside_a_row_equal_transformers(both):
    ours, theirs = both
    mine, other = ours("the fox", "plays"), theirs("the fox", "plays")
    last = len(mine.input_ids) - 1
    for index in (last, last + 1, 99):
        assert mine.token_to_chars(index) == other.token_to_chars(index)
    assert [row.ids for row in mine[0:2]] == [row.ids for row in other[0:2]]


def test_pad_equals_transformers(both):
    ours, theirs = both
    if ours.pad_token is None:
        ours.pad_token, theirs.pad_token = [next(iter(ours.get_vocab()))] * 2
    texts = ["the fox", "a", "the brown fox plays"]
    rows = [dict(ours(text)) for text in texts]
    given = [
        rows,
        dict(ours(texts)),
        rows[0],
        [{"input_ids": [1, 2], "label": 0}, {"input_ids": [3], "label": 1}],
        {"input_ids": [[1, 2], [3]], "attention_mask": [[0, 1], [1]]},
        {"input_ids": [[], [1]]},
        {"input_ids": []},
    ]
    calls: list[dict[str, Any]] = [
        *({"return_attention_mask": value} for value in (None, False, True)),
        *({"padding": value, "max_length": 9} for value in (True, False, "longest", "max_length")),
        {"pad_to_multiple_of": 4},
        {"padding_side": "left", "return_attention_mask": False},
    ]
    for encoded, options in itertools.product(given, calls):
        assert_equal(ours.pad(copy.deepcopy(encoded), **options), theirs.pad(copy.deepcopy(encoded), **options))


def test_padding_and_truncation_equal_transformers(both):
    ours, theirs = both
    batch, pairs, short = TEXTS[-6:], TEXTS[-12:-6], ["the fox"] * 6
    strategies = itertools.product(
        (False, True, "longest", "max_length"),
        (None, False, True, "longest_first", "only_first", "only_second"),
        (None, 12, 16),
        ("left", "right"),
        (None, 4),
    )
    for padding, truncation, max_length, side, multiple in strategies:
        options = {"padding": padding, "truncation": truncation, "max_length": max_length}
        options |= {"padding_side": side, "pad_to_multiple_of": multiple}
        if theirs.model_max_length > 1000 and max_length is None and padding == "max_length":
            continue  # 131,072 tokens per row
        if truncation != "only_second":
            assert_equal(ours(batch, **options), theirs(batch, **options))
        # Both libraries reject a text that is too long and must not be truncated.
        first = short if truncation == "only_second" else batch
        second = short if truncation == "only_first" else pairs
        assert_equal(ours(first, second, **options), theirs(first, second, **options))


def test_overflowing_tokens_equal_transformers(both):
    ours, theirs = both
    for side, stride, padding in itertools.product(("right", "left"), (0, 2), (False, True)):
        ours.truncation_side = theirs.truncation_side = side
        options = {"truncation": True, "max_length": 8, "stride": stride, "padding": padding}
        options |= {"return_overflowing_tokens": True, "return_offsets_mapping": True, "return_length": True}
        assert_equal(ours(TEXTS, **options), theirs(TEXTS, **options))
        assert_equal(ours(TEXTS[-1], **options), theirs(TEXTS[-1], **options))
        options["truncation"] = "only_second"
        assert_equal(ours("the fox", TEXTS[-1], **options), theirs("the fox", TEXTS[-1], **options))


def test_decoded_texts_equal_transformers(both):
    ours, theirs = both
    rng = random.Random(0)
    rows = [ours.encode(text) for text in TEXTS]
    rows += [[rng.randrange(len(ours)) for _ in range(20)] for _ in range(200)]
    for skip, clean in itertools.product((False, True), (None, False, True)):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)
        assert [ours.decode(np.array(row, dtype=int), **options) for row in rows] == [
            theirs.decode(row, **options) for row in rows
        ]
    array = np.array([rows[-1], rows[-2]])
    assert ours.batch_decode(array) == theirs.batch_decode(array)
    assert ours.decode(rows[-1][0]) == theirs.decode(rows[-1][0])


def test_random_texts_equal_transformers(both):
    ours, theirs = both
    rng = random.Random(1)
    alphabet = [chr(c) for c in (*range(32, 127), 9, 10, 13, 0xA0, 0x301, 0x3000, 0x4F60, 0x1F600, 0x200D, 0x130)]
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(300)]
    assert_equal(ours(texts, return_offsets_mapping=True), theirs(texts, return_offsets_mapping=True))


def test_rendered_chats_equal_transformers(qwen3_folder, qwen3, renders):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(qwen3_folder)
    for case in renders:
        options = {"tools": case["tools"], "add_generation_prompt": case["add_generation_prompt"]}
        mine = qwen3.apply_chat_template(case["messages"], return_dict=True, **options)
        assert_equal(mine, theirs.apply_chat_template(case["messages"], return_dict=True, **options))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure:\n\n"}]
    for template in (None, "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"):
        options = {"continue_final_message": True, "tokenize": False, "chat_template": template}
        assert qwen3.apply_chat_template(messages, **options) == theirs.apply_chat_template(messages, **options)


def test_saved_tokenizers_load_in_transformers_and_mlx_lm(both, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer_utils = pytest.importorskip("mlx_lm.tokenizer_utils")
    ours, theirs = both
    ours.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(theirs)
    assert again.chat_template == theirs.chat_template
    assert again.special_tokens_map == theirs.special_tokens_map
    assert again.get_vocab() == theirs.get_vocab()
    assert_equal(again(TEXTS, TEXTS[::-1]), theirs(TEXTS, TEXTS[::-1]))
    wrapped = tokenizer_utils.load(tmp_path)
    assert wrapped.eos_token_ids == {ours.eos_token_id} - {None}
    assert wrapped.encode(TEXTS[0]) == ours.encode(TEXTS[0])
