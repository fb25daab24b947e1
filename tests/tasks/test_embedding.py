"""Vectors: pooling, length, instruction, dimensions; and the hidden states of every token."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import Embedding, FeatureExtraction, InputError, RowError

TEXTS = ["hello world", "the quick brown fox was quick", "it"]


@pytest.fixture(scope="module")
def embed(folders):
    return Embedding(folders["causal"])


def states(task, text):
    return np.array(task._runner.base_model([task.tokenizer.encode(text)]).last_hidden_state)[0]


def test_a_vector_is_the_normalized_state_of_the_last_token(embed):
    vector = embed("hello world")
    last = states(embed, "hello world")[-1]
    np.testing.assert_allclose(vector, last / np.linalg.norm(last), atol=1e-5)
    np.testing.assert_allclose(embed("hello world", normalize=False), last, atol=1e-4)
    mean = states(embed, "hello world").mean(axis=0)
    np.testing.assert_allclose(embed("hello world", pooling="mean", normalize=False), mean, atol=1e-4)


@pytest.mark.parametrize(("name", "side"), [("causal", "left"), ("causal", "right"), ("bert mask", "right")])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_list_gives_the_same_matrix_for_either_padding_side(folders, name, side, pooling):
    embed = Embedding(folders[name], pooling=pooling)
    matrix = embed(TEXTS, padding_side=side)
    assert matrix.shape == (3, 32)
    for text, row in zip(TEXTS, matrix, strict=True):
        np.testing.assert_allclose(row, embed(text), atol=1e-4)
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_an_instruction_is_prepended_to_queries(embed):
    query = embed("hello", instruction="find greetings")
    np.testing.assert_allclose(query, embed("Instruct: find greetings\nQuery:hello"), atol=1e-5)
    assert not np.allclose(query, embed("hello"), atol=1e-3)
    # a shared instruction is computed once and does not change the vectors
    both = embed(["hello", "it was fine"], instruction="find greetings and more of that kind")
    for text, row in zip(["hello", "it was fine"], both, strict=True):
        alone = embed(text, instruction="find greetings and more of that kind")
        np.testing.assert_allclose(row, alone, atol=1e-4)


def test_truncated_vectors_are_normalized_again(embed):
    short, whole = embed("hello", dimensions=8), embed("hello")
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-5)
    with pytest.raises(InputError, match="dimensions is 33, the model has 32"):
        embed("hello", dimensions=33)
    with pytest.raises(InputError, match="pooling is 'first'"):
        embed("hello", pooling="first")


def test_streams_and_bad_rows_are_handled(embed):
    assert [row.shape for row in embed(iter(TEXTS))] == [(32,)] * 3
    mixed = embed(["hello", ""], on_error="record")
    assert mixed[0].shape == (32,)
    assert mixed[1]["error"] == "text is empty"
    with pytest.raises(RowError, match="row 1"):
        embed(["hello", ""])
    assert list(embed([])) == []


@pytest.mark.parametrize("name", ["causal", "sequence", "bert token"])
def test_features_are_the_hidden_states_of_all_tokens(folders, name):
    extract = FeatureExtraction(folders[name])
    expected = states(extract, "the quick fox")
    found = extract(["the quick fox", "hello world is the quick brown fox"])[0]
    np.testing.assert_allclose(np.array(found)[0], expected, atol=1e-4)
    array = extract("the quick fox", return_tensors=True)
    assert isinstance(array, mx.array)
    assert array.shape == (1, *expected.shape)
