"""Renders conversations with a checkpoint's Jinja template, in a sandbox, as the reference does.

A template comes from a download and is treated as hostile: it sees plain data only, and can change none of
it. Facts about the environment: `utils/chat_template_utils.py` of transformers 5.23.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ..errors import InputError, TokenizerError
from .tools import function_schema

ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
_PYTHON_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training masks; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, which reach into Python."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *positional = args
        values = dict(*positional, **values)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"the name {name!r} begins with an underscore")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a prompt must not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["dict"] = lambda *args, **values: dict(*args, **values)
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template has an error in line {error.lineno}: {error.message}") from error


def choose_template(templates: str | dict[str, str] | None, asked: str | None, with_tools: bool) -> str:
    """The template to use: the one asked for by text or name, else `tool_use` with tools, else the default.

    Raises TokenizerError when there is none.
    """
    if isinstance(templates, dict):
        if asked is not None:
            return templates.get(asked, asked)
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in templates:
                return templates[name]
        raise TokenizerError(
            f"the tokenizer has several chat templates and no default; pass chat_template=, one of {sorted(templates)}"
        )
    chosen = templates if asked is None else asked
    if chosen is None:
        raise TokenizerError(
            "this tokenizer has no chat template; pass chat_template=, or encode the prompt as plain text"
        )
    return chosen


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text of one conversation.

    Raises InputError for messages, roles or tools that cannot be, TokenizerError when the template fails.
    """
    chat = [_message(index, message, template) for index, message in enumerate(messages)]
    if not chat:
        raise InputError("messages is empty; give at least one message")
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    if continue_final_message:
        if add_generation_prompt:
            raise InputError("continue_final_message and add_generation_prompt exclude each other; pass one")
        final = chat[-1].get(field)
        if not isinstance(final, str):
            raise InputError(f"continue_final_message: the final message has no text in {field!r}")
        for name in _REASONING if field in _REASONING else (field,):
            if chat[-1].get(name) == final:
                chat[-1][name] = final + _OPEN_END
    try:
        text = _compile(template).render(
            messages=chat,
            tools=_tools(tools),
            documents=_plain(documents, "documents"),
            add_generation_prompt=add_generation_prompt,
            **_plain(dict(variables or {}), "template variable"),
        )
    except (jinja2.TemplateError, *_PYTHON_ERRORS) as error:
        if isinstance(error, InputError):
            raise
        parts = any(isinstance(message.get("content"), list) for message in chat)
        hint = "; a content is a list of parts, which this template may not take: give a string" if parts else ""
        reason = " ".join(str(error).split())
        raise TokenizerError(f"the chat template cannot render these messages: {reason}{hint}") from error
    return _cut_open_end(text, field) if continue_final_message else text


def _cut_open_end(text: str, field: str) -> str:
    """Cuts what follows the final message; a template that trimmed the message's end has it trimmed here
    too.
    """
    mark = text.rfind(_OPEN_END.strip())
    if mark < 0:
        raise InputError(f"continue_final_message: the chat template does not write {field!r} of the final message")
    return text[:mark] if text.startswith(_OPEN_END, mark) else text[:mark].rstrip()


def _message(index: int, message: Any, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"message {index} must be a dict with 'role' and 'content', not {type(message).__name__}")
    plain = {key: _plain(value, f"message {index}: {key}") for key, value in message.items() if value is not None}
    role = plain.get("role")
    if not isinstance(role, str):
        raise InputError(f"message {index} has no role; use one of {', '.join(ROLES)}")
    # A template of another family may know more roles, which it then names between quotes.
    if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
        raise InputError(f"message {index} has the unknown role {role!r}; use one of {', '.join(ROLES)}")
    if role == "assistant" and plain.get("tool_calls"):
        plain.setdefault("content", "")  # chat APIs send null there, which Qwen3's template cannot add to text
    content = plain.get("content")
    if not isinstance(content, str | list):
        what = "no content" if content is None else f"content of type {type(content).__name__}"
        raise InputError(f"message {index} ({role}) has {what}; it must be a string")
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _tools(tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None) -> list[Any] | None:
    if tools is None:
        return None
    schemas = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping) and not callable(tool):
            raise InputError(f"tool {index} must be a function or a dict (its JSON schema), not {type(tool).__name__}")
        schema = tool if isinstance(tool, Mapping) else function_schema(tool)
        schemas.append(_plain(schema, f"tool {index}"))
    return schemas


def _plain(value: Any, where: str) -> Any:
    """A copy in plain JSON types: a template may call methods, and other objects' methods may do anything."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise InputError(f"{where} holds a {type(value).__name__}; templates take strings, numbers, lists and dicts")
