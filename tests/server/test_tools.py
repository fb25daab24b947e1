"""Tool calls: forced calls are valid, streamed pieces add up, invalid tools and choices are refused."""

import json

import pytest

from tests.support.running_server import Running, events

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"room": {"enum": ["hall", "attic"]}},
                "required": ["room"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("lamp", "heater")
]
BODY = {"messages": [{"role": "user", "content": "Light!"}], "tools": TOOLS, "temperature": 0}
NAMED = {"type": "function", "function": {"name": "heater"}}


@pytest.fixture(scope="module")
def bundled():
    running = Running()
    yield running
    running.stop()


@pytest.mark.parametrize(("choice", "names"), [("required", ["lamp", "heater"]), (NAMED, ["heater"])], ids=str)
def test_a_forced_call_is_valid_whole_and_streamed(bundled, choice, names):
    answer = bundled.post("/v1/chat/completions", {**BODY, "tool_choice": choice})
    assert answer.status_code == 200, answer.text
    found = answer.json()["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    [call] = found["message"]["tool_calls"]
    assert call["function"]["name"] in names
    assert json.loads(call["function"]["arguments"])["room"] in ("hall", "attic")
    streamed = events(bundled.post("/v1/chat/completions", {**BODY, "tool_choice": choice, "stream": True}))
    pieces = [piece for e in streamed for c in e["choices"] for piece in c["delta"].get("tool_calls") or []]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]


def test_without_parallel_calls_a_required_call_is_the_only_one(bundled):
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    answer = bundled.post("/v1/chat/completions", {**BODY, **fields})
    assert answer.status_code == 200, answer.text
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] in {"lamp", "heater"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "sometimes"},
        {"tool_choice": {"type": "function", "function": {"name": "nobody"}}},
        {"tool_choice": {"type": "function", "function": 5}},
        {"tool_choice": "required", "tools": None},
        {"tools": [{"type": "function", "function": 5}]},
        {"tools": [{}]},
    ],
    ids=str,
)
def test_invalid_tools_and_choices_are_400(bundled, fields):
    answer = bundled.post("/v1/chat/completions", {**BODY, **fields})
    assert answer.status_code == 400, answer.text
    assert "tool" in answer.json()["error"]["message"]
