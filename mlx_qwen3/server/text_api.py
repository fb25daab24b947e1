"""Shapes of the responses and stream events of chat and text completions."""

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from .jobs import Delta, TextJob, TokenLogprob
from .streams import sse

MOST_MERGED = 64
"""Maximum number of deltas per event, which limits the size of the events for a client that has not read for long."""


def usage_of(jobs: Iterable[TextJob]) -> dict[str, Any]:
    """Return the `usage` of requests. A prompt counts once, regardless of the number of its choices."""
    jobs = list(jobs)
    prompt, completion = sum(len(job.prompt) for job in jobs), sum(job.completion_tokens for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(job.cached_tokens for job in jobs)},
    }


class Tokens:
    """Text and bytes of single tokens."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token."""
        return self._tokenizer.token_bytes(token)

    def text_of(self, token: int) -> str:
        """Return the text of a token; bytes that are not valid UTF-8 become U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def chat_logprob(self, found: TokenLogprob, top: int) -> dict[str, Any]:
        """Return the log-probabilities of a token in the shape of chat completions."""
        own = self._entry(found.token, found.logprob)
        return {**own, "top_logprobs": [self._entry(token, value) for token, value in found.top(top)]}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.bytes_of(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


class Shape:
    """Base of the response shapes: id, creation time and model."""

    object_name = ""
    prefix = ""

    def __init__(self, model: str, tokens: Tokens, top_logprobs: int | None):
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.object_name,
            "created": int(time.time()),
            "model": model,
        }
        self.tokens, self.top = tokens, top_logprobs

    def first_events(self, choices: int) -> list[dict[str, Any]]:
        """Return the choices of the events that precede the first token, one per event."""
        return []

    def choice(self, delta: Delta) -> dict[str, Any]:
        """Return the choice of a stream event."""
        raise NotImplementedError

    def whole(self, choices: list[list[Delta]]) -> list[dict[str, Any]]:
        """Return the choices of a whole response from the deltas of each choice."""
        raise NotImplementedError

    async def events(
        self, jobs: list[TextJob], deltas: AsyncIterator[list[Delta]], usage: bool
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream; if `usage` is true, the last one has the usage and no choices."""
        head = {**self.head, "object": self.chunk_name}
        for choice in self.first_events(sum(job.options.choices for job in jobs)):
            yield sse({**head, "choices": [choice], **({"usage": None} if usage else {})})
        async for found in deltas:
            for delta in merge_deltas(found):
                yield sse({**head, "choices": [self.choice(delta)], **({"usage": None} if usage else {})})
        if usage:
            yield sse({**head, "choices": [], "usage": usage_of(jobs)})

    chunk_name = ""


class ChatShape(Shape):
    """Chat completions."""

    object_name, chunk_name, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first_events(self, choices: int) -> list[dict[str, Any]]:
        """Return one choice per event, with the role."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(choices)]

    def choice(self, delta: Delta) -> dict[str, Any]:
        """Return the choice of an event."""
        content: dict[str, Any] = {}
        if delta.kind == "tool":
            content = {"tool_calls": [delta.call]}
        elif delta.text:
            content = {"reasoning_content" if delta.kind == "reasoning" else "content": delta.text}
        logprobs = None
        if delta.logprobs and self.top is not None:
            logprobs = {"content": [self.tokens.chat_logprob(found, self.top) for found in delta.logprobs]}
        return {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def whole(self, choices: list[list[Delta]]) -> list[dict[str, Any]]:
        """Return one message per choice."""
        return [self._message(index, deltas) for index, deltas in enumerate(choices)]

    def _message(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        texts = {kind: "".join(d.text for d in deltas if d.kind == kind) for kind in ("answer", "reasoning")}
        calls = join_calls([delta.call for delta in deltas if delta.kind == "tool"])
        message: dict[str, Any] = {"role": "assistant", "content": texts["answer"]}
        if any(delta.kind == "reasoning" for delta in deltas):
            message["reasoning_content"] = texts["reasoning"]
        if calls:
            message["tool_calls"] = calls
            message["content"] = texts["answer"].strip() or None
        found = [logprob for delta in deltas for logprob in delta.logprobs]
        logprobs = None
        if self.top is not None:
            logprobs = {"content": [self.tokens.chat_logprob(one, self.top) for one in found]}
        reason = next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), "stop")
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


class CompletionShape(Shape):
    """Text completions."""

    object_name, chunk_name, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokens: Tokens, top_logprobs: int | None):
        super().__init__(model, tokens, top_logprobs)
        self._offsets: dict[int, int] = {}  # choice → length of the tokens in earlier events

    def choice(self, delta: Delta) -> dict[str, Any]:
        """Return the choice of an event."""
        logprobs = None
        if delta.logprobs and self.top is not None:
            offset = self._offsets.get(delta.index, 0)
            logprobs = self._logprobs(delta.logprobs, offset)
            self._offsets[delta.index] = offset + sum(map(len, logprobs["tokens"]))
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }

    def whole(self, choices: list[list[Delta]]) -> list[dict[str, Any]]:
        """Return one text per choice."""
        rows = []
        for index, deltas in enumerate(choices):
            found = tuple(logprob for delta in deltas for logprob in delta.logprobs)
            reason = next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), "stop")
            rows.append(
                {
                    "index": index,
                    "text": "".join(delta.text for delta in deltas),
                    "logprobs": self._logprobs(found) if self.top is not None else None,
                    "finish_reason": reason,
                }
            )
        return rows

    def _logprobs(self, found: tuple[TokenLogprob, ...], offset: int = 0) -> dict[str, Any]:
        texts = [self.tokens.text_of(one.token) for one in found]
        offsets = [*accumulate(map(len, texts[:-1]), initial=offset)] if texts else []
        tops = [{self.tokens.text_of(token): value for token, value in one.top(self.top or 0)} for one in found]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def merge_deltas(deltas: Sequence[Delta]) -> Iterator[Delta]:
    """Merge adjacent deltas of the same choice and kind, up to `MOST_MERGED`, and drop empty ones."""
    group: list[Delta] = []
    for delta in deltas:
        if group and (len(group) == MOST_MERGED or not _may_merge(group[-1], delta)):
            yield from _merge(group)
            group = []
        group.append(delta)
    yield from _merge(group)


def _may_merge(first: Delta, second: Delta) -> bool:
    same = (first.index, first.kind) == (second.index, second.kind) and first.kind != "tool"
    return same and first.finish_reason is None and second.finish_reason is None


def _merge(group: Sequence[Delta]) -> list[Delta]:
    """Return a delta for all of a group; no delta if it is empty."""
    if not group:
        return []
    found = group[0]
    if len(group) > 1:
        logprobs = tuple(logprob for delta in group for logprob in delta.logprobs)
        found = Delta(found.index, found.kind, "".join(delta.text for delta in group), logprobs)
    return [found] if found.text or found.logprobs or found.call or found.finish_reason else []


def join_calls(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whole tool calls from the pieces in a stream."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        call = calls.setdefault(
            piece["index"],
            {"id": piece.get("id"), "type": "function", "function": {"name": "", "arguments": ""}},
        )
        function = piece.get("function", {})
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
    return list(calls.values())
