"""Containers that tasks accept instead of a list of texts, and keywords of transformers."""

import multiprocessing
import pickle

import numpy as np
import pandas
import polars
import pyarrow
import pytest

from mlx_qwen3 import (
    Embedding,
    FillMask,
    InputError,
    QuestionAnswering,
    Reranker,
    RowError,
    TextClassification,
    ZeroShotClassification,
    pipeline,
)

TEXTS = ["hello world", "the quick brown fox", "it"]


@pytest.fixture(scope="module")
def classify(folders):
    return TextClassification(folders["sequence"])


@pytest.mark.parametrize(
    "container",
    [tuple, np.array, lambda t: np.array(t, dtype=object), pandas.Series, polars.Series, pyarrow.array, pandas.Index],
)
def test_containers_of_texts_give_the_results_of_a_list(classify, container):
    results = classify(container(TEXTS))
    assert isinstance(results, list)
    assert results == classify(TEXTS)


def test_results_can_be_assigned_to_a_column(classify):
    table = pandas.DataFrame({"id": [7, 8, 9], "text": TEXTS}, index=[3, 1, 2])
    table["label"] = classify(table["text"])
    assert list(table["label"]) == classify(TEXTS)


@pytest.mark.parametrize(
    "table",
    [
        pandas.DataFrame({"text": TEXTS, "id": [1, 2, 3]}),
        polars.DataFrame({"text": TEXTS, "id": [1, 2, 3]}),
        pyarrow.table({"text": TEXTS, "id": [1, 2, 3]}),
    ],
)
def test_a_table_is_refused_with_advice_to_pass_a_column(classify, table):
    with pytest.raises(InputError, match=r"columns text, id is not rows of text.*table\['text'\]"):
        classify(table)


def test_missing_values_are_reported_by_row(classify):
    with pytest.raises(RowError, match=r"row 1: text is missing \(nan\)"):
        classify(pandas.Series(["hello", float("nan"), "it"], dtype=object))
    with pytest.raises(InputError, match="A set has no order"):
        classify({"hello", "it"})


def test_an_iterator_is_streamed_and_a_row_error_can_be_pickled(classify):
    stream = classify(iter(TEXTS))
    assert next(stream) == classify(TEXTS)[0]
    with pytest.raises(RowError) as caught:
        classify(["hello", ""])
    error = pickle.loads(pickle.dumps(caught.value))
    assert (str(error), error.errors) == (str(caught.value), {1: "text is empty"})
    assert error.results == caught.value.results


def _fail(_):
    raise RowError("row 0: text is empty", {0: "text is empty"}, [None])


def test_a_process_pool_returns_row_errors():
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(RowError, match="row 0"):
        pool.map_async(_fail, [0]).get(60)


def test_an_empty_list_gives_a_matrix_without_rows(folders):
    assert Embedding(folders["causal"])([]).shape == (0, 32)
    assert Embedding(folders["causal"], dimensions=5)(pandas.Series([], dtype=object)).shape == (0, 5)


def test_labels_may_be_any_container(folders):
    task = ZeroShotClassification(folders["causal"])
    expected = task("hello", candidate_labels=["fox", "world"])
    assert task("hello", candidate_labels=np.array(["fox", "world"])) == expected
    assert task("hello", candidate_labels=pandas.Series(["fox", "world"])) == expected
    with pytest.raises(InputError, match="hypothesis_template must be a text"):
        task("hello", candidate_labels=["a"], hypothesis_template=None)


def test_a_list_of_one_masked_text_gives_the_words_of_that_text(folders):
    task = FillMask(folders["bert mask"])
    assert task(["the [MASK] fox"]) == task("the [MASK] fox")


def test_a_question_and_a_context_can_be_positional(folders):
    task = QuestionAnswering(folders["question"])
    assert task("is it", "the quick fox") == task(question="is it", context="the quick fox")
    assert task({"question": "is it", "context": "the fox"}) == task("is it", context="the fox")


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"},
        {"device": -1},
        {"dtype": "float32"},
        {"torch_dtype": "float32"},
        {"model_kwargs": {"dtype": "float32"}},
        {"truncation": True, "padding": True},
        {"trust_remote_code": False, "use_fast": True, "num_workers": 2, "revision": None},
    ],
)
def test_keywords_of_the_reference_do_not_change_the_results(folders, classify, options):
    task = pipeline("text-classification", str(folders["sequence"]), **options)
    assert task(TEXTS) == classify(TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"framework": "pt"}, "'framework' is not supported: models run in MLX"),
        ({"trust_remote_code": True}, "no code from a checkpoint"),
        ({"truncation": False}, "truncation=False is not supported"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"topk": 2}, r"unknown option 'topk'.*model_options.*Did you mean 'top_k'"),
        ({"dtype": "float32", "model_options": {"dtype": "float16"}}, "Give it once"),
    ],
)
def test_other_keywords_are_refused_by_name(folders, options, message):
    with pytest.raises(InputError, match=message):
        pipeline("text-classification", str(folders["sequence"]), **options)


def test_the_tokenizer_may_be_a_name_and_the_task_follows_from_the_head(folders):
    folder = str(folders["sequence"])
    task = pipeline(model=folder, tokenizer=folder)
    assert type(task) is TextClassification
    assert type(pipeline(model=str(folders["token"]))).__name__ == "TokenClassification"
    assert type(pipeline(model=str(folders["causal"]))).__name__ == "TextGeneration"
    with pytest.raises(InputError, match="neither task nor model"):
        pipeline()
    with pytest.raises(InputError, match=r"unknown task 'text-clasification'.*Did you mean 'text-classification'"):
        pipeline("text-clasification")


def test_a_reranker_has_no_default_model():
    with pytest.raises(InputError, match="Name one: model="):
        pipeline("reranking")


def test_rank_sorts_documents_and_activation_none_returns_logits(folders):
    task = Reranker(folders["score"])
    assert task.rank("fox", TEXTS, top_k=2) == task("fox", np.array(TEXTS), top_k=2)
    scores, logits = task([("fox", text) for text in TEXTS]), task([("fox", t) for t in TEXTS], activation="none")
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(logits))), atol=1e-6)


def test_options_are_shown_by_help_and_repr(classify):
    assert "top_k=''" in repr(classify)
    assert "function_to_apply (default None): " in (TextClassification.__doc__ or "")
    assert "batch_tokens (default None): " in (TextClassification.__doc__ or "")
