"""Incremental decoding: streamed text equals the decoded ids, in linear time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from mlx_qwen3.errors import InputError
from mlx_qwen3.tokenizer import AutoTokenizer, Tokenizer, WindowDetokenizer
from tests.support.vocabularies import WORDS, train_byte_level

BYTE_LEVEL = Tokenizer(train_byte_level())
CHARACTER_BYTES = [BYTE_LEVEL.encode(character) for character in ("é", "你", "😀", "\u0301", "İ")]

token = st.integers(0, len(BYTE_LEVEL) - 1)
split_character = st.sampled_from(CHARACTER_BYTES).flatmap(
    lambda ids: st.integers(0, len(ids)).map(lambda cut: ids[:cut])
)
byte_token = st.sampled_from([BYTE_LEVEL.backend.token_to_id(c) for c in BYTE_LEVEL.get_vocab() if len(c) == 1])
pieces = st.lists(st.one_of(token.map(lambda i: [i]), byte_token.map(lambda i: [i]), split_character), max_size=30)


def stream(tokenizer, ids, **options):
    detokenizer, segments = tokenizer.make_detokenizer(**options), []
    for index in ids:
        detokenizer.add_token(index)
        segments.append(detokenizer.last_segment)
    detokenizer.finalize()
    segments.append(detokenizer.last_segment)
    assert "".join(segments) == detokenizer.text
    assert detokenizer.last_segment == ""
    assert detokenizer.tokens == list(ids)
    return segments


def check_byte_level(parts, skip):
    ids = [index for part in parts for index in part]
    whole = BYTE_LEVEL.backend.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(BYTE_LEVEL, ids, skip_special_tokens=skip)) == whole


@given(pieces, st.booleans())
def test_streamed_text_equals_decode(parts, skip):
    check_byte_level(parts, skip)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(pieces, st.booleans())
def test_streamed_text_of_long_sequences_equals_decode(parts, skip):
    check_byte_level(parts, skip)


@given(st.lists(st.binary(min_size=1, max_size=6), max_size=8))
def test_invalid_bytes_are_replaced_as_in_decode(chunks):
    from mlx_qwen3.tokenizer.detokenizer import BYTE_OF_CHARACTER

    names = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    ids = [BYTE_LEVEL.convert_tokens_to_ids(names[byte]) for chunk in chunks for byte in chunk]
    assert "".join(stream(BYTE_LEVEL, ids)) == BYTE_LEVEL.backend.decode(ids)


def test_a_character_is_emitted_with_its_last_byte_and_text_at_once():
    ids = BYTE_LEVEL.encode(" the 𝔘 fox")
    segments = stream(BYTE_LEVEL, ids)
    assert segments[0] == " the"
    assert "\ufffd" not in "".join(segments)
    assert sum(not segment for segment in segments[:-1]) == len(BYTE_LEVEL.encode("𝔘")) - 1
    assert segments[-1] == ""


def test_a_special_token_inside_a_character_breaks_it():
    first, *rest = CHARACTER_BYTES[2]
    end = BYTE_LEVEL.convert_tokens_to_ids("<|im_end|>")
    ids = [first, end, *rest]
    whole = BYTE_LEVEL.backend.decode(ids, skip_special_tokens=False)
    assert "<|im_end|>" in whole
    assert "".join(stream(BYTE_LEVEL, ids)) == whole
    assert "".join(stream(BYTE_LEVEL, ids, skip_special_tokens=True)) == "😀"


def test_an_id_beyond_the_vocabulary_adds_no_text_and_a_negative_one_is_rejected():
    """A model's output may have more rows than the vocabulary has tokens."""
    ids = BYTE_LEVEL.encode("the fox")
    assert "".join(stream(BYTE_LEVEL, [ids[0], len(BYTE_LEVEL) + 5, *ids[1:]])) == "the fox"
    with pytest.raises(InputError, match="token id -1 is negative"):
        BYTE_LEVEL.detokenizer.add_token(-1)


def test_each_access_returns_a_new_detokenizer_and_reset_clears_it():
    ids = BYTE_LEVEL.encode("the 😀")
    detokenizer = BYTE_LEVEL.detokenizer
    assert detokenizer is not BYTE_LEVEL.detokenizer
    for index in ids[:-1]:
        detokenizer.add_token(index)
    detokenizer.reset()
    detokenizer.add_token(ids[0])
    assert detokenizer.text == detokenizer.last_segment == BYTE_LEVEL.decode(ids[0])
    assert detokenizer.tokens == ids[:1]


def test_time_is_linear_in_the_number_of_tokens():
    ids = BYTE_LEVEL.encode("the quick brown fox 你好 😀 ") * 400

    def seconds(count):
        best = float("inf")
        for _ in range(3):
            detokenizer, start = BYTE_LEVEL.detokenizer, time.perf_counter()
            for index in ids[:count]:
                detokenizer.add_token(index)
                _ = detokenizer.last_segment
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(8000) < 8 * 4 * seconds(1000)


def word_piece_backend():
    backend = Backend(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    return backend


def sentence_piece_backend():
    """Return a decoder of Llama's kind: a marked space, bytes as tokens, and the first space dropped."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = ["<s>", "▁", "▁the", "▁fox", "es", ".", "你", *bytes_]
    backend = Backend(models.BPE({token: i for i, token in enumerate(vocab)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    return backend


WORD_PIECE = Tokenizer(word_piece_backend())
SENTENCE_PIECE = Tokenizer(sentence_piece_backend())


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=30), st.booleans())
def test_streamed_word_pieces_equal_decode(ids, skip):
    whole = WORD_PIECE.backend.decode(ids, skip_special_tokens=skip)
    assert isinstance(WORD_PIECE.detokenizer, WindowDetokenizer)
    assert "".join(stream(WORD_PIECE, ids, skip_special_tokens=skip)) == whole


@given(
    st.lists(
        st.one_of(st.integers(0, 6), st.integers(7, 262), st.sampled_from([7 + b for b in "é你".encode()])),
        max_size=30,
    ),
    st.booleans(),
)
def test_streamed_byte_fallback_equals_decode(ids, skip):
    whole = SENTENCE_PIECE.backend.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(SENTENCE_PIECE, ids, skip_special_tokens=skip)) == whole


def test_the_qwen3_vocabulary_streams_without_a_full_table(qwen3):
    assert isinstance(qwen3, Tokenizer)
    text = "  leading spaces, 👩‍👩‍👧‍👦 🏳️‍🌈, 한국어와 العربية\r\n<think>\nplan\n</think>"
    ids = qwen3.encode(text)
    assert "".join(stream(qwen3, ids)) == text
    assert len(qwen3._token_bytes) <= len(set(ids))


def test_tokenizers_loaded_twice_share_no_state(byte_level_folder):
    first, second = (AutoTokenizer.from_pretrained(byte_level_folder) for _ in range(2))
    first.add_tokens("<only first>")
    assert "<only first>" not in second
