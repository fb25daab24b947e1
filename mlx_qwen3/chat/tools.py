"""Functions that a model may call: their schemas, the grammar of a call, and running one.

A call is written as Qwen3's chat template writes it, with the arguments as JSON that the function's schema allows:

    <tool_call>
    {"name": "lamp", "arguments": {"room": "hall", "on": true}}
    </tool_call>
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConstraintError, InputError
from ..generation.after_thinking import TokenMatcher
from ..generation.checks import check_list
from ..generation.constraints import Constraint, check_start, json_grammar
from ..generation.token_masks import Mask, forbid, only, permit
from ..generation.tokenizer_tables import token_tables
from ..tokenizer.tools import function_schema

OPEN, CLOSE = "<tool_call>", "</tool_call>"

MODES = ("auto", "none", "required")

SPACED = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
}
"""How arguments are written: as the chat template writes those of earlier calls, so that they stay in the cache."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    name: of the function. schema: as the chat template takes it. parameters: the schema of the arguments.
    function: what runs; None where calls are only reported.
    """

    name: str
    schema: Mapping[str, Any]
    parameters: Any
    function: Callable[..., Any] | None = None


@dataclass(frozen=True)
class ToolCall:
    """A call that a model has written."""

    name: str
    arguments: dict[str, Any]


def make_tools(tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None) -> list[Tool]:
    """Return the tools that a caller gave as JSON schemas of functions or as Python functions.

    Raises:
        InputError: something else, a function without type hints or a docstring, two tools of one name.
    """
    made: list[Tool] = []
    if tools is not None:
        check_list("tools", tools, "a list of functions or JSON schemas")
    for given in tools or ():
        if isinstance(given, Mapping):
            function, schema = None, given
        elif inspect.iscoroutinefunction(given):
            raise InputError(f"tool {given.__name__} is async, which is not supported. Give a plain function")
        elif callable(given):
            function, schema = given, function_schema(given)
        else:
            raise InputError(f"a tool is {type(given).__name__}, expected a function or the JSON schema of one")
        inner = schema.get("function", schema)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not name:
            raise InputError(
                f"a tool has no name: {str(schema)[:80]}. Give {{'type': 'function', 'function': {{'name': ...}}}}"
            )
        if any(tool.name == name for tool in made):
            raise InputError(f"two tools have the name {name!r}. Rename one")
        whole = schema if "function" in schema else {"type": "function", "function": schema}
        made.append(Tool(name, whole, _parameters(inner, name), function))
    return made


def _parameters(function: Mapping[str, Any], name: str) -> Any:
    """Return the schema of a function's arguments, an object with the listed names only."""
    schema = function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"tool {name}: parameters is {type(schema).__name__}, expected a JSON Schema")
    schema = {"type": "object", **schema}
    if schema["type"] != "object":
        raise ConstraintError(f"tool {name}: type at # is {schema['type']!r}, expected 'object'. Arguments have names")
    combined = {"anyOf", "oneOf", "allOf", "$ref", "patternProperties"} & set(schema)
    if not combined:
        schema.setdefault("additionalProperties", False)
    return schema


def check_choice(choice: str, tools: Sequence[Tool]) -> None:
    """Raise `InputError` unless a choice is "auto", "none", "required" or the name of a tool."""
    names = [tool.name for tool in tools]
    if choice in ("auto", "none") or (choice == "required" and names) or choice in names:
        return
    known = ", ".join([*MODES, *names])
    raise InputError(
        f"tool_choice is {choice!r}, expected one of {known}" if tools else f"tool_choice {choice!r} needs tools"
    )


def call_constraint(tools: Sequence[Tool], tokenizer: Any, most: int = 1) -> Constraint:
    """Compile what a call of one of the tools is, or up to `most` calls in a row.

    Raises:
        InputError: the tokenizer has no token for <tool_call>.
        ConstraintError: the schema of a tool cannot be kept; the message names the tool and the keyword.
    """
    tables = token_tables(tokenizer)
    if OPEN not in tables.tokens_by_text or CLOSE not in tables.tokens_by_text:
        raise InputError("this tokenizer has no token <tool_call>. Use a Qwen3 checkpoint, or leave tools out")
    rules = []
    for i, tool in enumerate(tools):
        try:
            arguments, _ = json_grammar(tool.parameters, SPACED)
            rule = (
                f'{json.dumps(json.dumps({"name": tool.name})[:-1] + ", ")} "\\"arguments\\": " %json {arguments} "}}"'
            )
            check_start(Constraint("tool", _lark(f"start: {rule}\n"), tables), "its schema")
        except ConstraintError as problem:
            raise ConstraintError(f"tool {tool.name}: {problem}") from None
        rules.append(f"f{i}: {rule}")
    names = " | ".join(f"f{i}" for i in range(len(tools)))
    more = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
    text = f'start: call{more}\ncall: {OPEN} "\\n" ({names}) "\\n" {CLOSE}\n' + "\n".join(rules) + "\n"
    constraint = Constraint("tool call", _lark(text), tables)
    check_start(constraint, "the grammar of tool calls")
    return constraint


