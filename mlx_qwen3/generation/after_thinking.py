"""Constraints that begin after the reasoning of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InputError
from .token_masks import Mask, forbid, only

OPEN, CLOSE = "<think>", "</think>"


class TokenMatcher(Protocol):
    """The interface of a matcher, which tracks an answer under a constraint; see `constraints`."""

    @property
    def complete(self) -> bool: ...

    @property
    def finished(self) -> bool: ...

    def mask(self) -> Mask | None: ...

    def forced(self) -> list[int]: ...

    def accept(self, token: int) -> None: ...

    def rollback(self, count: int) -> None: ...


@dataclass(frozen=True)
class Reasoning:
    """The reasoning before a constrained answer.

    Attributes:
        first: forced ids at the start, such as the opening tag.
        free: whether unconstrained reasoning follows, up to the closing tag.
        close: id of the closing tag.
        then: forced ids after the closing tag.
        budget: maximum number of reasoning tokens; None for no limit.
    """

    first: tuple[int, ...]
    free: bool
    close: int
    then: tuple[int, ...]
    budget: int | None = None

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Any, *, opened: bool, free: bool = True, budget: int | None = None
    ) -> "Reasoning":
        """Return the reasoning of an answer.

        Args:
            opened: whether the prompt already contains the opening tag.
            free: whether the model reasons; otherwise the reasoning is empty.
            budget: maximum number of reasoning tokens.

        Raises:
            InputError: the tokenizer has no token for the closing tag.
        """
        first = "" if opened else f"{OPEN}\n" if free else f"{OPEN}\n\n{CLOSE}\n\n"
        close, ids, then = (
            list(tokenizer.encode(text, add_special_tokens=False)) if text else [] for text in (CLOSE, first, "\n\n")
        )
        if len(close) != 1:
            raise InputError(
                "the tokenizer has no token </think>, after which a constraint could begin. Turn thinking off."
            )
        return cls(tuple(ids), free, close[0], tuple(then), budget)


class AfterThinking:
    """A matcher whose constraint begins after the reasoning.

    Args:
        inner: tracks the answer after the reasoning.
        reasoning: the format of the reasoning.
        size: vocabulary size.
        banned: ids that are not allowed in the reasoning, such as ending tokens.
    """

    def __init__(self, inner: TokenMatcher, reasoning: Reasoning, size: int, banned: Sequence[int]):
        self.inner, self.reasoning = inner, reasoning
        self._size = size
        self._reasoning_mask = only([], size)
        self._reasoning_mask[:] = 0xFFFFFFFF
        forbid(self._reasoning_mask, [token for token in banned if token != reasoning.close])
        self._tokens: list[int] = []
        self._begin = None if reasoning.free else len(reasoning.first)

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._answering and self.inner.complete

    @property
    def finished(self) -> bool:
        """Whether only an ending token may follow."""
        return self._answering and self.inner.finished

    @property
    def _answering(self) -> bool:
        return self._begin is not None and len(self._tokens) >= self._begin

    def mask(self) -> Mask | None:
        """Return the mask of the allowed next tokens, or None if all are allowed."""
        if self._answering:
            return self.inner.mask()
        forced = self.forced()
        if forced:
            return only(forced[:1], self._size)
        mask = self._reasoning_mask
        if len(self._tokens) == len(self.reasoning.first):  # the reasoning must not be empty
            mask = mask.copy()
            forbid(mask, [self.reasoning.close])
        return mask

    def forced(self) -> list[int]:
        """Return the next tokens that have no alternative; empty if there is a choice."""
        count, first = len(self._tokens), self.reasoning.first
        if count < len(first):
            return list(first[count:])
        if self._begin is None:
            budget = self.reasoning.budget
            over = budget is not None and count - len(first) >= budget
            return [self.reasoning.close, *self.reasoning.then] if over else []
        return self.inner.forced() if count >= self._begin else list(self.reasoning.then[count - self._begin :])

    def accept(self, token: int) -> None:
        """Add a token to the answer."""
        if self._answering:
            self.inner.accept(token)
        elif token == self.reasoning.close and len(self._tokens) >= len(self.reasoning.first) and self._begin is None:
            self._begin = len(self._tokens) + 1 + len(self.reasoning.then)
        self._tokens.append(token)

    def rollback(self, count: int) -> None:
        """Remove the last `count` tokens from the answer."""
        left = len(self._tokens) - count
        if self._begin is not None:
            self.inner.rollback(min(count, max(len(self._tokens) - self._begin, 0)))
            if self.reasoning.free and left <= self._begin - 1 - len(self.reasoning.then):
                self._begin = None
        del self._tokens[left:]


def after_thinking(
    inner: TokenMatcher,
    tokenizer: Any,
    prompt: str,
    enable_thinking: bool | None,
    size: int,
    banned: Sequence[int],
    budget: int | None = None,
) -> TokenMatcher:
    """Return a matcher for the answer to a rendered conversation; its constraint begins after the reasoning, if any.

    Args:
        inner: tracks the answer after the reasoning.
        prompt: rendered conversation up to the start of the answer.
        enable_thinking: the value passed to the chat template.
        size: vocabulary size.
        banned: ids that are not allowed in the reasoning.
        budget: maximum number of reasoning tokens; None for no limit.

    Raises:
        InputError: the tokenizer has no token for the closing tag.
    """
    if prompt.rfind(OPEN) > prompt.rfind(CLOSE):
        reasoning = Reasoning.for_tokenizer(tokenizer, opened=True, budget=budget)
    elif prompt.rstrip().endswith(CLOSE) or enable_thinking is False or not switches_thinking(tokenizer):
        return inner
    else:
        reasoning = Reasoning.for_tokenizer(tokenizer, opened=False, budget=budget)
    return AfterThinking(inner, reasoning, size, banned)


def switches_thinking(tokenizer: Any) -> bool:
    """Return whether the chat template can disable thinking; if so, the model thinks unless it is disabled."""
    probe = [{"role": "user", "content": "?"}]
    on, off = (
        tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    )
    return on != off
