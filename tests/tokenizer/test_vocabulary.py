"""Conversions between tokens and ids, added tokens, copies and pickles."""

import copy
import pickle

import pytest

from mlx_qwen3.errors import InputError


def test_special_tokens_are_attributes(byte_level, word_piece):
    vocab = byte_level.get_vocab()
    assert (byte_level.eos_token, byte_level.eos_token_id) == ("<|im_end|>", vocab["<|im_end|>"])
    assert byte_level.bos_token is None
    assert byte_level.bos_token_id is None
    assert byte_level.all_special_tokens == ["<|im_end|>", "<|endoftext|>"]
    assert byte_level.all_special_ids == [vocab["<|im_end|>"], vocab["<|endoftext|>"]]
    named = [word_piece.pad_token_id, word_piece.unk_token_id, word_piece.cls_token_id]
    assert [*named, word_piece.sep_token_id, word_piece.mask_token_id] == [0, 1, 2, 3, 4]


def test_sizes(byte_level):
    assert byte_level.vocab_size == 400
    assert len(byte_level) == 406 == len(byte_level.get_vocab())
    assert byte_level.is_fast
    assert byte_level.model_max_length == 131072


def test_named_tokens_can_be_set_by_token_and_by_id(byte_level):
    byte_level.pad_token = byte_level.eos_token
    assert byte_level.pad_token_id == byte_level.eos_token_id
    byte_level.pad_token_id = 3
    assert byte_level.pad_token == byte_level.convert_ids_to_tokens(3)
    byte_level.pad_token = None
    assert byte_level.pad_token_id is None
    with pytest.raises(InputError, match="padding token"):
        byte_level(["a", "a b"], padding=True)
    with pytest.raises(InputError, match=r"'\[PAD\]' is not in the vocabulary"):
        byte_level.pad_token = "[PAD]"
    with pytest.raises(InputError, match="pad_token_id 9999 is out of range"):
        byte_level.pad_token_id = 9999


def test_added_special_tokens_get_new_ids_and_names(byte_level):
    assert byte_level.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["<a>", "<b>"]}) == 3
    assert len(byte_level) == 409
    assert byte_level.pad_token == "[PAD]"
    assert byte_level.extra_special_tokens == ["<a>", "<b>"]
    ids = byte_level.encode("x[PAD]y<a>")
    assert byte_level.decode(ids, skip_special_tokens=True) == "xy"
    with pytest.raises(InputError, match="'colour_token' is not a special token"):
        byte_level.add_special_tokens({"colour_token": "<c>"})


def test_a_token_added_later_is_streamed(byte_level):
    stream = byte_level.detokenizer
    stream.add_token(len(byte_level))
    assert stream.last_segment == ""
    byte_level.add_tokens("<new token>")
    stream = byte_level.detokenizer
    stream.add_token(len(byte_level) - 1)
    assert stream.last_segment == "<new token>"


def test_conversions(byte_level, word_piece):
    tokens = word_piece.tokenize("Unaffable 你好 zebra")
    assert tokens == ["un", "##aff", "##able", "你", "好", "[UNK]"]
    ids = word_piece.convert_tokens_to_ids(tokens)
    assert word_piece.convert_ids_to_tokens(ids) == tokens
    assert word_piece.convert_tokens_to_ids("zebra") == word_piece.unk_token_id
    assert byte_level.convert_tokens_to_ids("zebra, not a token") is None
    assert byte_level.convert_ids_to_tokens(9999) is None
    assert word_piece.convert_ids_to_tokens([2, 5, 3], skip_special_tokens=True) == ["hello"]
    assert byte_level.convert_tokens_to_string(["Ġthe", "Ġfox"]) == " the fox"
    assert "<think>" in byte_level
    with pytest.raises(InputError, match="negative"):
        byte_level.convert_ids_to_tokens(-1)


def test_copies_and_pickles_encode_equally(byte_level):
    ids = byte_level.encode("Hello 😀 world")
    for clone in (copy.deepcopy(byte_level), pickle.loads(pickle.dumps(byte_level))):
        assert clone.encode("Hello 😀 world") == ids
        clone.add_tokens("<only here>")
        assert "<only here>" not in byte_level
        stream = clone.detokenizer
        stream.add_token(ids[0])
        assert stream.text == clone.decode(ids[0])
