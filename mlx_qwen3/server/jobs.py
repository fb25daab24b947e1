"""What passes between the HTTP side, which runs in an event loop, and the engine's thread."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ApiError


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability, and the most likely tokens at that position, as (id, log-probability) pairs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Delta:
    """What a step adds to one choice of an answer.

    kind: "reasoning", "answer" or "tool" (a piece of a tool call's text).
    finish_reason: set in the last delta of a choice.
    """

    index: int
    kind: str = "answer"
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    call: Any = None


class Job:
    """A request on its way through the engine. Created in the event loop that waits for it.

    Events are posted by the engine's thread and read in the loop; `cancel` may be called from either.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: list[Any] = []
        self._wake = asyncio.Event()
        self.created = time.monotonic()
        self.cancelled = False
        self.closed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that reads the events."""
        return self._loop

    def deliver(self, events: Sequence[Any]) -> None:
        """Add events; runs in the loop."""
        self._events += events
        self._wake.set()

    async def read(self) -> AsyncIterator[list[Any]]:
        """Yield the events as they come, those that came together in one list; ends after the last one.

        Raises:
            ApiError: the engine has refused or failed the request.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            found = [event for event in events if event is not None and not isinstance(event, ApiError)]
            if found:
                yield found
            for event in events:
                if isinstance(event, ApiError):
                    raise event
                if event is None:
                    return

    def cancel(self) -> None:
        """Ask the engine to drop the request."""
        self.cancelled = True


@dataclass
class TextOptions:
    """How the tokens of a request are chosen and turned into text.

    sampling: arguments of the sampler; None for greedy. With a seed, choice i draws with seed + i.
    processors: keywords of `resolve_options` that change scores.
    logprobs: how many most likely tokens to report with each token; None for no log-probabilities.
    thinking: whether the prompt may be followed by reasoning: True when it has opened it, None where there is none.
    constraint: returns a matcher that the answer must follow; None where it is free.
    tools: returns a parser of tool calls; None where the answer has none.
    """

    max_tokens: int
    choices: int = 1
    sampling: dict[str, Any] | None = None
    processors: dict[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()
    logprobs: int | None = None
    thinking: bool | None = None
    constraint: Any = None
    tools: Any = None


class TextJob(Job):
    """A prompt to continue. Its events are lists of `Delta`, preceded by one `Started`."""

    def __init__(self, served: Any, prompt: list[int], options: TextOptions):
        super().__init__()
        self.served, self.prompt, self.options = served, prompt, options
        self.cached_tokens = 0
        self.completion_tokens = 0


class TaskJob(Job):
    """Rows for an embedding, reranking or classification model. Its single event is the list of results.

    Args:
        task: the task. options: its options; jobs with the same task and options run together.
        rows: as the task has checked them. pieces: their ids, or None when the task needs its model to make them.
    """

    def __init__(self, task: Any, options: Any, rows: list[Any], pieces: list[Any] | None):
        super().__init__()
        self.task, self.options, self.rows, self.pieces = task, options, rows, pieces
        self.results: list[Any] = []

    @property
    def key(self) -> tuple[int, Any]:
        """What jobs that run together share."""
        return id(self.task), repr(self.options)
