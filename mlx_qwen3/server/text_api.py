"""Shapes of the responses and stream events of chat and text completions."""

import time
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

from .jobs import Delta, TextJob, TokenLogprob
from .streams import sse


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
        return {**own, "top_logprobs": [self._entry(token, value) for token, value in found.top[:top]]}

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

    def choice(self, delta: Delta) -> dict[str, Any]:
        """Return the choice of an event."""
        logprobs = self._logprobs(delta.logprobs) if delta.logprobs and self.top is not None else None
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

    def _logprobs(self, found: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        texts = [self.tokens.text_of(one.token) for one in found]
        offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
        tops = [{self.tokens.text_of(token): value for token, value in one.top[: self.top]} for one in found]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def merge_deltas(deltas: list[Delta]) -> list[Delta]:
    """Merge adjacent deltas of the same choice and kind, and drop empty ones."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        same = last is not None and (last.index, last.kind) == (delta.index, delta.kind) and delta.kind != "tool"
        if last is None or not same or last.finish_reason is not None or delta.finish_reason is not None:
            found.append(delta)
            continue
        found[-1] = Delta(delta.index, delta.kind, last.text + delta.text, last.logprobs + delta.logprobs)
    return [delta for delta in found if delta.text or delta.logprobs or delta.call or delta.finish_reason]


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
