"""Text classification: structure of results, functions, pairs, streams, and invalid rows."""

import itertools
import logging
import math

import numpy as np
import pytest

from mlx_qwen3 import (
    InputError,
    Qwen3ForSequenceClassification,
    RowError,
    TextClassification,
    pipeline,
)

TEXTS = ["hello world", "the quick brown fox was quick", "it", "is the weather fine there, isn't it?", "a b c"]


@pytest.fixture(scope="module")
def classify(folders):
    return TextClassification(folders["sequence"])


def test_results_have_the_structure_of_transformers(classify):
    single = classify("hello")
    assert list(single[0]) == ["label", "score"]
    assert single[0]["label"] in ("bad", "good", "odd")
    assert [list(row) for row in classify(["hello", "it"])] == [["label", "score"]] * 2
    best = classify("hello", top_k=2)
    assert len(best) == 2
    assert best[0]["score"] >= best[1]["score"]
    every = classify(["hello"], top_k=None)
    assert len(every[0]) == 3
    assert sum(row["score"] for row in every[0]) == pytest.approx(1, abs=1e-5)


def test_scores_are_computed_from_the_logits_of_the_model(classify):
    logits = classify.model([classify.tokenizer.encode(TEXTS[1])]).logits[0].tolist()
    raw = {row["label"]: row["score"] for row in classify(TEXTS[1], top_k=None, function_to_apply="none")}
    assert raw == pytest.approx(dict(zip(["bad", "good", "odd"], logits, strict=True)), abs=1e-5)
    sigmoids = {row["label"]: row["score"] for row in classify(TEXTS[1], top_k=None, function_to_apply="sigmoid")}
    assert sigmoids == pytest.approx({name: 1 / (1 + math.exp(-x)) for name, x in raw.items()}, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"num_labels": 1}, "sigmoid"),
        ({}, "softmax"),
    ],
)
def test_the_problem_type_selects_the_function(folders, config, expected):
    folder = folders["score"] if "num_labels" in config else folders["sequence"]
    model = Qwen3ForSequenceClassification.from_pretrained(folder, **config)
    classify = TextClassification(model, folders["sequence"])
    assert classify("hello", top_k=None) == classify("hello", top_k=None, function_to_apply=expected)


def test_batches_single_texts_and_both_padding_sides_agree(classify):
    together = classify(TEXTS, top_k=None)
    left = classify(TEXTS, top_k=None, padding_side="left", batch_size=2)
    for text, row, other in zip(TEXTS, together, left, strict=True):
        alone = classify(text, top_k=None)
        for one, two, three in zip(alone, row, other, strict=True):
            assert one["label"] == two["label"] == three["label"]
            assert one["score"] == pytest.approx(two["score"], abs=1e-4)
            assert one["score"] == pytest.approx(three["score"], abs=1e-4)


def test_pairs_are_accepted_in_every_format(folders):
    classify = TextClassification(folders["bert sequence"])
    expected = classify({"text": "hello world", "text_pair": "the fox"})
    assert classify([("hello world", "the fox"), "it"])[0] == pytest.approx(expected)
    assert classify("hello world", text_pair="the fox") == pytest.approx(expected)
    assert classify(["hello world"], text_pair=["the fox"]) == [pytest.approx(expected)]
    assert classify("hello world")[0]["score"] != pytest.approx(expected["score"], abs=1e-6)
    ids = classify.tokenizer("hello world", "the fox", return_tensors="mlx")
    assert set(ids["token_type_ids"][0].tolist()) == {0, 1}
    logits = np.array(classify.model(**ids).logits[0])
    scores = np.exp(logits) / np.exp(logits).sum()
    assert expected["score"] == pytest.approx(scores.max(), abs=1e-5)


def test_texts_of_different_lengths_agree_in_an_encoder(folders):
    classify = TextClassification(folders["bert sequence"])
    texts = ["hello", "the quick brown fox is it", "un world is the fox"]
    for text, row in zip(texts, classify(texts), strict=True):
        assert classify(text)[0]["score"] == pytest.approx(row["score"], abs=1e-4)


