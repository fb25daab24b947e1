"""Generate one answer of a conversation."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from ..generation import GenerationResponse, stream_generate
from ..generation.after_thinking import TokenMatcher
from ..generation.context import tokens_left
from ..generation.tokenizer_tables import token_tables
from .answer_rules import AnswerRules
from .modes import CLOSE, Sampling, opens_thinking
from .thinking import Kind, Piece, ThinkingParser
from .tools import OPEN as OPEN_CALL
from .tools import CallParser, ToolCall

if TYPE_CHECKING:
    from .session import ChatSession

ENOUGH = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    f"{CLOSE}\n\n"
)
"""Text inserted when the thinking budget is exhausted. Source: the Qwen3 technical report, section 4.3."""

PartKind = Literal["reasoning", "answer", "tool_call", "tool_result"]


@dataclass(frozen=True)
class ChatPart:
    """A part of a streamed answer.

    Attributes:
        kind: "reasoning", "answer", "tool_call" or "tool_result".
        text: text of the part; for a call, its arguments as JSON.
        response: the generation response with the statistics so far.
        name: name of the tool, for calls and results.
        arguments: arguments of a call.
    """

    kind: PartKind
    text: str
    response: GenerationResponse
    name: str | None = None
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True)
class TurnStats:
    """Statistics of a turn.

    Attributes:
        reused_tokens: prompt tokens taken from the cache.
        response: the last generation response, with token counts and speeds.
        reasoning_tokens: generated reasoning tokens.
        cache_bytes: size of the cache in bytes.
        sampling: sampling parameters of the answer.
    """

    reused_tokens: int
    response: GenerationResponse
    reasoning_tokens: int
    cache_bytes: int
    sampling: Sampling = field(default_factory=Sampling)


class Turn:
    """The state of one answer during its generation."""

    def __init__(self, session: "ChatSession", messages: list[dict[str, Any]], prompt: str, rules: AnswerRules):
        self.session, self.messages, self.prompt, self.rules = session, messages, prompt, rules
        self.call_parser = CallParser() if rules.tools else None
        if self.call_parser is not None:
            self.call_parser.opened = 0
        self._opening = token_tables(session.tokenizer).tokens_by_text.get(OPEN_CALL) if rules.tools else None
        self.calls: list[ToolCall] = []
        self.ids = session._encode(prompt)
        self.parser = ThinkingParser(opens_thinking(prompt))
        self.text: dict[Kind, list[str]] = {"reasoning": [], "answer": []}
        self.known = list(self.ids)
        self.generated = self.reasoning_tokens = self.reused = 0
        self.response: GenerationResponse | None = None
        self.sampling = session.sampling

    def run(self, progress: Any) -> Generator[ChatPart, None, None]:
        """Generate the answer part by part; force the answer when the thinking budget is exhausted."""
        session = self.session
        left = tokens_left(session.model.config, 0, len(self.ids), session._token_budget(len(self.ids)))
        self.reused = session._keep_common(self.ids, self.messages, progress)
        thinks = session._thinks(self.messages)
        self.sampling = session.sampling_for(thinks)
        matcher = None
        if self.rules.watches:
            matcher = self.rules.matcher(session.model, session.tokenizer, self.prompt, session.thinking, thinks)
        if self.parser.thinking and session.thinking_budget == 0:
            matcher = self._force_answer()
        while True:
            responses = stream_generate(
                session.model,
                session.tokenizer,
                mx.array(self.known[session.cache.offset :]),
                left - self.generated,
                decoding=session._decoding,
                prompt_cache=session.cache,
                history=self.known[: session.cache.offset],
                prefill_step_size=session._prefill_step_size,
                prompt_progress_callback=progress,
                matcher=matcher,
                **session._stream_options(thinks),
            )
            over_budget = yield from self._forward(responses)
            if not over_budget or self.generated >= left:
                return
            matcher = self._force_answer()
            progress = None

    def _forward(self, responses: Generator[GenerationResponse, None, None]) -> Generator[ChatPart, None, bool]:
        """Yield the parts of a stream; return whether it was stopped because the thinking budget is exhausted."""
        budget = self.session.thinking_budget
        try:
            for response in responses:
                self.response = response
                if self.call_parser is not None and response.token == self._opening:
                    self.call_parser.opened = (self.call_parser.opened or 0) + 1
                self.known.append(response.token)
                self.generated += 1
                pieces = self.parser.feed(response.text)
                if response.finish_reason is not None:
                    pieces += self.parser.flush()
                self.reasoning_tokens += self.parser.thinking
                yield from self._make_parts(pieces or [Piece(self.parser.kind or "answer", "")])
                if response.finish_reason is not None:
                    return False
                if budget is not None and self.parser.thinking and self.reasoning_tokens >= budget:
                    return True
        finally:
            responses.close()
        return False

    def _force_answer(self) -> TokenMatcher | None:
        """End the reasoning on behalf of the model; return the matcher of the rest of the answer."""
        self.known += self.session._encode(ENOUGH)
        for piece in self.parser.feed(ENOUGH):
            self.text[piece.kind].append(piece.text)
        session = self.session
        return self.rules.inner_matcher(session.model, session.tokenizer) if self.rules.watches else None

    def _make_parts(self, pieces: Sequence[Piece]) -> Generator[ChatPart, None, None]:
        response = self.response
        assert response is not None
        parts: list[ChatPart] = []
        final = response.finish_reason is not None
        for piece in pieces:
            if self.call_parser is None or piece.kind != "answer":
                self.text[piece.kind].append(piece.text)
                parts.append(ChatPart(piece.kind, piece.text, response))
                continue
            parts += [self._make_part(found, response) for found in self.call_parser.feed(piece.text)]
        if final and self.call_parser is not None:
            parts += [self._make_part(found, response) for found in self.call_parser.feed("", final=True)]
        yield from parts or [ChatPart(self.parser.kind or "answer", "", response)]

    def _make_part(self, found: str | ToolCall, response: GenerationResponse) -> ChatPart:
        if isinstance(found, str):
            self.text["answer"].append(found)
            return ChatPart("answer", found, response)
        self.calls.append(found)
        shown = json.dumps(found.arguments, ensure_ascii=False)
        return ChatPart("tool_call", shown, response, found.name, found.arguments)

    def finish(self) -> None:
        """Append the answer to the conversation and update the statistics."""
        session = self.session
        if session.cache is not None:
            session.cached_ids = self.known[: session.cache.offset]
        if self.response is None:
            return
        for piece in self.parser.flush():
            self.text[piece.kind].append(piece.text)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text["answer"])}
        if self.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        if self.text["reasoning"]:
            message["reasoning_content"] = "".join(self.text["reasoning"])
        session.messages = [*self.messages, message]
        cache_bytes = 0 if session.cache is None else session.cache.nbytes
        session.stats = TurnStats(self.reused, self.response, self.reasoning_tokens, cache_bytes, self.sampling)
