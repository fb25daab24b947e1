"""Tools of a chat session: valid calls, a bounded number of runs, and reported failures."""

import json
from typing import Literal

import pytest

import mlx_qwen3
from mlx_qwen3.chat.tools import CallParser, Tool, ToolCall, make_tools, run_tool
from mlx_qwen3.cli.constraint_flags import load_functions
from mlx_qwen3.errors import ConstraintError, InputError


@pytest.fixture(scope="module")
def bundled():
    return mlx_qwen3.load()


def lamp(room: Literal["kitchen", "hall"], on: bool) -> str:
    """Switch a lamp.

    Args:
        room: where it is
        on: on or off
    """
    return f"{room} {on}"


def session(bundled, **options):
    options = {"thinking": False, "max_tokens": 120, "seed": 0, "tool_choice": "required", **options}
    return mlx_qwen3.ChatSession(*bundled, **options)


def test_a_required_call_is_run_and_answered(bundled):
    chat = session(bundled, tools=[lamp], max_tool_rounds=1)
    parts = list(chat.send("Light, please."))
    (call,) = [part for part in parts if part.kind == "tool_call"]
    assert call.arguments is not None
    (result,) = [part for part in parts if part.kind == "tool_result"]
    assert call.name == result.name == "lamp"
    assert set(call.arguments) == {"room", "on"}
    assert json.loads(call.text) == call.arguments
    assert result.text == f"{call.arguments['room']} {call.arguments['on']}"
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert chat.undo() == "Light, please."
    assert not chat.messages


def test_a_call_that_is_not_confirmed_is_not_run(bundled):
    requests = []
    chat = session(bundled, tools=[lamp], max_tool_rounds=1, confirm=lambda *call: requests.append(call))
    results = [part.text for part in chat.send("Light, please.") if part.kind == "tool_result"]
    assert len(requests) == 1
    assert "not allow" in results[0]


def test_changes_between_a_call_and_its_answer_are_rejected(bundled):
    chat = session(bundled, tools=[lamp], max_tool_rounds=1)
    for part in chat.send("Light, please."):
        if part.kind == "tool_result":
            with pytest.raises(InputError, match="an answer is being generated"):
                chat.clear()
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_constraint_applies_to_the_answer_of_a_session_with_tools(bundled):
    chat = session(bundled, tools=[lamp], tool_choice="none", choices=["yes", "no"])
    assert "".join(part.text for part in chat.send("Light?")) in ("yes", "no")


def test_invalid_tools_are_rejected(bundled):
    bad = {"name": "find", "parameters": {"properties": {"tags": {"type": "array", "uniqueItems": True}}}}
    with pytest.raises(ConstraintError, match=r"find.*uniqueItems"):
        session(bundled, tools=[bad])
    with pytest.raises(InputError, match="tool_choice is 'other'"):
        session(bundled, tools=[lamp], tool_choice="other")

    def untyped(x):
        """Do something.

        Args:
            x: a thing
        """

    with pytest.raises(InputError, match="no type hint"):
        session(bundled, tools=[untyped])
    with pytest.raises(InputError, match="two tools"):
        make_tools([lamp, lamp])


def test_an_error_in_a_function_is_returned_as_its_result():
    def fail():
        raise ValueError("no\nlight")

    assert run_tool(Tool("fail", {}, {}, fail), {}) == "error: fail failed with ValueError: no light"
    assert "not JSON" in run_tool(Tool("odd", {}, {}, lambda: {1, 2}), {})
    assert run_tool(Tool("good", {}, {}, lambda: {"a": 1}), {}) == '{"a": 1}'


def test_calls_are_separated_from_text_however_it_is_split():
    body = '{"name": "lamp", "arguments": {"on": true}}'
    text = f"Well.\n<tool_call>\n{body}\n</tool_call>\n<tool_call>\n{body}\n</tool_call>"
    for size in (1, 3, 7, len(text)):
        parser = CallParser()
        found = [part for i in range(0, len(text), size) for part in parser.feed(text[i : i + size])]
        found += parser.feed("", final=True)
        calls = [part for part in found if isinstance(part, ToolCall)]
        assert calls == [ToolCall("lamp", {"on": True})] * 2
        assert "".join(part for part in found if isinstance(part, str)) == "Well."


def test_a_tag_spelled_with_other_tokens_is_text():
    body = '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'
    for size in (1, 5, len(body)):
        parser = CallParser()
        parser.opened = 0
        found = [part for i in range(0, len(body), size) for part in parser.feed(body[i : i + size])]
        assert "".join(map(str, [*found, *parser.feed("", final=True)])) == body


def test_a_call_that_is_spelled_in_the_answer_is_not_run(bundled):
    text = '<tool_call> {"name": "lamp", "arguments": {"room": "hall", "on": true}} </tool_call>'
    chat = session(bundled, tools=[lamp], tool_choice="none", choices=[text])
    parts = list(chat.send("Light?"))
    assert {part.kind for part in parts} == {"answer"}
    assert "".join(part.text for part in parts) == text


def test_functions_that_exit_or_return_invalid_text_are_reported():
    def leave():
        raise SystemExit(3)

    assert run_tool(Tool("leave", {}, {}, leave), {}) == "error: leave failed with SystemExit: 3"
    assert run_tool(Tool("odd", {}, {}, lambda: "a\ud800"), {}) == "a?"
    assert run_tool(Tool("odd", {}, {}, lambda: ["a\ud800"]), {}) == '["a?"]'
    assert "not JSON" in run_tool(Tool("odd", {}, {}, lambda: float("nan")), {})
    assert "missing" in run_tool(Tool("lamp", {}, {}, lamp), {"room": "hall"})

    async def later(on: bool):
        """Wait.

        Args:
            on: on or off
        """

    with pytest.raises(InputError, match="later is async"):
        make_tools([later])


def test_several_calls_of_one_answer_are_run_in_order(bundled):
    ran = []

    def note(n: Literal[1, 2, 3]) -> str:
        """Note a number.

        Args:
            n: the number
        """
        ran.append(n)
        return "noted"

    bias = {bundled[1].encode("\n<tool_call>", add_special_tokens=False)[0]: 30.0}  # continues with another call
    chat = session(bundled, tools=[note], max_tool_rounds=3, logit_bias=bias, max_tokens=300)
    parts = list(chat.send("Note."))
    calls = [(part.arguments or {})["n"] for part in parts if part.kind == "tool_call"]
    assert ran == calls[:3]
    assert len(ran) == 3
    assert max(len(message.get("tool_calls", ())) for message in chat.messages) > 1


def test_the_public_functions_of_a_file_are_loaded(tmp_path):
    path = tmp_path / "tools.py"
    path.write_text('from os.path import join\ndef _hidden(): pass\ndef shown(a: int):\n    "x"\n')
    assert [function.__name__ for function in load_functions(str(path))] == ["shown"]
    path.write_text("import sys\nsys.exit(3)")
    with pytest.raises(InputError, match="cannot be run: SystemExit: 3"):
        load_functions(str(path))
    path.write_text("raise ValueError('x.')")
    with pytest.raises(InputError, match=r"cannot be run: ValueError: x\. Correct"):
        load_functions(str(path))
    with pytest.raises(InputError, match="no file"):
        load_functions(str(tmp_path / "missing.py"))