def test_a_stream_is_read_in_windows_and_answered_in_order(classify):
    taken = itertools.count()

    def endless():
        while True:
            yield TEXTS[next(taken) % 5]

    results = classify(endless())
    first = [next(results) for _ in range(7)]
    assert next(taken) <= 1025
    expected = classify(TEXTS)
    for index, row in enumerate(first):
        assert row["label"] == expected[index % 5]["label"]
        assert row["score"] == pytest.approx(expected[index % 5]["score"], abs=1e-5)


def test_bad_rows_are_reported_with_the_results_of_the_others(classify):
    rows = ["hello", "", "it", None, {"text": "x", "txt": "y"}, "bad \ud800"]
    with pytest.raises(RowError, match=r"row 1: text is empty \(and 3 more rows\)") as caught:
        classify(rows)
    assert list(caught.value.errors) == [1, 3, 4, 5]
    assert "missing (None)" in caught.value.errors[3]
    assert caught.value.results[2]["label"] == classify("it")[0]["label"]
    assert caught.value.results[1] is None
    recorded = classify(rows, on_error="record")
    assert recorded[1] == {"error": "text is empty", "row": 1}
    assert recorded[0]["label"] == classify("hello")[0]["label"]


def test_a_stream_yields_the_results_before_a_bad_row(classify):
    results = classify(iter(["hello", "", "it"]))
    assert "label" in next(results)
    with pytest.raises(RowError, match="row 1: text is empty"):
        next(results)
    assert [("error" in row) for row in classify(iter(["hello", "", "it"]), on_error="record")] == [False, True, False]


def test_long_texts_are_truncated_with_one_warning(folders, caplog):
    classify = TextClassification(folders["sequence"], max_length=6)
    with caplog.at_level(logging.WARNING):
        rows = classify(["hello " * 50, "hello " * 60, "it"])
        classify("hello " * 70)
    assert rows[0] == pytest.approx(rows[1])
    assert [r.message for r in caplog.records] == ["texts of more than 6 tokens are cut"]


def test_a_progress_bar_is_shown_on_request(classify, capsys):
    classify(TEXTS, progress=True)
    assert "/5 [" in capsys.readouterr().err
    classify(TEXTS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c("hello", top_k=0), "top_k is 0"),
        (lambda c: c("hello", function_to_apply="tanh"), "function_to_apply is 'tanh', expected one of 'sigmoid'"),
        (lambda c: c("hello", topk=1), "unknown option 'topk'; expected one of"),
        (lambda c: c("hello", padding_side="up"), "padding_side is 'up'"),
        (lambda c: c("hello", batch_size=0), "batch_size is 0"),
        (lambda c: c("hello", on_error="skip"), "on_error is 'skip'"),
        (lambda c: c(["a", "b"], text_pair=["c"]), "text has 2 rows and text_pair has 1"),
        (lambda c: c("a", text_pair=["c"]), "text_pair is a list, so text must be a list"),
        (lambda c: c(""), "text is empty"),
        (lambda c: c(7), "text must be a string, not int"),
        (lambda c: c([("a", "b", "c")]), "row 0: a row has 3 parts"),
    ],
)
def test_invalid_calls_are_reported(classify, call, message):
    with pytest.raises(InputError, match=message):
        call(classify)


def test_the_pipeline_refuses_a_model_without_the_head(folders, tmp_path):
    with pytest.raises(InputError, match="is Qwen3ForCausalLM: it has no sequence classification head"):
        pipeline("text-classification", folders["causal"])
    model = Qwen3ForSequenceClassification.from_pretrained(folders["causal"])
    assert model.fresh_weights == {"score.weight"}
    folder = tmp_path / "headless"
    import json
    import shutil

    shutil.copytree(folders["causal"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3ForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"no trained sequence classification head \(score.weight is missing\)"):
        pipeline("sentiment-analysis", folder)


def test_unknown_tasks_and_missing_tokenizers_are_reported(folders):
    with pytest.raises(InputError, match="unknown task 'summarization'; expected one of text-classification"):
        pipeline("summarization", folders["causal"])
    model = Qwen3ForSequenceClassification.from_pretrained(folders["sequence"])
    with pytest.raises(InputError, match="Pass tokenizer="):
        pipeline("text-classification", model)
    with pytest.raises(InputError, match="model_options"):
        pipeline("text-classification", model, folders["sequence"], model_options={"dtype": "float32"})
