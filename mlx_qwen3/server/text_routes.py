"""Validated chat and text completion requests: prompts, options, and the shape of the response."""

import re
from dataclasses import dataclass, field
from typing import Any

from ..chat.tools import CallParser, Tool, make_tools
from ..errors import MlxQwen3Error
from .errors import invalid
from .jobs import Delta, TextJob, TextOptions
from .models import Models, ServedModel
from .prompts import (
    DEFAULT_COMPLETION_TOKENS,
    answer_rules,
    check_count,
    check_room,
    check_unsupported_fields,
    completion_prompts,
    is_ids,
    matcher_factory,
    render,
    text_options,
)
from .schemas import ChatBody, CompletionBody, Sampled
from .settings import ServerSettings
from .text_api import ChatShape, CompletionShape, Shape, Tokens, usage_of

TOOL_NAME = re.compile(r"""[^\x00-\x1f\x7f"'<>\\{}]{1,256}""")
"""Names of tools. Other characters could not be distinguished from the syntax of a call."""


@dataclass
class TextRequest:
    """A validated request. It is prepared in a worker thread and started in the event loop."""

    served: ServedModel
    prompts: list[list[int]]
    options: TextOptions
    shape: Shape
    jobs: list[TextJob] = field(default_factory=list)

    def start(self) -> "TextRequest":
        """Create the jobs and return self. Call it in the event loop that reads their events."""
        self.jobs = [TextJob(self.served, prompt, self.options) for prompt in self.prompts]
        return self

    def whole(self, choices: list[list[Delta]]) -> dict[str, Any]:
        """Return the whole response."""
        return {**self.shape.head, "choices": self.shape.whole(choices), "usage": usage_of(self.jobs)}


def _check_choices(body: Sampled, settings: ServerSettings) -> None:
    if (body.n or 1) > settings.max_batch:
        raise invalid(
            "n",
            f"too many choices: {body.n}. This server decodes {settings.max_batch} sequences at once. Request fewer.",
        )


def parse_tools(body: ChatBody) -> tuple[list[Tool], str]:
    """Return the tools of a request, and its tool choice: "none", "auto", "required" or the name of a tool.

    Raises:
        ApiError: 400 for a tool without a name, an unknown choice, or the choice of a tool that the request lacks.
    """
    try:
        tools = make_tools(body.tools)
    except MlxQwen3Error as error:
        raise invalid("tools", str(error)) from None
    for index, tool in enumerate(tools):
        if not TOOL_NAME.fullmatch(tool.name):
            raise invalid(
                f"tools[{index}]", f"the name is invalid: {tool.name[:100]!r}. Use letters, digits, '_', '-' and '.'."
            )
    choice = body.tool_choice
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in [tool.name for tool in tools]:
            raise invalid("tool_choice", f"unknown function: {name!r}. Use the name of one of the tools.")
        return tools, str(name)
    if choice not in (None, "none", "auto", "required"):
        raise invalid("tool_choice", f"unknown choice: {choice!r}. Use none, auto, required or a function.")
    if choice == "required" and not tools:
        raise invalid("tool_choice", "it is 'required' and there are no tools. Send tools.")
    return tools, choice or ("auto" if tools else "none")


class ChatRequest(TextRequest):
    """A chat completion."""

    @classmethod
    def prepare(cls, models: Models, settings: ServerSettings, body: ChatBody) -> "ChatRequest":
        """Validate a body and render its conversation.

        Raises:
            ApiError: 400 or 404.
        """
        served = models.find(body.model, "chat")
        _check_choices(body, settings)
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs", "it requires logprobs. Set logprobs to true, or omit it.")
        tools, choice = parse_tools(body)
        prompt = render(served, body, None if choice == "none" else [tool.schema for tool in tools])
        check_room(served, prompt.ids, "messages")
        limit = body.max_completion_tokens or body.max_tokens or settings.max_tokens
        top = (body.top_logprobs or 0) if body.logprobs else None
        options = text_options(served, body, limit, top, prompt.opens_thinking)
        rules = answer_rules(served, body, tools, choice)
        options.constraint = matcher_factory(served, rules, prompt)
        options.tools = CallParser if rules.tools else None
        return cls(served, [prompt.ids], options, ChatShape(served.name, Tokens(served.tokenizer), top))


class CompletionRequest(TextRequest):
    """A text completion."""

    @classmethod
    def prepare(cls, models: Models, settings: ServerSettings, body: CompletionBody) -> "CompletionRequest":
        """Validate a body and encode its prompts.

        Raises:
            ApiError: 400 or 404.
        """
        served = models.find(body.model, "completions")
        _check_choices(body, settings)
        check_unsupported_fields(body)
        if isinstance(body.prompt, list) and not is_ids(body.prompt):
            check_count(len(body.prompt), settings, "prompt")
        prompts = completion_prompts(served, body.prompt)
        for prompt in prompts:
            check_room(served, prompt, "prompt")
        options = text_options(served, body, body.max_tokens or DEFAULT_COMPLETION_TOKENS, body.logprobs, None)
        return cls(served, prompts, options, CompletionShape(served.name, Tokens(served.tokenizer), body.logprobs))
