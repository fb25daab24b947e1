"""Calls of a tokenizer: padding, truncation, pairs, masks, return types, and invalid arguments."""

import copy
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import InputError


def test_a_text_returns_lists_and_a_batch_lists_of_lists(byte_level):
    single = byte_level("Hello world")
    assert list(single) == ["input_ids", "attention_mask"]
    assert single.input_ids == byte_level.encode("Hello world")
    assert single.attention_mask == [1] * len(single.input_ids)
    batch = byte_level(["Hello world", "Hello"])
    assert batch["input_ids"] == [single.input_ids, byte_level.encode("Hello")]
    assert {**batch}.keys() == dict(batch).keys() == {"input_ids", "attention_mask"}
    with pytest.raises(AttributeError, match="no 'token_type_ids', only input_ids, attention_mask"):
        _ = single.token_type_ids


@pytest.mark.parametrize(("kind", "dtype"), [("mlx", mx.int32), ("np", np.int64)])
def test_batches_are_returned_as_arrays_on_request(byte_level, kind, dtype):
    batch = byte_level(["Hello", "Hello brown world"], padding=True, return_tensors=kind)
    assert batch.input_ids.dtype == dtype
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, 3)
    assert np.array(batch.attention_mask).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.input_ids[0, -1].item() == byte_level.pad_token_id
    assert byte_level("Hello", return_tensors=kind).input_ids.shape == (1, 1)
    assert byte_level.encode("Hello", return_tensors=kind).shape == (1, 1)
    offsets = byte_level("Hello world", return_offsets_mapping=True, return_tensors=kind).offset_mapping
    assert offsets.shape == (1, 2, 2)


@pytest.mark.parametrize("kind", ["pt", "tf", "jax"])
def test_arrays_of_other_frameworks_are_rejected(byte_level, kind):
    with pytest.raises(InputError, match=f"return_tensors='{kind}'.*'mlx' or 'np'"):
        byte_level("Hello", return_tensors=kind)


def test_rows_of_different_lengths_are_rejected_for_arrays(byte_level):
    with pytest.raises(InputError, match=r"input_ids.*padding=True"):
        byte_level(["Hello", "Hello world"], return_tensors="mlx")


def test_padding_sides_lengths_and_multiples(byte_level):
    pad = byte_level.pad_token_id
    ids = byte_level.encode("Hello world the")
    texts = ["Hello", "Hello world the"]
    assert byte_level(texts, padding="longest").input_ids == [[*ids[:1], pad, pad], ids]
    assert byte_level(texts, padding=True, padding_side="left").input_ids == [[pad, pad, *ids[:1]], ids]
    byte_level.padding_side = "left"
    fixed = byte_level(texts, padding="max_length", max_length=4, truncation=True)
    assert fixed.input_ids == [[pad, pad, pad, *ids[:1]], [pad, *ids]]
    assert fixed.attention_mask == [[0, 0, 0, 1], [0, 1, 1, 1]]
    assert {len(row) for row in byte_level(texts, padding=True, pad_to_multiple_of=8).input_ids} == {8}
    assert byte_level(texts, padding="do_not_pad").input_ids == [ids[:1], ids]
    with pytest.raises(InputError, match="padding_side='both' is unknown"):
        byte_level.padding_side = "both"


def test_truncation_modes_of_pairs(word_piece):
    first, second = "the quick brown fox", "hello world it was"
    cls, sep = word_piece.cls_token_id, word_piece.sep_token_id
    a, b = (word_piece.encode(text, add_special_tokens=False) for text in (first, second))

    def cut(strategy, length):
        return word_piece(first, second, truncation=strategy, max_length=length).input_ids

    assert word_piece(first, second).input_ids == [cls, *a, sep, *b, sep]
    assert cut("only_first", 9) == [cls, *a[:2], sep, *b, sep]
    assert cut("only_second", 9) == [cls, *a, sep, *b[:2], sep]
    assert cut(True, 9) == cut("longest_first", 9) == [cls, *a[:3], sep, *b[:3], sep]
    assert cut("do_not_truncate", 9) == cut(False, 9) == [cls, *a, sep, *b, sep]
    word_piece.truncation_side = "left"
    assert cut("only_second", 9) == [cls, *a, sep, *b[2:], sep]


