"""The rules of one answer: a constraint on its text, the allowed tool calls, and where either begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..generation import resolve_options
from ..generation.after_thinking import AfterThinking, Reasoning, TokenMatcher, after_thinking
from ..generation.constraints import Constraint
from ..generation.stream import ending_ids
from ..generation.tokenizer_tables import token_tables
from .tools import OPEN, AnswerOrCalls, Tool, call_constraint

MOST_REPORTED = 16
"""Maximum number of calls per answer if calls are reported, not run."""


@dataclass(frozen=True)
class AnswerRules:
    """Rules of one answer.

    Attributes:
        constraint: constraint on the answer without its reasoning, or None.
        tools: tools that may be called.
        choice: `tool_choice` as in `ChatSession`.
        runs: number of calls that may still be run; 0 allows no calls.
    """

    constraint: Constraint | None = None
    tools: Sequence[Tool] = ()
    choice: str = "auto"
    runs: int = 1

    @property
    def watches(self) -> bool:
        """Whether the answer needs a matcher."""
        return self.constraint is not None or bool(self.tools)

    def inner_matcher(self, model: Any, tokenizer: Any) -> TokenMatcher:
        """Return the matcher of the answer without its reasoning."""
        ends = self.list_ending_ids(model, tokenizer)
        answer = None if self.constraint is None else self.constraint.matcher(ends)
        if not self.tools:
            assert answer is not None
            return answer
        tables = token_tables(tokenizer)
        chosen = [tool for tool in self.tools if self.choice in ("auto", "required", tool.name)]
        most = self.runs if all(tool.function is not None for tool in chosen) else MOST_REPORTED
        single = self.choice not in ("auto", "required")
        calls = call_constraint(chosen, tokenizer, 1 if single else most) if chosen and most > 0 else None
        if calls is not None and self.choice != "auto":
            return calls.matcher(ends)
        return AnswerOrCalls(calls, answer, len(tables.tokens), ends, tables.tokens_by_text.get(OPEN))

    def matcher(self, model: Any, tokenizer: Any, prompt: str, thinking: bool, thinks: bool) -> TokenMatcher:
        """Return the matcher of the whole answer.

        Args:
            prompt: the rendered prompt, up to the beginning of the answer.
            thinking: the thinking mode that was passed to the template.
            thinks: whether this answer reasons; a message may have disabled it.
        """
        inner, tables = self.inner_matcher(model, tokenizer), token_tables(tokenizer)
        size, banned = len(tables.tokens), sorted({*tables.added, *self.list_ending_ids(model, tokenizer)})
        if thinking and not thinks:
            return AfterThinking(inner, Reasoning.for_tokenizer(tokenizer, opened=False, free=False), size, banned)
        return after_thinking(inner, tokenizer, prompt, thinking, size, banned)

    def list_ending_ids(self, model: Any, tokenizer: Any) -> list[int]:
        return sorted(ending_ids(resolve_options(model, {}, streaming=True), tokenizer))
