"""A constraint that begins when the reasoning is finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InputError
from .token_masks import Mask, forbid, only

OPEN, CLOSE = "<think>", "</think>"


class TokenMatcher(Protocol):
    """Follows an answer under a constraint; see `constraints`."""

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
    """What comes before a constrained answer.

    first: ids that come first, such as the opening tag. free: whether reasoning follows them, up to `close`, the id of
    the closing tag, and `then`, the ids after it. budget: tokens of reasoning at most; None for no limit.
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
            opened: the prompt ends with the opening tag. free: the model reasons; else the reasoning is empty.
            budget: tokens of reasoning at most.

        Raises:
            InputError: the tokenizer has no tokens for the tags.
        """
        first = "" if opened else f"{OPEN}\n" if free else f"{OPEN}\n\n{CLOSE}\n\n"
        close, ids, then = (
            list(tokenizer.encode(text, add_special_tokens=False)) if text else [] for text in (CLOSE, first, "\n\n")
        )
        if len(close) != 1:
            raise InputError(
                "this tokenizer has no token </think>, so a constraint cannot follow it. Turn thinking off"
            )
        return cls(tuple(ids), free, close[0], tuple(then), budget)


class AfterThinking:
    """A matcher whose constraint begins after the reasoning, in which no ending token is allowed.

    Args:
        inner: follows the answer. size: of the vocabulary. banned: ids that the reasoning must not hold.
    """

    def __init__(self, inner: TokenMatcher, reasoning: Reasoning, size: int, banned: Sequence[int]):
        self.inner, self.reasoning = inner, reasoning
        self._size = size
        self._inside = only([], size)
        self._inside[:] = 0xFFFFFFFF
        forbid(self._inside, [token for token in banned if token != reasoning.close])
        self._tokens: list[int] = []
        self._begin = None if reasoning.free else len(reasoning.first)

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._answering and self.inner.complete

    @property
    def finished(self) -> bool:
        """Whether nothing but an ending token may follow."""
        return self._answering and self.inner.finished

    @property
    def _answering(self) -> bool:
        return self._begin is not None and len(self._tokens) >= self._begin

    def mask(self) -> Mask | None:
        """Return the tokens that may come next."""
        if self._answering:
            return self.inner.mask()
        forced = self.forced()
        if forced:
            return only(forced[:1], self._size)
        mask = self._inside
        if len(self._tokens) == len(self.reasoning.first):  # some reasoning, if there is to be any
            mask = mask.copy()
            forbid(mask, [self.reasoning.close])
        return mask

    def forced(self) -> list[int]:
        """Return the tokens that must come next."""
        count, first = len(self._tokens), self.reasoning.first
        if count < len(first):
            return list(first[count:])
        if self._begin is None:
            budget = self.reasoning.budget
            over = budget is not None and count - len(first) >= budget
            return [self.reasoning.close, *self.reasoning.then] if over else []
        return self.inner.forced() if count >= self._begin else list(self.reasoning.then[count - self._begin :])

    def accept(self, token: int) -> None:
        """Go on with a token."""
        if self._answering:
            self.inner.accept(token)
        elif token == self.reasoning.close and len(self._tokens) >= len(self.reasoning.first) and self._begin is None:
            self._begin = len(self._tokens) + 1 + len(self.reasoning.then)
        self._tokens.append(token)

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""
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
    """Return a matcher for the answer to a rendered conversation, whose constraint begins after the reasoning.

    Args:
        prompt: ends where the answer begins. enable_thinking: as the template got it. budget: tokens of reasoning at
            most.
    """
    if prompt.rfind(OPEN) > prompt.rfind(CLOSE):
        reasoning = Reasoning.for_tokenizer(tokenizer, opened=True, budget=budget)
    elif prompt.rstrip().endswith(CLOSE) or enable_thinking is False or not switches_thinking(tokenizer):
        return inner
    else:
        reasoning = Reasoning.for_tokenizer(tokenizer, opened=False, budget=budget)
    return AfterThinking(inner, reasoning, size, banned)


def switches_thinking(tokenizer: Any) -> bool:
    """Tell whether the chat template can turn thinking off, so that a model thinks where it does not."""
    probe = [{"role": "user", "content": "?"}]
    on, off = (
        tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    )
    return on != off
