"""Turn the tokens of one choice into deltas: reasoning, text, tool calls and the finish reason."""

import json
import uuid
from collections.abc import Set
from typing import Any

from ..chat.thinking import ThinkingParser
from ..generation.constrained_answer import end_reason
from ..generation.stop_strings import StopStrings
from .jobs import Delta, TextOptions, TokenLogprob


class Answer:
    """The text of one choice during generation. Used in the engine's thread only.

    Args:
        tokenizer: decodes the tokens.
        options: options of the request: stop strings, reasoning, tools.
        ends: ids of the tokens that end an answer; they are not part of its text.
        budget: maximum number of tokens.
        index: index of the choice.
    """

    def __init__(self, tokenizer: Any, options: TextOptions, ends: Set[int], budget: int, index: int = 0):
        self.index, self._ends, self._budget = index, ends, budget
        self._detokenizer = tokenizer.make_detokenizer()
        self._parser = None if options.thinking is None else ThinkingParser(options.thinking)
        self._stops = StopStrings(options.generation.stop_strings)
        self._calls = options.tools() if options.tools is not None else None
        self._call_count = 0
        self.tokens: list[int] = []
        self.finish_reason: str | None = None

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._parser is not None and self._parser.thinking

    def take(self, token: int, logprob: TokenLogprob | None = None, matcher: Any = None) -> list[Delta]:
        """Add a token and return the deltas that it completes; the last delta of an answer has its finish reason.

        Args:
            token: id of the token.
            logprob: its log-probabilities, if the request asks for them.
            matcher: state of the constraint after this token; None without a constraint.
        """
        if token in self._ends:
            return self._finish("stop", [])
        self.tokens.append(token)
        self._detokenizer.add_token(token)
        deltas, stopped = self._split_reasoning(self._detokenizer.last_segment)
        if logprob is not None:
            deltas.append(Delta(self.index, logprobs=(logprob,)))
        if stopped:
            self.finish_reason = "stop"
            return [*deltas, Delta(self.index, finish_reason="stop")]
        last = len(self.tokens) >= self._budget
        reason = end_reason(
            False, matcher is not None and matcher.complete, matcher is not None and matcher.finished, last
        )
        return deltas if reason is None else self._finish(reason, deltas)

    def _finish(self, reason: str, deltas: list[Delta]) -> list[Delta]:
        self._detokenizer.finalize()
        rest, stopped = self._split_reasoning(self._detokenizer.last_segment)
        deltas = [*deltas, *rest]
        if not stopped:
            for piece in self._parser.flush() if self._parser is not None else []:
                found, stopped = self._make_deltas(piece.kind, piece.text)
                deltas += found
            if not stopped:
                deltas += self._split_calls(self._stops.flush())
        if self._calls is not None:
            deltas += [self._make_delta(piece) for piece in self._calls.feed("", final=True)]
            if reason == "stop" and self._call_count:
                reason = "tool_calls"
        self.finish_reason = reason
        return [*deltas, Delta(self.index, finish_reason=reason)]

    def _split_reasoning(self, text: str) -> tuple[list[Delta], bool]:
        """Split new text into reasoning and answer; return the deltas and whether a stop string was found."""
        if not text:
            return [], False
        if self._parser is None:
            return self._make_deltas("answer", text)
        deltas: list[Delta] = []
        for piece in self._parser.feed(text):
            found, stopped = self._make_deltas(piece.kind, piece.text)
            deltas += found
            if stopped:
                return deltas, True
        return deltas, False

    def _make_deltas(self, kind: str, text: str) -> tuple[list[Delta], bool]:
        if kind == "reasoning":  # stop strings apply to the answer only
            return [Delta(self.index, kind, text)], False
        text, stopped = self._stops.feed(text)
        return self._split_calls(text), stopped

    def _split_calls(self, text: str) -> list[Delta]:
        """Return the deltas of answer text, with each tool call as a separate delta."""
        if not text:
            return []
        if self._calls is None:
            return [Delta(self.index, "answer", text)]
        return [self._make_delta(piece) for piece in self._calls.feed(text)]

    def _make_delta(self, piece: Any) -> Delta:
        if isinstance(piece, str):
            return Delta(self.index, "answer", piece)
        call = {
            "index": self._call_count,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": piece.name, "arguments": json.dumps(piece.arguments, ensure_ascii=False)},
        }
        self._call_count += 1
        return Delta(self.index, "tool", call=call)
