"""Render conversations with a checkpoint's Jinja template in a sandbox, as transformers does.

Templates are downloaded and untrusted: they receive plain data only and cannot modify it. Source of the environment's
functions: `utils/chat_template_utils.py` of transformers 5.23.
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

from ..errors import InputError, MlxQwen3Error, TokenizerError, one_line
from .batch import BatchEncoding
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
"""Keyword arguments of transformers that are not template variables."""

ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
_GENERATION_START, _GENERATION_END = "\U000f0002", "\U000f0003"
_MARKS = re.compile(f"[{_GENERATION_START}{_GENERATION_END}]")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _GenerationBlock(Extension):
    """Handle `{% generation %}` blocks: enclose the assistant's text in marks, from which training masks are built."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it this way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{_GENERATION_START}{text}{_GENERATION_END}" if marks_generation() else text


class _Namespace(Namespace):
    """Jinja's namespace, which rejects names that begin with an underscore: they give access to Python internals."""

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


def _strftime_now(format: str) -> str:
    if len(format) > 1000:
        raise InputError("strftime_now: the format has more than 1000 characters. Use a shorter one.")
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Convert a value to JSON without escaping HTML, as Jinja's own filter would."""
    check_nested(value)
    if isinstance(indent, int) and indent > 100:
        raise InputError(f"tojson: indent is {indent}. Use at most 100.")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["dict"] = lambda *args, **values: dict(*args, **values)
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the chat template has an error in line {error.lineno}: {error.message}. Pass another as chat_template=."
        ) from error
    except Exception as error:  # jinja2 compiles to Python, whose compiler raises further errors
        reason = one_line(error) or type(error).__name__
        raise TokenizerError(
            f"the chat template cannot be compiled: {reason}. Pass another one as chat_template=."
        ) from error


@lru_cache(maxsize=32)
def join_literals(template: str) -> str:
    """Return the literal text and string constants of a template, joined by NUL characters."""
    tree = _compile(template).environment.parse(template)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(texts))


@lru_cache(maxsize=32)
def _find_variables(template: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_compile(template).environment.parse(template)))


def check_variables(template: str, variables: Mapping[str, Any]) -> None:
    """Raise InputError for an argument of a tokenizer call that the template does not read."""
    for name in variables:
        if name in _RESERVED:
            raise InputError(f"{name!r} is set by another argument of apply_chat_template. Omit it.")
        without_effect = variables[name] is None or variables[name] is False
        if name in _CALL_KEYWORDS and not without_effect and name not in _find_variables(template):
            raise InputError(
                f"apply_chat_template does not take {name!r}, and the template does not read it. "
                "Pass it in tokenizer_kwargs."
            )


def find_control_tokens(tokenizer: "Tokenizer", template: str) -> list[str]:
    """Return the tokens that `sanitize_control_tokens` encodes as plain text in user input."""
    return control_tokens(list(tokenizer.added_tokens_decoder.values()), join_literals(template))


def check_conversation(conversation: Any) -> None:
    """Raise InputError unless the conversation is a non-empty sequence."""
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise InputError("messages must be a non-empty list of dicts with 'role' and 'content'.")


def check_outputs(tokenize: bool, return_dict: bool | None, return_mask: bool, sanitize: bool) -> None:
    """Raise InputError for output options of `apply_chat_template` that exclude each other."""
    if return_mask and (not tokenize or return_dict is False):
        raise InputError("return_assistant_tokens_mask needs tokenize=True and return_dict=True. Omit one of them.")
    if sanitize and (not tokenize or return_mask):
        raise InputError(
            "sanitize_control_tokens needs tokenize=True and excludes return_assistant_tokens_mask. Leave one out."
        )


def check_generation_blocks(template: str) -> None:
    """Raise InputError unless the template marks the assistant's text with `{% generation %}`."""
    if _GENERATION_TAG.search(template) is None:
        raise InputError(
            "return_assistant_tokens_mask needs a chat template with {% generation %} … {% endgeneration %} "
            "around the assistant's text. Pass one as chat_template=."
        )


def split_generation_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text without marks, and the character spans (start, end) of the assistant's text."""
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