def _lark(text: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(text)


class AnswerOrCalls:
    """A matcher of an answer in which the model may call tools.

    Args:
        calls: the constraint of calls, or None where there must be none.
        answer: follows the answer, which then holds no calls; None for free text, after which calls may follow.
        size: of the vocabulary. ends: ids that end an answer. added: ids of added tokens.
        opening: the id of <tool_call>.
    """

    def __init__(
        self,
        calls: Constraint | None,
        answer: TokenMatcher | None,
        size: int,
        ends: Sequence[int],
        opening: int | None,
    ):
        self._calls = None if calls is None else calls.matcher(ends)
        self._answer, self._size, self._ends, self._opening = answer, size, sorted(ends), opening
        self._free = only([], size)
        self._free[:] = 0xFFFFFFFF
        if calls is None and opening is not None:
            forbid(self._free, [opening])
        self._tokens: list[int] = []
        self._begin: int | None = None  # where the calls begin
        self._over = False

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        if self._begin is not None and self._calls is not None:
            return self._calls.complete
        return self._over or (self._answer is not None and self._answer.complete)

    @property
    def finished(self) -> bool:
        """Whether nothing but an ending token may follow."""
        if self._begin is not None and self._calls is not None:
            return self._calls.finished
        return self._over or (self._answer is not None and self._answer.finished)

    @property
    def _may_open(self) -> bool:
        return self._calls is not None and self._opening is not None and not (self._tokens and self._answer)

    def mask(self) -> Mask | None:
        """Return the tokens that may come next."""
        if self._begin is not None and self._calls is not None:
            return self._calls.mask()
        if self._answer is None:
            return self._free
        mask = self._answer.mask()
        if mask is not None and self._may_open and self._opening is not None:
            mask = mask.copy()
            permit(mask, [self._opening])
        return mask

    def forced(self) -> list[int]:
        """Return the tokens that must come next."""
        if self._begin is not None and self._calls is not None:
            return self._calls.forced()
        return [] if self._answer is None or self._may_open else self._answer.forced()

    def accept(self, token: int) -> None:
        """Go on with a token."""
        if self._begin is None and token == self._opening and self._may_open:
            self._begin = len(self._tokens)
        if self._begin is not None and self._calls is not None:
            self._calls.accept(token)
        elif self._answer is not None:
            self._answer.accept(token)
        elif token in self._ends:
            self._over = True
        self._tokens.append(token)

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""
        left = len(self._tokens) - count
        self._over = False
        if self._begin is not None and self._calls is not None:
            self._calls.rollback(min(count, len(self._tokens) - self._begin))
            count -= min(count, len(self._tokens) - self._begin)
            self._begin = None if left <= self._begin else self._begin
        if self._answer is not None and count > 0:
            self._answer.rollback(count)
        del self._tokens[left:]


class CallParser:
    """Splits streamed text into answer and calls.

    Attributes:
        opened: how many tags to come are calls: raise it for each token <tool_call>, which alone is followed by what
            the grammar allows; a tag that is spelled letter by letter is text. None: every tag is a call.
    """

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self.opened: int | None = None

    def feed(self, text: str, final: bool = False) -> list[str | ToolCall]:
        """Take the next piece of text; return what can be shown now, texts and whole calls.

        final: nothing follows; an incomplete call is left out.
        """
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            if self._inside:
                body, tag, rest = self._held.partition(CLOSE)
                if not tag:
                    break
                found.append(_read_call(body))
                self._held, self._inside = rest.removeprefix("\n"), False
                continue
            before, tag, rest = self._held.partition(OPEN)
            if tag and self.opened != 0:
                self.opened = None if self.opened is None else self.opened - 1
                if before.strip():
                    found.append(before.rstrip("\n"))
                self._held, self._inside = rest, True
                continue
            before = self._held
            size = 0 if final else _tail(before)
            shown, self._held = before[: len(before) - size], before[len(before) - size :]
            if shown:
                found.append(shown)
            break
        if final:
            self._held = ""
        return found


def _read_call(body: str) -> str | ToolCall:
    try:
        content = json.loads(body)
        return ToolCall(content["name"], dict(content["arguments"]))
    except (ValueError, KeyError, TypeError):
        return f"{OPEN}{body}{CLOSE}"  # no token opened it: the model has spelled the tag


def _tail(text: str) -> int:
    """Return how many characters at the end may belong to newlines and an opening tag."""
    size = next((n for n in range(min(len(text), len(OPEN) - 1), 0, -1) if text.endswith(OPEN[:n])), 0)
    body = text[: len(text) - size]
    return size + len(body) - len(body.rstrip("\n"))


def run_tool(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Run a tool and return its result as the model sees it: a text, or JSON. What goes wrong is said in it."""
    assert tool.function is not None
    try:
        result = tool.function(**arguments)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - the user's code; the model sees the error, and goes on
        reason = " ".join(str(problem).split())
        return f"error: {tool.name} failed with {type(problem).__name__}{f': {reason}' if reason else ''}"
    if isinstance(result, str):
        return _valid_text(result)
    try:
        return _valid_text(json.dumps(result, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return f"error: {tool.name} returned {type(result).__name__}, which is not JSON. Return a text, or JSON values"


def _valid_text(text: str) -> str:
    """Return a text in which lone surrogates, which no tokenizer takes, are question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
