"""Render conversations with a checkpoint's Jinja template, in a sandbox, as the reference does.

A template comes from a download and is treated as hostile: it sees plain data only, and can change none of
it. Facts about the environment: `utils/chat_template_utils.py` of transformers 5.23.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from ..errors import InputError, MlxQwen3Error, TokenizerError
from .control_tokens import control_tokens, mark_control_tokens
from .template_limits import LimitedEnvironment, check_nested, marks_generation, start_rendering
from .tools import function_schema

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_RESERVED = ("messages", "self")
_CALL_KEYWORDS = (
    *("add_special_tokens", "stride", "is_split_into_words", "pad_to_multiple_of", "padding_side"),
    *("return_token_type_ids", "return_attention_mask", "return_overflowing_tokens", "return_special_tokens_mask"),
    *("return_offsets_mapping", "return_length", "split_special_tokens", "processor_kwargs", "load_audio_from_video"),
    *("num_frames", "video_fps", "video_load_backend", "do_sample_frames"),
)
"""Keywords of the reference that are no template variables."""

ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
_GENERATION_START, _GENERATION_END = "\U000f0002", "\U000f0003"
_MARKS = re.compile(f"[{_GENERATION_START}{_GENERATION_END}]")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Generation(Extension):
    """`{% generation %}` encloses the assistant's words for training masks: marks stand around its text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{_GENERATION_START}{text}{_GENERATION_END}" if marks_generation() else text


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


def _strftime_now(form: str) -> str:
    if len(form) > 1000:
        raise InputError("strftime_now: the format has more than 1000 characters. Write a shorter one")
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a prompt must not."""
    check_nested(value)
    if isinstance(indent, int) and indent > 100:
        raise InputError(f"tojson: indent is {indent}. Use at most 100")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["dict"] = lambda *args, **values: dict(*args, **values)
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the chat template has an error in line {error.lineno}: {error.message}. Pass another as chat_template="
        ) from error
    except Exception as error:  # jinja2 compiles to Python, whose compiler has its own limits and errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TokenizerError(
            f"the chat template cannot be compiled: {reason}. Pass another one as chat_template="
        ) from error


@lru_cache(maxsize=32)
def literal_text(template: str) -> str:
    """Return the text and the string constants of a template, joined by NUL characters."""
    tree = _compile(template).environment.parse(template)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(texts))


@lru_cache(maxsize=32)
def _variables(template: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_compile(template).environment.parse(template)))


def check_variables(template: str, variables: Mapping[str, Any]) -> None:
    """Raise InputError for a keyword that a tokenizer call has, and that the template does not read."""
    for name in variables:
        if name in _RESERVED:
            raise InputError(f"{name!r} is given by another argument of apply_chat_template. Leave it out")
        if name in _CALL_KEYWORDS and name not in _variables(template):
            raise InputError(
                f"apply_chat_template does not take {name!r}, and the template does not read it. "
                "Pass it in tokenizer_kwargs"
            )


def control_tokens_of(tokenizer: "Tokenizer", template: str) -> list[str]:
    """Return the tokens that `sanitize_control_tokens` encodes as plain text in what a user gives."""
    return control_tokens(list(tokenizer.added_tokens_decoder.values()), literal_text(template))


def has_generation_blocks(template: str) -> bool:
    """Return whether the template says which of its text the assistant writes."""
    return _GENERATION_TAG.search(template) is not None


def split_generation_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text without its marks, and the spans (start, end) in characters that the assistant writes."""
    spans: list[tuple[int, int]] = []
    parts: list[str] = []
    length = last = 0
    start: int | None = None
    for mark in _MARKS.finditer(marked):
        piece = marked[last : mark.start()]
        parts.append(piece)
        length += len(piece)
        last = mark.end()
        if mark[0] == _GENERATION_START:
            start = length
        elif start is not None:
            spans.append((start, length))
            start = None
    return "".join([*parts, marked[last:]]), spans


def choose_template(templates: str | dict[str, str] | None, asked: str | None, with_tools: bool) -> str:
    """Return the template to use: the one asked for by text or name, else `tool_use` with tools, else the default.

    Raises TokenizerError when there is none.
    """
    if isinstance(templates, dict):
        if isinstance(asked, str):
            return templates.get(asked, asked)
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in templates:
                return templates[name]
        raise TokenizerError(
            f"the tokenizer has several chat templates and no default; pass chat_template=, one of {sorted(templates)}"
        )
    if asked is not None and not isinstance(asked, str):
        raise InputError(f"chat_template is of type {type(asked).__name__}, expected the text of a template")
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
    defaults: Mapping[str, Any] | None = None,
    mark_generation: bool = False,
    control_tokens: Sequence[str] | None = None,
) -> str:
    """Return the prompt of one conversation.

    `variables` win over `defaults`. `control_tokens` in what a user gives are marked for `encode_marked`. With
    `mark_generation` there are marks around what `{% generation %}` encloses, for `split_generation_marks`.

    Raises InputError for messages, roles or tools that cannot be used, TokenizerError when the template fails.
    """
    chat = [_message(index, message, template) for index, message in enumerate(messages)]
    if not chat:
        raise InputError("messages is empty; give at least one message")
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    if continue_final_message:
        if add_generation_prompt:
            raise InputError("continue_final_message and add_generation_prompt exclude each other; pass one")
        if mark_generation:
            raise InputError("continue_final_message and return_assistant_tokens_mask exclude each other; pass one")
        final = chat[-1].get(field)
        if not isinstance(final, str):
            raise InputError(f"continue_final_message: the final message has no text in {field!r}")
        for name in _REASONING if field in _REASONING else (field,):
            if chat[-1].get(name) == final:
                chat[-1][name] = final + _OPEN_END
    given = {"tools": _tools(tools), "documents": _plain(documents, "documents")}
    further = _plain(dict(variables or {}), "template variable")
    if control_tokens is not None:
        chat, given, further = (mark_control_tokens(value, control_tokens) for value in (chat, given, further))
    compiled = _compile(template)
    start_rendering(mark_generation)
    try:
        text = compiled.render(
            messages=chat,
            add_generation_prompt=add_generation_prompt,
            **given,
            **{**(defaults or {}), **further},
        )
    except MlxQwen3Error:
        raise
    except Exception as error:  # a template runs as Python and can raise anything
        parts = any(isinstance(message.get("content"), list) for message in chat)
        hint = "; a content is a list of parts, which this template may not take: give a string" if parts else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TokenizerError(f"the chat template cannot render these messages: {reason}{hint}") from error
    return _cut_open_end(text, field) if continue_final_message else text


def _cut_open_end(text: str, field: str) -> str:
    """Cut what follows the final message; a template that trimmed the message's end has it trimmed here too."""
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
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools is of type {type(tools).__name__}, expected a list of functions or JSON schemas")
    schemas = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping) and not callable(tool):
            raise InputError(f"tool {index} must be a function or a dict (its JSON schema), not {type(tool).__name__}")
        schema = tool if isinstance(tool, Mapping) else function_schema(tool)
        schemas.append(_plain(schema, f"tool {index}"))
    return schemas


def _plain(value: Any, where: str) -> Any:
    """Return a copy in plain JSON types: a template may call methods, and other objects' methods may do anything."""
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