def test_max_length_truncates_and_defaults_to_model_max_length(word_piece):
    text = "the " * 100
    assert len(word_piece(text, max_length=7).input_ids) == 7
    assert len(word_piece(text, truncation=True).input_ids) == word_piece.model_max_length == 64
    assert len(word_piece("the", padding="max_length").input_ids) == 64
    assert len(word_piece(text).input_ids) == 102
    word_piece.model_max_length = int(1e30)
    assert len(word_piece(text, truncation=True, padding="max_length").input_ids) == 102


def test_token_types_distinguish_the_texts_of_a_pair(word_piece):
    pair = word_piece("hello world", "the fox")
    assert list(pair) == ["input_ids", "token_type_ids", "attention_mask"]
    assert pair.token_type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert pair.sequence_ids() == [None, 0, 0, None, 1, 1, None]
    assert word_piece([("hello world", "the fox")]).input_ids == [pair.input_ids]
    assert word_piece(["hello world"], ["the fox"]).token_type_ids == [pair.token_type_ids]
    assert word_piece(["hello"], [""]).tokens() == ["[CLS]", "hello", "[SEP]", "[SEP]"]
    assert word_piece("hello", "").tokens() == ["[CLS]", "hello", "[SEP]"]
    assert "token_type_ids" not in word_piece("hello", return_token_type_ids=False)


def test_overflow_repeats_stride_tokens(word_piece):
    text = "the quick brown fox was hello world"
    ids = word_piece.encode(text, add_special_tokens=False)
    batch = word_piece(
        ["the fox", text],
        truncation=True,
        max_length=5,
        stride=1,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=True,
        return_tensors="np",
    )
    assert batch.overflow_to_sample_mapping.tolist() == [0, 1, 1, 1]
    assert [row[1:4].tolist() for row in batch.input_ids[1:]] == [ids[0:3], ids[2:5], ids[4:7]]
    start, end = batch.offset_mapping[3, 1]
    assert text[start:end] == "was"


def test_words_characters_and_masks(word_piece):
    text = "unaffable plays"
    row = word_piece(text, return_special_tokens_mask=True, return_length=True)
    assert row.tokens() == ["[CLS]", "un", "##aff", "##able", "play", "##s", "[SEP]"]
    assert row.word_ids() == [None, 0, 0, 0, 1, 1, None]
    assert row.special_tokens_mask == [1, 0, 0, 0, 0, 0, 1]
    assert row.length == [7]
    assert row.char_to_token(2) == 2
    assert row.char_to_token(9) is None
    assert row.char_to_word(0, 10) == 1
    assert row.token_to_chars(3) == (5, 9)
    assert row.token_to_word(-2) == 1
    assert row.token_to_sequence(1) == 0
    assert row.word_to_tokens(0) == (1, 4)
    assert text[slice(*row.word_to_chars(0, 1))] == "plays"
    assert row.n_sequences == 1
    assert row[0].ids == row.input_ids
    assert copy.deepcopy(row).word_ids() == row.word_ids()
    with pytest.raises(InputError, match="row 1 is outside this batch of 1"):
        row.word_ids(1)


def test_lists_of_words_are_encoded(word_piece):
    words = ["unaffable", "fox", "plays"]
    row = word_piece(words, is_split_into_words=True)
    assert row.word_ids() == [None, 0, 0, 0, 1, 2, 2, None]
    batch = word_piece([words, ["the"]], is_split_into_words=True)
    assert batch.input_ids == [row.input_ids, word_piece.encode("the")]
    pair = word_piece([(words, ["the"])], is_split_into_words=True)
    assert pair.input_ids[0] == [*row.input_ids, *word_piece.encode("the")[1:]]


