"""Convert the body of a chat or completion request to prompt ids and options of the answer."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import pydantic_core

from ..chat.answer_rules import AnswerRules
from ..chat.modes import Sampling, ThinkingSupport, mode_sampling, opens_thinking
from ..chat.tools import Tool, call_constraint
from ..errors import ContextError, InputError, MlxQwen3Error
from ..generation.after_thinking import TokenMatcher
from ..generation.constraints import Constraint, compile_constraint
from ..generation.context import tokens_left
from ..generation.options import resolve_options
from .errors import ApiError, invalid
from .jobs import TextOptions
from .models import ServedModel
from .schemas import ChatBody, CompletionBody, Sampled
from .settings import ServerSettings

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles of the API → roles of chat templates."""

TEMPLATE_VARIABLES = ("enable_thinking",)
"""Variables that `chat_template_kwargs` may set. Others are ignored, since they could replace the template itself."""

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` for completions."""


TOKEN_ID_DIGITS = 20
"""Maximum digits of a token id in `logit_bias`; Python refuses to convert very long numbers."""


def chat_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages in the shape that chat templates expect: content as text, tool calls in OpenAI's shape.

    Raises:
        ApiError: 400 for an invalid message; `param` has its index.
    """
    return [_convert_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _convert_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"unknown role: {role!r}. Use one of {', '.join(ROLES)}.")
    result: dict[str, Any] = {
        "role": ROLES[role],
        "content": _convert_content(message.get("content"), f"{where}.content"),
    }
    if role == "user" and message.get("content") is None:
        raise invalid(f"{where}.content", "it is missing. Send a string.")
    if role != "assistant":
        return result
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        result["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise invalid(f"{where}.tool_calls", "it is not a list. Send a list of tool calls.")
        if calls:
            result["tool_calls"] = [
                _convert_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)
            ]
    return result


def _convert_content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "it is neither a string nor a list of parts. Send a string.")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
            raise invalid(f"{where}[{index}]", f"unsupported type of part: {kind!r}. Send parts of type 'text'.")
        texts.append(part["text"])
    return "".join(texts)


def _convert_tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, "it has no function name. Send the call as it was received.")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str | dict):
        raise invalid(f"{where}.function.arguments", "it is neither a string nor an object. Send a JSON string.")
    if isinstance(arguments, str):
        try:  # templates encode an object themselves; this parser refuses deep nesting and lone surrogates
            parsed = pydantic_core.from_json(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
        except ValueError:
            pass
    return {"type": "function", "id": call.get("id"), "function": {"name": function["name"], "arguments": arguments}}


@dataclass(frozen=True)
class Rendered:
    """A conversation rendered by the chat template.

    Attributes:
        text: the prompt.
        ids: its token ids.
        enable_thinking: the variable passed to the template; None if it was not passed.
    """

    text: str
    ids: list[int]
    enable_thinking: bool | None

    @property
    def opens_thinking(self) -> bool:
        """Whether the prompt ends inside the reasoning."""
        return opens_thinking(self.text)


def render(served: ServedModel, body: ChatBody, tools: Sequence[Mapping[str, Any]] | None) -> Rendered:
    """Render the prompt of a conversation.

    Raises:
        ApiError: 400 for invalid messages or tools, or a model without a chat template.
    """
    if served.thinking is None:
        raise ApiError(400, f"model {served.name!r} has no chat template. Use /v1/completions.", "model")
    messages = chat_messages(body.messages)
    variables: dict[str, Any] = {}
    requested = (body.chat_template_kwargs or {}).get("enable_thinking")
    if requested is not None and not isinstance(requested, bool):
        raise invalid("chat_template_kwargs", "enable_thinking is neither true nor false. Send a boolean.")
    if requested is None and body.reasoning_effort in ("none", "minimal"):
        requested = False
    if requested is not None and served.thinking is ThinkingSupport.OPTIONAL:
        variables["enable_thinking"] = requested
    try:
        text = served.tokenizer.apply_chat_template(
            messages, tools=list(tools) if tools else None, add_generation_prompt=True, tokenize=False, **variables
        )
        check_length(served, text, "messages")
        ids = list(served.tokenizer.encode(text, add_special_tokens=False))
    except MlxQwen3Error as error:
        raise invalid("messages", str(error)) from None
    return Rendered(text, ids, variables.get("enable_thinking"))


def completion_prompts(served: ServedModel, prompt: Any) -> list[list[int]]:
    """Return the ids of each prompt of a completion request.

    Args:
        served: the model.
        prompt: a string, token ids, or a list of either.

    Raises:
        ApiError: 400 for anything else, or ids outside the vocabulary.
    """
    if isinstance(prompt, str) or is_ids(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise invalid("prompt", "it is neither a string, nor token ids, nor a list of those. Send a string.")
    rows = []
    for index, item in enumerate(prompt):
        where = f"prompt[{index}]" if len(prompt) > 1 else "prompt"
        if isinstance(item, str) and item:
            check_length(served, item, where)
            try:
                rows.append(list(served.tokenizer.encode(item)))
            except InputError as error:
                raise invalid(where, str(error)) from None
        elif is_ids(item):
            rows.append(check_ids(item, served.model.config.vocab_size, where))
        else:
            raise invalid(where, "it is empty, or neither a string nor token ids. Send a string.")
    return rows


def is_ids(value: Any) -> TypeGuard[list[int]]:
    """Return whether a value is a non-empty list of integers."""
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def check_ids(ids: list[int], size: int, where: str) -> list[int]:
    """Check token ids and return them.

    Raises:
        ApiError: 400 for an id outside the vocabulary.
    """
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise invalid(where, f"token id {wrong[0]} is outside the vocabulary of {size}. Use this model's tokenizer.")
    return ids


def check_count(count: int, settings: ServerSettings, where: str) -> None:
    """Raise `ApiError` (400) if a request has more inputs than the queue can hold."""
    if count > settings.max_queue:
        raise invalid(where, f"too many: {count:,}. Send at most {settings.max_queue:,} per request.")


def check_length(served: ServedModel, text: str, where: str) -> None:
    """Raise `ApiError` (400) for a text that cannot fit into the context, without encoding it, which may take minutes.

    Its number of tokens is at least its number of bytes divided by those of the longest token.
    """
    if len(text) <= served.context:
        return
    least = len(unicodedata.normalize("NFC", text).encode()) // max(served.longest_token, 1)
    if least >= served.context:
        raise ApiError(
            400,
            f"{where}: it has at least {least:,} tokens and the model holds {served.context:,}. Shorten it.",
            where,
            "context_length_exceeded",
        )


def check_room(served: ServedModel, prompt: Sequence[int], where: str) -> None:
    """Raise `ApiError` (400) if a prompt leaves no room in the model's context."""
    try:
        tokens_left(served.model.config, 0, len(prompt), None)
    except ContextError as error:
        raise ApiError(400, f"{where}: {error}", where, "context_length_exceeded") from None


def text_options(
    served: ServedModel, body: Sampled, limit: int, logprobs: int | None, thinking: bool | None
) -> TextOptions:
    """Return the options of an answer; values missing from the request come from the checkpoint.

    Args:
        served: the model.
        body: the request.
        limit: maximum number of tokens.
        logprobs: number of most likely tokens to report; None for no log-probabilities.
        thinking: as in `TextOptions`.

    Raises:
        ApiError: 400 for an invalid value.
    """
    sampling = Sampling(body.temperature, body.top_p, body.top_k, body.min_p)
    if thinking is not None and served.thinking is not None:
        sampling = sampling.over(mode_sampling(thinking, served.thinking, served.generation_config))
    keywords: dict[str, Any] = {
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": _parse_logit_bias(body.logit_bias, served.model.config.vocab_size) if body.logit_bias else None,
        "seed": None if body.seed is None else body.seed % (1 << 64),
        "stop": body.stops or None,
    }
    keywords = {**sampling.keywords(), **{name: value for name, value in keywords.items() if value is not None}}
    try:
        generation = resolve_options(served.model, keywords, streaming=True)
    except MlxQwen3Error as error:
        raise invalid(next((name for name in keywords if name in str(error)), "body"), str(error)) from None
    return TextOptions(
        max_tokens=limit,
        choices=body.n or 1,
        generation=generation,
        logprobs=logprobs,
        thinking=thinking,
    )


def _parse_logit_bias(bias: Mapping[str, float], size: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdigit() and len(name) <= TOKEN_ID_DIGITS and int(name) < size):
            raise invalid(
                "logit_bias",
                f"{name[:40]!r} is not a token id of the vocabulary of {size}. Use this model's tokenizer.",
            )
        found[int(name)] = float(value)
    return found


def check_unsupported_fields(body: CompletionBody) -> None:
    """Raise `ApiError` (400) for fields that this server does not support, instead of ignoring them."""
    if body.suffix:
        raise invalid("suffix", "inserting text before a suffix is not supported. Omit it.")
    if body.echo:
        raise invalid("echo", "echoing the prompt is not supported. Omit it.")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise invalid("best_of", "choosing the best of several answers is not supported. Omit it.")


@dataclass(frozen=True)
class OneCall(AnswerRules):
    """Rules of an answer that is exactly one call of any of the tools."""

    def inner_matcher(self, model: Any, tokenizer: Any) -> TokenMatcher:
        """Return the matcher of the call."""
        return call_constraint(self.tools, tokenizer).matcher(self.list_ending_ids(model, tokenizer))


def answer_rules(served: ServedModel, body: ChatBody, tools: Sequence[Tool], choice: str) -> AnswerRules:
    """Return the rules of an answer: its `response_format`, and the tools that it may or must call.

    Raises:
        ApiError: 400 for an invalid format, schema or tool.
    """
    schema = _response_schema(body.response_format)
    constraint = None if schema is None else schema_constraint(served, schema, "response_format")
    kind = OneCall if choice == "required" and not body.parallel_tool_calls else AnswerRules
    rules = kind(constraint, tools if choice != "none" else (), choice)
    if rules.tools:
        try:
            rules.inner_matcher(served.model, served.tokenizer)
        except MlxQwen3Error as error:
            raise invalid("tools", str(error)) from None
    return rules


def _response_schema(response_format: dict[str, Any] | None) -> Any:
    """Return the JSON schema of an answer; None for free text."""
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise invalid("response_format", f"unknown type: {kind!r}. Use text, json_object or json_schema.")
    inner = response_format.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict | bool):
        raise invalid("response_format", "json_schema has no field 'schema'. Send {'name': …, 'schema': {…}}.")
    return inner["schema"]


def schema_constraint(served: ServedModel, schema: Any, field: str) -> Constraint:
    """Compile a JSON schema to a constraint.

    Raises:
        ApiError: 400 for an invalid or unsupported schema; `param` is `field`.
    """
    try:
        return compile_constraint("schema", schema, served.tokenizer)
    except MlxQwen3Error as error:
        raise invalid(field, str(error)) from None


def matcher_factory(served: ServedModel, rules: AnswerRules, prompt: Rendered) -> Any:
    """Return a function that makes the matcher of a choice; None for an unconstrained answer."""
    if not rules.watches:
        return None
    thinking = prompt.enable_thinking is not False and served.thinking is not ThinkingSupport.NEVER
    return lambda: rules.matcher(served.model, served.tokenizer, prompt.text, thinking, thinking)
