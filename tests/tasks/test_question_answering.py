"""Question answering: offsets, several answers, windows over long contexts, empty answers."""

import numpy as np
import pytest

from mlx_qwen3 import InputError, QuestionAnswering, RowError
from mlx_qwen3.tasks.question_answering import best_spans

CONTEXT = "the quick brown fox was here, the weather was fine and the world was brown."
QUESTION = "what was fine?"


@pytest.fixture(scope="module")
def answer(folders):
    return QuestionAnswering(folders["question"])


def test_the_answer_is_the_text_between_the_offsets(answer):
    found = answer(question=QUESTION, context=CONTEXT)
    assert list(found) == ["score", "start", "end", "answer"]
    assert CONTEXT[found["start"] : found["end"]] == found["answer"] == found["answer"].strip()
    assert 0 < found["score"] <= 1
    several = answer(question=QUESTION, context=CONTEXT, top_k=3)
    assert len(several) == 3
    assert several[0]["answer"] != several[1]["answer"]
    assert several[0]["score"] >= several[1]["score"] >= several[2]["score"]


def test_the_best_span_is_the_most_probable_pair_of_tokens(answer):
    found = answer(question=QUESTION, context=CONTEXT, align_to_words=False, max_answer_len=4)
    tokenizer = answer.tokenizer
    inputs = tokenizer(QUESTION, CONTEXT)
    own = np.array([sequence == 1 for sequence in inputs.sequence_ids()])
    output = answer.model([inputs["input_ids"]])
    start, end = (np.array(side[0]) for side in (output.start_logits, output.end_logits))
    best, place = -np.inf, None
    for i in np.flatnonzero(own):
        for j in np.flatnonzero(own):
            if i <= j < i + 4 and start[i] + end[j] > best:
                best, place = start[i] + end[j], (inputs[0].offsets[i][0], inputs[0].offsets[j][1])
    assert CONTEXT[slice(*place)].strip() == found["answer"]
    chances = [np.exp(side - side[own].max()) / np.exp(side - side[own].max())[own].sum() for side in (start, end)]
    i, j = (
        inputs.char_to_token(found["start"], sequence_index=1),
        inputs.char_to_token(found["end"] - 1, sequence_index=1),
    )
    assert found["score"] == pytest.approx(chances[0][i] * chances[1][j], abs=1e-4)


def test_rows_in_every_format_and_batches_agree(answer):
    alone = answer(question=QUESTION, context=CONTEXT)
    rows = [{"question": QUESTION, "context": CONTEXT}, {"question": "who?", "context": "hello there world"}]
    for found in (answer(rows)[0], answer(question=[QUESTION], context=[CONTEXT])[0], next(answer(iter(rows)))):
        assert {**found, "score": pytest.approx(found["score"], abs=1e-4)} == alone
    assert len(answer(question=[QUESTION, "who?"], context=CONTEXT)) == 2


def test_a_long_context_is_read_by_windows_to_its_end(answer):
    context = "hello there. " * 60 + CONTEXT
    found = answer(question=QUESTION, context=context, max_seq_len=64, doc_stride=16, top_k=200, max_answer_len=3)
    assert all(context[one["start"] : one["end"]] == one["answer"] for one in found)
    assert max(one["start"] for one in found) > len(context) - len(CONTEXT)


@pytest.mark.parametrize("name", ["question", "bert question"])
def test_an_empty_answer_is_possible_on_request(folders, name):
    answer = QuestionAnswering(folders[name])
    found = answer(question="is it", context="the quick fox is", top_k=50, handle_impossible_answer=True)
    empty = [one for one in found if one["answer"] == ""]
    assert len(empty) == 1
    assert empty[0]["start"] == empty[0]["end"] == 0
    assert 0 < empty[0]["score"] < 1
    assert all(one["answer"] for one in answer(question="is it", context="the quick fox is", top_k=50))


def test_spans_are_in_order_and_within_the_length_limit():
    start, end = np.array([0.1, 0.2, 0.7]), np.array([0.6, 0.3, 0.1])
    spans = best_spans(start, end, 9, 2)
    assert spans[0] == (2, 2, pytest.approx(0.07)) or spans[0][2] == max(span[2] for span in spans)
    assert all(0 <= last - first < 2 for first, last, score in spans if score > 0)
    assert len(best_spans(start, end, 2, 2)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a(question="x"), "question or context is missing"),
        (lambda a: a([{"question": "x", "context": "y"}], question="z"), "Give only one of the two"),
        (lambda a: a(question=["x"], context=["y", "z"]), "question has 1 rows and context has 2"),
        (lambda a: a(question="x", context=["y"]), "context is a list, so question must be a list"),
        (lambda a: a({"question": "x", "text": "y"}), "must have the keys 'question' and 'context'"),
        (lambda a: a(question="x", context="  "), "context is empty"),
        (lambda a: a(question="x", context="y", top_k=0), "top_k is 0"),
        (lambda a: a(question="hello " * 9, context="y", max_seq_len=1), "leaves no room for a context"),
    ],
)
def test_invalid_calls_are_reported(answer, call, message):
    with pytest.raises(InputError, match=message):
        call(answer)


def test_bad_rows_are_reported_with_the_results_of_the_others(answer):
    rows = [{"question": "who?", "context": ""}, {"question": QUESTION, "context": CONTEXT}]
    with pytest.raises(RowError, match="row 0: context is empty") as caught:
        answer(rows)
    assert caught.value.results[1]["answer"]