def test_special_tokens_in_text_are_one_token_unless_split(byte_level):
    assert byte_level.encode("<|im_end|>") == [byte_level.eos_token_id]
    byte_level.split_special_tokens = True
    ids = byte_level.encode("<|im_end|>")
    assert len(ids) > 1
    assert byte_level.decode(ids) == "<|im_end|>"


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((3,), {}, "text is of type int. Pass a string"),
        ((None,), {}, "there is no text to encode"),
        (("a",), {"foo": 1}, "no argument 'foo'"),
        (([],), {}, "empty list"),
        ((["a", 3],), {}, "text 1 is of type int. Pass a string"),
        ((["a", ("b", "c")],), {}, "mixes single texts and pairs"),
        (([("a", "b", "c")],), {}, "text 0 has 3 parts"),
        ((["a"], "b"), {}, "text_pair is of type str. Pass a list"),
        ((["a"], ["b", "c"]), {}, "text and text_pair differ in length: 1 and 2"),
        (("a",), {"is_split_into_words": True}, "Pass a list of words"),
        (("ok \udc80",), {}, "lone surrogate at character 3"),
        (("a",), {"padding": "shortest"}, "padding='shortest' is unknown. Use one of 'longest'"),
        (("a",), {"truncation": "first"}, "truncation='first' is unknown"),
        (("a",), {"max_length": 1, "truncation": True}, "max_length=1 is less than the 2 special tokens"),
        (("a",), {"max_length": -1}, "max_length=-1 is negative"),
        (("a",), {"max_length": 5, "stride": 3, "truncation": True}, "stride=3 is too large. Use less than the 3"),
        (("a",), {"max_length": 5, "truncation": "only_second"}, "needs a pair. Pass text_pair"),
        (
            ("a", "the " * 9),
            {"max_length": 5, "truncation": "only_first"},
            "max_length=5, truncation='only_first'.*too short",
        ),
        (
            ("a",),
            {"max_length": 5, "padding": True, "truncation": True, "pad_to_multiple_of": 4},
            "not a multiple of pad_to_multiple_of=4",
        ),
    ],
)
def test_wrong_arguments_are_reported(word_piece, args, options, message):
    with pytest.raises(InputError, match=message):
        word_piece(*args, **options)
    assert word_piece.tokenize("hello") == ["hello"]


def test_truncation_in_one_thread_does_not_affect_others(byte_level):
    text = "the quick brown fox " * 50
    whole = byte_level.encode(text)

    def encode(length):
        return byte_level.encode(text, max_length=length) == whole[:length]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, [*range(1, 40), *[None] * 40]))


def test_decode_accepts_ints_lists_and_arrays(byte_level):
    ids = byte_level.encode("Hello brown world")
    for value in (ids, tuple(ids), np.array(ids), mx.array(ids), list(np.array(ids))):
        assert byte_level.decode(value) == "Hello brown world"
    assert byte_level.decode(ids[0]) == byte_level.decode(np.int64(ids[0])) == "Hello"
    assert byte_level.decode([]) == ""
    rows = byte_level(["Hello", "Hello world"], padding=True, return_tensors="mlx").input_ids
    for value in (rows, np.array(rows), rows.tolist(), list(rows)):
        assert byte_level.batch_decode(value, skip_special_tokens=True) == ["Hello", "Hello world"]
        assert byte_level.decode(value)[0] == "Hello<|endoftext|>"
    assert byte_level.batch_decode(ids) == ["Hello brown world"]


def test_decode_rejects_values_that_are_not_ids(byte_level):
    for wrong in ([-1], 10**12):
        with pytest.raises(InputError, match=r"token id .* is out of range"):
            byte_level.decode(wrong)
    with pytest.raises(InputError, match="decode has no argument 'foo'"):
        byte_level.decode([0], foo=1)
    for wrong in ([0.5], mx.array([0.5]), "text", None, ["a"]):
        with pytest.raises(InputError, match="Pass integers"):
            byte_level.decode(wrong)


def test_an_id_above_the_vocabulary_decodes_to_nothing(byte_level):
    ids = byte_level.encode("Hello")
    assert byte_level.decode([*ids, len(byte_level) + 7]) == "Hello"
    assert byte_level.batch_decode([[len(byte_level)], ids]) == ["", "Hello"]


