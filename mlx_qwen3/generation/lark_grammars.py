"""Check Lark grammars: rewrite the JSON Schemas in them, and detect infinite recursion.

The syntax is llguidance's dialect: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConstraintError

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*|\#[^\n]*)
  | (?P<text>"(?:\\.|[^"\\\n])*"i?)
  | (?P<regex>/(?!/)(?:\\.|[^/\\\n])+/[imslux]*)
  | (?P<special><[^<>\s]+>)
  | (?P<count>~\s*[0-9]+(?:\s*\.\.\s*[0-9]+)?|\{\s*[0-9]*\s*(?:,\s*[0-9]*\s*)?\})
  | (?P<directive>%[a-zA-Z_]+)
  | (?P<name>[!?]?_?[a-zA-Z][a-zA-Z0-9_\-]*)
  | (?P<sign>\.\.|->|[:|()\[\]?*+&~,.])
    """,
    re.VERBOSE,
)


def rewrite_schemas(text: str, check: Callable[[Any], str]) -> str:
    """Return a grammar in which `check` has rewritten the schema after each %json.

    Raises:
        ConstraintError: a %json is not followed by valid JSON, or `check` refuses the schema.
    """
    at = 0
    while (at := text.find("%json", at)) >= 0:
        start = at + len("%json")
        start += len(text[start:]) - len(text[start:].lstrip())
        schema, end = _read_json(text, start)
        checked = check(schema)
        text = f"{text[:start]}{checked}{text[end:]}"
        at = start + len(checked)
    return text


def _read_json(text: str, start: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, start)
    except (ValueError, RecursionError) as problem:
        raise ConstraintError(f"the grammar has a %json that is not valid JSON: {problem}. Correct it.") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


@dataclass
class _Group:
    """Alternatives of a rule; each is a list of required parts, which are names of rules or groups."""

    options: list[list["str | _Group"]] = field(default_factory=lambda: [[]])

    def is_finite(self, finite: set[str]) -> bool:
        """Return whether the group derives a finite text, given the names of rules that do."""
        return any(
            all(part in finite if isinstance(part, str) else part.is_finite(finite) for part in option)
            for option in self.options
        )


def refuse_endless(text: str) -> None:
    """Refuse a grammar with a rule that derives no finite text: an answer that enters the rule could never finish.

    Args:
        text: a grammar that compiles.

    Raises:
        ConstraintError: the recursion of a rule has no base case.
    """
    rules = _parse_rules(text)
    if rules is None:
        return
    finite: set[str] = set()
    while more := {name for name, rule in rules.items() if name not in finite and rule.is_finite(finite)}:
        finite |= more
    if len(finite) < len(rules):
        names = ", ".join(sorted(set(rules) - finite))
        raise ConstraintError(f"the grammar recurses without end in {names}. Add an alternative without recursion.")


def _parse_rules(text: str) -> dict[str, _Group] | None:
    """Return the rules of a grammar by name, or None if it has syntax that this parser does not know."""
    tokens = _tokenize(text)
    if tokens is None:
        return None
    rules: dict[str, _Group] = {}
    at = 0
    while at < len(tokens):
        kind, value = tokens[at]
        if kind == "directive":  # skip %import, %ignore, … up to the next definition
            at += 1
            while at < len(tokens) and not _starts_rule(tokens, at) and tokens[at][0] != "directive":
                at += 1
            continue
        if kind != "name":
            return None
        start = _find_body(tokens, at)
        if start is None:
            return None
        stop = start
        while stop < len(tokens) and not _starts_rule(tokens, stop) and not _is_statement(tokens[stop]):
            stop += 1
        group = _parse_alternatives(tokens[start:stop])
        if group is None:
            return None
        rules[value.lstrip("!?")] = group
        at = stop
    defined = set(rules)
    for group in rules.values():
        _drop_undefined(group, defined)
    return rules


def _tokenize(text: str) -> list[tuple[str, str]] | None:
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "directive" and match.group() == "%json":
            start = at + len(text[at:]) - len(text[at:].lstrip())
            _, at = _read_json(text, start)
            kind = "text"
        if kind != "space":
            found.append((kind, match.group()))
    return found


def _is_statement(token: tuple[str, str]) -> bool:
    return token[0] == "directive" and token[1] in ("%import", "%ignore", "%declare", "%override", "%extend")


def _find_body(tokens: list[tuple[str, str]], at: int) -> int | None:
    """Return the index of the first token in the body of the rule that starts at `at`; None if no rule starts there."""
    at += 1
    if at < len(tokens) and tokens[at] == ("sign", "["):  # attributes
        while at < len(tokens) and tokens[at] != ("sign", "]"):
            at += 1
        at += 1
    return at + 1 if at < len(tokens) and tokens[at] == ("sign", ":") else None


def _starts_rule(tokens: list[tuple[str, str]], at: int) -> bool:
    return tokens[at][0] == "name" and _find_body(tokens, at) is not None


def _parse_alternatives(tokens: list[tuple[str, str]]) -> _Group | None:
    stack = [_Group()]
    closing: list[str] = []
    for at, (kind, value) in enumerate(tokens):
        option = stack[-1].options[-1]
        following = tokens[at + 1] if at + 1 < len(tokens) else ("", "")
        optional = following[1] in ("?", "*") or re.fullmatch(r"(~\s*|\{\s*)(0*\s*[,.}].*|0+)", following[1])
        if kind == "name":
            if not optional:
                option.append(value)
        elif value in ("(", "["):
            stack.append(_Group())
            closing.append(")" if value == "(" else "]")
        elif value in (")", "]"):
            if not closing or closing.pop() != value:
                return None
            group = stack.pop()
            if value == ")" and not optional:
                stack[-1].options[-1].append(group)
        elif value == "|":
            stack[-1].options.append([])
        elif value in (":", "&", "~", ",", ".", "->") or kind == "directive":
            return None
    return None if closing else stack[0]


def _drop_undefined(group: _Group, defined: set[str]) -> None:
    """Drop names of terminals and imports, which are always finite."""
    for option in group.options:
        option[:] = [part for part in option if isinstance(part, _Group) or part in defined]
        for part in option:
            if isinstance(part, _Group):
                _drop_undefined(part, defined)
