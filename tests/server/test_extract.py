"""Extraction by a schema and answers with a response_format, from a model with random weights."""

import json

from tests.support.running_server import Running, events

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


def check(value):
    assert set(value) == {"name", "old"}
    assert value["name"] in ("Ann", "Bob")
    assert isinstance(value["old"], bool)


def test_one_value_of_the_schema_is_extracted_per_text(server: Running):
    answer = server.post("/v1/extract", {"input": ["Ann is 7.", "Bob"], "schema": SCHEMA})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [result["index"] for result in results] == [0, 1]
    for result in results:
        check(result["data"])
        assert result["finish_reason"] == "stop"


def test_a_value_that_is_cut_off_is_null(server: Running):
    [result] = server.post("/v1/extract", {"input": "Ann", "schema": SCHEMA, "max_tokens": 2}).json()["results"]
    assert result["data"] is None
    assert result["finish_reason"] == "length"


def test_invalid_texts_and_schemas_are_400(server: Running):
    for body, field in (
        ({"input": "", "schema": SCHEMA}, "input"),
        ({"input": [], "schema": SCHEMA}, "input"),
        ({"input": "x"}, "schema"),
        ({"input": "x", "schema": 5}, "schema"),
        ({"input": "x", "schema": {"type": "banana"}}, "schema"),
    ):
        answer = server.post("/v1/extract", body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert field in f"{error['param']} {error['message']}"


def test_a_streamed_constrained_answer_is_valid_json(server: Running):
    body = {
        "messages": [{"role": "user", "content": "Ann?"}],
        "temperature": 1.5,
        "seed": 3,
        "n": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "stream": True,
        "logit_bias": {"257": -100},
    }
    texts = ["", ""]
    for event in events(server.post("/v1/chat/completions", body)):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    for text in texts:
        check(json.loads(text))
