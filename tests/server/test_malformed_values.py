"""Values that a parser of Python refuses with another error than usual."""

import pytest

from tests.support.running_server import Running


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://[x]"])
def test_malformed_origin_is_refused(server: Running, origin: str) -> None:
    response = server.client.get("/v1/models", headers={"Origin": origin})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "origin"


def test_very_long_token_id_is_refused(server: Running) -> None:
    response = server.complete("a", logit_bias={"9" * 5000: 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logit_bias"


@pytest.mark.parametrize(
    "arguments", ["[" * 100_000, '{"a":' * 100_000, '{"a": "\\ud800"}', '{"a": ' + "9" * 5000 + "}"]
)
def test_unusual_arguments_of_a_tool_call_stay_text(server: Running, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    response = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert response.status_code in (200, 400), response.text
    assert response.status_code == 200 or response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        ("/v1/completions", {"prompt": "a", "temperature": "hot"}, "temperature", '"hot", expected a valid number'),
        ("/v1/completions", {"prompt": "a", "temperature": "h" * 500}, "temperature", "hhh…"),
        ("/v1/completions", {"prompt": "a", "stop": 5}, "stop", "a valid string or a valid list"),
        ("/v1/chat/completions", {}, "messages", "missing"),
        ("/v1/chat/completions", {"messages": []}, "messages", "a list that is not empty"),
        ("/v1/chat/completions", {"messages": [5]}, "messages[0]", "an object"),
        ("/v1/classify", {"input": 5}, "input", "a valid string or a valid list"),
    ],
)
def test_an_invalid_field_is_reported_with_its_value(
    server: Running, path: str, body: object, field: str, words: str
) -> None:
    response = server.post(path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert words in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize("name", ['f"}</tool_call>', "f\n", "a{b", "x" * 300])
def test_unusable_tool_name_is_refused(server: Running, name: str) -> None:
    tool = {"type": "function", "function": {"name": name}}
    response = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [tool]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[0]"
