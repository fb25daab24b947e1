"""Malformed rows of spans, CoNLL files, questions and conversations are reported with file and line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import AutoTokenizer, InputError, MlxQwen3Error, train
from mlx_qwen3.tokenizer import Tokenizer
from mlx_qwen3.training.datasets import read_language_examples, read_question_examples, read_token_rows
from mlx_qwen3.training.files import read_conll
from tests.support.tiny_checkpoints import write_tokenizer

TOKENS = {"tokens": ["Mary", "ran"], "labels": ["B-PER", "O"]}
QUESTION = {"question": "who lives there?", "context": "😀 John lives there", "answers": [{"text": "John"}]}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def span(start: Any, end: Any, label: Any) -> dict[str, Any]:
    return {"text": "foo bar", "spans": [{"start": start, "end": end, "label": label}]}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (span(0, 9, "X"), "outside its text of 7 characters"),
        (span(2, 1, "X"), "outside"),
        (span(0.0, 1, "X"), "invalid span"),
        (span(0, 1, ""), "invalid span"),
        (span(0, 1, "B-X"), "tag 'B-X'"),
        ({"text": "foo bar", "spans": [[0, 4, "X"], [3, 7, "Y"]]}, "overlapping"),
        ({"text": "foo"}, "no list of 'spans'"),
        ({"tokens": [], "labels": []}, "no tokens"),
        ({"tokens": ["a", "b"], "labels": ["O"]}, "one label per token"),
        ({"tokens": "ab", "labels": ["O", "O"]}, "one label per token"),
        ({"tokens": ["a", None], "labels": ["O", "O"]}, "token None"),
        ({"tokens": ["a", "b"], "labels": ["O", 3]}, "label 3"),
    ],
)
def test_malformed_spans_and_tokens_are_reported(tmp_path: Path, row: Any, named: str):
    file = write_rows(tmp_path / "rows.jsonl", TOKENS, row)
    with pytest.raises(InputError, match=rf"rows\.jsonl: line 2 .*{named}"):
        read_token_rows(file, "text", "label")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_conll_files_may_have_any_line_ends_and_spaces_in_tokens(tmp_path: Path, newline: str):
    file = tmp_path / "rows.conll"
    file.write_bytes("New\u00a0York B-LOC\nis O\n\nMary\tB-PER\n".replace("\n", newline).encode())
    found = [(row.fields["tokens"], row.fields["labels"]) for row in read_conll(file)]
    assert found == [(["New\u00a0York", "is"], ["B-LOC", "O"]), (["Mary"], ["B-PER"])]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"question": ""}, "question is empty"),
        ({"answers": None}, "no 'answers'"),
        ({"answers": 3}, "'answers' is 3"),
        ({"answers": [3]}, "without text"),
        ({"answers": [{"text": "John", "answer_start": 3}]}, "not in the context at 3"),
        ({"answers": [{"text": "John", "answer_start": 2}, {"text": "Mary"}]}, "'Mary' is not in the context"),
        ({"answers": {"text": ["John", "lives"], "answer_start": [2]}}, "one answer_start per answer"),
        ({"is_impossible": "maybe"}, "is_impossible"),
        ({"question": "who " * 600}, "no room for its context"),
    ],
)
def test_malformed_questions_are_reported(tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, Any], named: str):
    file = write_rows(tmp_path / "rows.jsonl", QUESTION, {**QUESTION, **changes})
    with pytest.raises(InputError, match=rf"rows\.jsonl: line 2.*{named}"):
        read_question_examples(file, tokenizer, 384)


def test_answers_are_counted_in_characters_and_may_be_missing(tmp_path: Path, tokenizer: Tokenizer):
    file = tmp_path / "rows.csv"
    file.write_text("question,context,answer,answer_start\nwho?,😀 John and John,John,11\n")
    (example,) = read_question_examples(file, tokenizer, 384)
    assert tokenizer.decode(example.ids[example.target[0] : example.target[1] + 1]).strip() == "John"
    assert example.target[0] > len(tokenizer("who?😀 John and")["input_ids"]) - 2
    rows = [{**QUESTION, "answers": []}, {**QUESTION, "is_impossible": True}]
    none = read_question_examples(write_rows(tmp_path / "none.jsonl", *rows), tokenizer, 384)
    assert [example.target for example in none] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("paragraph", ["text", {"context": "a"}, {"context": "a", "qas": ["who?"]}])
def test_malformed_paragraphs_of_squad_files_are_reported(tmp_path: Path, tokenizer: Tokenizer, paragraph: Any):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    with pytest.raises(InputError, match=r"rows\.json: entry 0 of 'data'"):
        read_question_examples(file, tokenizer, 384)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": ["a", "b"]}, "message 0"),
        ({"messages": [{"role": "user"}, CHAT["messages"][1]]}, "no content"),
        ({**CHAT, "tools": "search"}, "tools"),
        ({"prompt": "a", "completion": ""}, "empty"),
        ({"prompt": "a"}, "'prompt'"),
        ({"text": None}, "missing"),
    ],
)
def test_malformed_conversations_are_reported(tmp_path: Path, tokenizer: Tokenizer, row: Any, named: str):
    with pytest.raises(MlxQwen3Error, match=rf"rows\.jsonl: line 2.*{named}"):
        read_language_examples(write_rows(tmp_path / "rows.jsonl", CHAT, row), tokenizer, 384, False)


def test_rows_without_a_token_to_train_on_are_counted(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
):
    file = write_rows(tmp_path / "rows.jsonl", CHAT, {"prompt": "who " * 99, "completion": "x"})
    with caplog.at_level(logging.WARNING):
        assert len(read_language_examples(file, tokenizer, 64, True)) == 1
    assert "1 of 2 texts have more than 64 tokens" in caplog.text
    assert "1 of 2 rows have no token to train on" in caplog.text


def test_the_key_of_plain_texts_can_be_named(tmp_path: Path, tokenizer: Tokenizer):
    file = write_rows(tmp_path / "rows.jsonl", {"body": "hello"})
    assert len(read_language_examples(file, tokenizer, 64, False, "body")) == 1


@pytest.mark.parametrize("option", ["regression", "mask_prompt"])
def test_options_of_another_task_are_refused(tmp_path: Path, option: str):
    options: dict[str, Any] = {option: True}
    with pytest.raises(InputError, match=f"{option} is not supported for token-classification"):
        train("token-classification", tmp_path / "rows.conll", tmp_path / "out", **options)