def test_pad_equals_padding_in_the_call(byte_level):
    texts = ["Hello brown world", "Hello"]
    rows = [byte_level(text) for text in texts]
    for options in ({}, {"padding_side": "left"}, {"pad_to_multiple_of": 8}):
        assert byte_level.pad(rows, **options) == byte_level(texts, padding=True, **options)
    arrays = byte_level.pad([dict(row, labels=1) for row in rows], return_tensors="np")
    assert arrays["labels"].tolist() == [1, 1]
    assert arrays["input_ids"].shape == arrays["attention_mask"].shape
    with pytest.raises(InputError, match="pad: the inputs have no 'input_ids'"):
        byte_level.pad({"labels": [1]})


def test_targets_become_labels_and_to_returns_the_same_inputs(byte_level):
    inputs = byte_level("Hello", text_target="world")
    assert inputs["labels"] == byte_level("world")["input_ids"]
    assert byte_level(text_target="world") == byte_level("world")
    assert inputs.to("mps") is inputs


def test_clean_up_applies_to_word_piece_only(byte_level, word_piece):
    ids = word_piece.encode("it isn ' t", add_special_tokens=False)
    assert word_piece.decode(ids) == "it isn ' t"
    assert word_piece.decode(ids, clean_up_tokenization_spaces=True) == "it isn't"
    word_piece.clean_up_tokenization_spaces = True
    assert word_piece.decode(ids) == "it isn't"
    ids = byte_level.encode("the fox .")
    assert byte_level.decode(ids, clean_up_tokenization_spaces=True) == "the fox ."


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("__call__", {"text": "a", "max_length": 1.5}),
        ("__call__", {"text": "a", "stride": "1"}),
        ("__call__", {"text": "a", "pad_to_multiple_of": "1"}),
        ("__call__", {"text": "a", "tokenizer_kwargs": [1]}),
        ("__call__", {"text": "a", "return_tensors": ["np"]}),
        ("__call__", {"text": "a", "padding": "max_length", "max_length": 10**30}),
        ("decode", {"token_ids": {"a": [1]}}),
        ("batch_decode", {"sequences": {}}),
        ("pad", {"encoded_inputs": {1: [2]}}),
        ("pad", {"encoded_inputs": {"input_ids": 5}}),
        ("pad", {"encoded_inputs": {"input_ids": None}}),
        ("convert_ids_to_tokens", {"ids": "a"}),
        ("convert_ids_to_tokens", {"ids": [[1, 2]]}),
        ("convert_ids_to_tokens", {"ids": [[1, 2]], "skip_special_tokens": True}),
        ("convert_tokens_to_string", {"tokens": None}),
        ("convert_tokens_to_string", {"tokens": "the"}),
        ("convert_tokens_to_ids", {"tokens": 5}),
        ("apply_chat_template", {"conversation": [{"role": "user", "content": "a"}], "tools": 5}),
        ("apply_chat_template", {"conversation": [{"role": "user", "content": "a"}], "chat_template": []}),
    ],
)
def test_wrong_types_are_reported_in_one_line(byte_level, method, options):
    with pytest.raises(InputError) as caught:
        getattr(byte_level, method)(**options)
    assert "\n" not in str(caught.value)


def test_lengths_may_be_integers_of_numpy(byte_level):
    expected = byte_level("a b c d", max_length=2, padding="max_length", pad_to_multiple_of=2)
    lengths = {"max_length": np.int64(2), "pad_to_multiple_of": np.int32(2), "stride": np.int8(0)}
    assert byte_level("a b c d", padding="max_length", **lengths) == expected


def test_ids_convert_from_arrays(byte_level):
    ids = byte_level.encode("a b")
    expected = byte_level.convert_ids_to_tokens(ids)
    assert byte_level.convert_ids_to_tokens(mx.array(ids)) == expected
    assert byte_level.convert_ids_to_tokens(np.array(ids)) == expected
    assert byte_level.convert_ids_to_tokens(1 << 40) is None
