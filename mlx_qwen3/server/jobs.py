"""Requests and events exchanged between the event loop of the HTTP side and the engine's thread."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation.config import GenerationConfig
from ..generation.options import GenerationOptions
from .errors import ApiError


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token, and those of the most likely tokens at its position.

    Clients may leave many of them unread. Arrays take a tenth of the memory of lists of Python numbers.

    Attributes:
        token: id of the token.
        logprob: its log-probability.
        ids: ids of the most likely tokens, int32.
        values: their log-probabilities, float32.
    """

    token: int
    logprob: float
    ids: "array[int]"
    values: "array[float]"

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return (id, log-probability) of the `count` most likely tokens."""
        return list(zip(self.ids[:count], self.values[:count], strict=True))


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step adds to one choice of an answer.

    Attributes:
        index: index of the choice.
        kind: "reasoning", "answer" or "tool".
        text: new text of the reasoning or the answer.
        logprobs: log-probabilities of new tokens.
        finish_reason: set in the last delta of a choice.
        call: a tool call in OpenAI's shape, if the kind is "tool".
    """

    index: int
    kind: str = "answer"
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    call: Any = None


class Job:
    """A request for the engine. Create it in the event loop that reads its events.

    The engine's thread posts the events. `cancel` may be called from any thread.
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
        """Add events. Call it in the event loop."""
        self._events += events
        self._wake.set()

    async def read(self) -> AsyncIterator[list[Any]]:
        """Yield lists of new events until the last one.

        Raises:
            ApiError: the request has failed in the engine.
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
        """Mark the request as cancelled, so that the engine drops it."""
        self.cancelled = True


@dataclass
class TextOptions:
    """How the tokens of a request are sampled and converted to text.

    Attributes:
        max_tokens: maximum number of tokens per choice.
        choices: number of choices.
        generation: sampling, processors and stop strings; greedy by default. With a seed, choice i uses seed + i.
        logprobs: number of most likely tokens to report with each token; None for no log-probabilities.
        thinking: True if the prompt ends inside the reasoning, False if the answer may begin with reasoning, None for
            text without reasoning.
        constraint: function that returns the matcher of a choice; None without a constraint.
        tools: function that returns a parser of tool calls; None without tools.
    """

    max_tokens: int
    choices: int = 1
    generation: GenerationOptions = field(default_factory=lambda: GenerationOptions(GenerationConfig()))
    logprobs: int | None = None
    thinking: bool | None = None
    constraint: Any = None
    tools: Any = None


class TextJob(Job):
    """A prompt to complete. Each event is a `Delta`."""

    def __init__(self, served: Any, prompt: list[int], options: TextOptions):
        super().__init__()
        self.served, self.prompt, self.options = served, prompt, options
        self.cached_tokens = 0
        self.completion_tokens = 0


class TaskJob(Job):
    """Rows for an embedding, reranking or classification task. The single event is the list of results.

    Args:
        task: the `ServedTask`.
        options: options of the task; rows of jobs with the same task and options are computed in one batch.
        rows: the inputs.
        pieces: the encoded rows.
    """

    def __init__(self, task: Any, options: Any, rows: list[Any], pieces: list[Any]):
        super().__init__()
        self.task, self.options, self.rows, self.pieces = task, options, rows, pieces
        self.results: list[Any] = []

    @property
    def key(self) -> tuple[int, Any]:
        """The task and options, which jobs in one batch share."""
        return id(self.task), repr(self.options)