def build_assistant_mask(inputs: BatchEncoding, row: int, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return 1 for each token of a row that overlaps one of the character spans, else 0."""
    encodings = inputs.encodings or []
    mask = [0] * len(encodings[row])
    for start, end in spans:
        for index, (first, last) in enumerate(encodings[row].offsets):
            if first < end and last > start and encodings[row].sequence_ids[index] is not None:
                mask[index] = 1
    return mask


def choose_template(templates: str | dict[str, str] | None, requested: str | None, with_tools: bool) -> str:
    """Return the template to use: the requested one, else `tool_use` with tools, else the default.

    Args:
        templates: of the tokenizer: one, several by name, or none.
        requested: the name of a template, or its text.

    Raises:
        TokenizerError: no template was found.
        InputError: `requested` is not a string.
    """
    if isinstance(templates, dict):
        if isinstance(requested, str):
            return templates.get(requested, requested)
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in templates:
                return templates[name]
        raise TokenizerError(
            f"the tokenizer has several chat templates and no default. Pass chat_template=, one of {sorted(templates)}."
        )
    if requested is not None and not isinstance(requested, str):
        raise InputError(f"chat_template is of type {type(requested).__name__}. Pass the text of a template.")
    chosen = templates if requested is None else requested
    if chosen is None:
        raise TokenizerError(
            "this tokenizer has no chat template. Pass chat_template=, or encode the prompt as plain text."
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
    """Render the prompt of one conversation.

    Args:
        variables: template variables of the caller; they take precedence over `defaults`.
        mark_generation: enclose the content of `{% generation %}` blocks in marks for `split_generation_marks`.
        control_tokens: tokens to mark in messages, tools, documents and variables for `encode_marked`.

    Raises:
        InputError: invalid messages, roles or tools.
        TokenizerError: the template cannot render the messages.
    """
    chat = [_check_message(index, message, template) for index, message in enumerate(messages)]
    if not chat:
        raise InputError("messages is empty. Pass at least one message.")
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    if continue_final_message:
        if add_generation_prompt:
            raise InputError("continue_final_message and add_generation_prompt exclude each other. Pass one.")
        if mark_generation:
            raise InputError("continue_final_message and return_assistant_tokens_mask exclude each other. Pass one.")
        final = chat[-1].get(field)
        if not isinstance(final, str):
            raise InputError(f"continue_final_message: the final message has no text in {field!r}.")
        for name in _REASONING if field in _REASONING else (field,):
            if chat[-1].get(name) == final:
                chat[-1][name] = final + _OPEN_END
    given = {"tools": _build_tool_schemas(tools), "documents": _check_documents(documents)}
    further = _to_plain(dict(variables or {}), "template variable")
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
    except Exception as error:  # templates run as Python code and can raise any exception
        parts = any(isinstance(message.get("content"), list) for message in chat)
        hint = ". This template may not support a content that is a list of parts. Pass a string" if parts else ""
        reason = one_line(error) or type(error).__name__
        raise TokenizerError(f"the chat template cannot render these messages: {reason}{hint}.") from error
    return _cut_open_end(text, field) if continue_final_message else text


def _cut_open_end(text: str, field: str) -> str:
    """Remove the text after the final message, and trailing white space if the template trimmed the message."""
    mark = text.rfind(_OPEN_END.strip())
    if mark < 0:
        raise InputError(f"continue_final_message: the chat template does not write {field!r} of the final message.")
    return text[:mark] if text.startswith(_OPEN_END, mark) else text[:mark].rstrip()


def _check_message(index: int, message: Any, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"message {index} must be a dict with 'role' and 'content', not {type(message).__name__}.")
    plain = {key: _to_plain(value, f"message {index}: {key}") for key, value in message.items() if value is not None}
    role = plain.get("role")
    if not isinstance(role, str):
        raise InputError(f"message {index} has no role. Use one of {', '.join(ROLES)}.")
    # Templates of other families may support more roles, which then appear in quotes in their text.
    if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
        raise InputError(f"message {index} has the unknown role {role!r}. Use one of {', '.join(ROLES)}.")
    if role == "assistant" and plain.get("tool_calls"):
        plain.setdefault("content", "")  # chat APIs send null, which Qwen3's template cannot concatenate
    content = plain.get("content")
    if not isinstance(content, str | list):
        what = "no content" if content is None else f"content of type {type(content).__name__}"
        raise InputError(f"message {index} ({role}) has {what}. Pass a string.")
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _build_tool_schemas(tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None) -> list[Any] | None:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools is of type {type(tools).__name__}. Pass a list of functions or JSON schemas.")
    schemas = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping) and not callable(tool):
            raise InputError(f"tool {index} must be a function or a dict (its JSON schema), not {type(tool).__name__}.")
        schema = tool if isinstance(tool, Mapping) else function_schema(tool)
        schemas.append(_to_plain(schema, f"tool {index}"))
    return schemas


def _check_documents(documents: Any) -> Any:
    """Return the documents in plain JSON types; raise `InputError` unless they are a list of dicts."""
    entries = isinstance(documents, list | tuple) and all(isinstance(entry, Mapping) for entry in documents)
    if documents is not None and not entries:
        raise InputError(f"documents is {repr(documents)[:60]}. Pass a list of dicts with 'title' and 'text'.")
    return _to_plain(documents, "documents")


def _to_plain(value: Any, where: str) -> Any:
    """Return a copy in plain JSON types: templates may call methods, so arbitrary objects are unsafe."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_to_plain(key, where): _to_plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item, where) for item in value]
    raise InputError(f"{where} contains a {type(value).__name__}. Use strings, numbers, lists and dicts.")
