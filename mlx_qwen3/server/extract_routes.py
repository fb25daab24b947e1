"""Extraction of JSON values that conform to a schema: one constrained answer per text."""

import asyncio
import json
import uuid
from functools import partial
from typing import Any

from ..chat.modes import ThinkingSupport
from ..errors import MlxQwen3Error
from ..generation.constrained_answer import matcher_for
from ..generation.constraints import compile_constraint
from ..tasks.extraction import INSTRUCTION, extraction_messages
from .errors import invalid
from .jobs import Delta, TextJob, TextOptions
from .models import Models, ServedModel
from .prompts import check_count, check_length, check_room
from .schemas import ExtractBody
from .settings import ServerSettings
from .text_api import usage_of


def extraction_jobs(models: Models, settings: ServerSettings, body: ExtractBody) -> tuple[ServedModel, list[Any]]:
    """Return the model, and the (prompt ids, `TextOptions`) of each text.

    Raises:
        ApiError: 400 for an invalid schema or text, 404 for an unknown model.
    """
    served = models.find(body.model, "chat")
    if not isinstance(body.json_schema, dict):
        raise invalid("schema", "it is not a JSON schema. Send an object.")
    try:
        constraint = compile_constraint("schema", body.json_schema, served.tokenizer)
    except MlxQwen3Error as error:
        raise invalid("schema", str(error)) from None
    if served.thinking is None:
        raise invalid("model", f"{served.name!r} has no chat template, which extraction requires. Use another model.")
    variables = {"enable_thinking": False} if served.thinking is ThinkingSupport.OPTIONAL else {}
    texts = [body.input] if isinstance(body.input, str) else body.input
    check_count(len(texts), settings, "input")
    ends = sorted(served.ends)
    found = []
    for index, text in enumerate(texts):
        where = f"input[{index}]" if len(texts) > 1 else "input"
        if not text.strip():
            raise invalid(where, "it is empty. Send a non-empty string.")
        messages = extraction_messages(text, body.json_schema, body.instruction or INSTRUCTION)
        try:
            prompt = served.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **variables
            )
            check_length(served, prompt, where)
            ids = list(served.tokenizer.encode(prompt, add_special_tokens=False))
        except MlxQwen3Error as error:
            raise invalid(where, str(error)) from None
        check_room(served, ids, where)
        thinking = None if served.thinking is not ThinkingSupport.OPTIONAL else False
        options = TextOptions(body.max_tokens or settings.max_tokens, thinking=False)
        options.constraint = partial(matcher_for, constraint, served.tokenizer, ends, prompt, thinking)
        found.append((ids, options))
    return served, found


async def extract(api: Any, request: Any, body: ExtractBody) -> dict[str, Any]:
    """Extract one value per text; `data` is null if `max_tokens` cut off the answer."""
    served, prepared = await asyncio.to_thread(extraction_jobs, api.models, api.settings, body)
    jobs = [TextJob(served, ids, options) for ids, options in prepared]
    choices = await api.gather(request, jobs)
    results = []
    for index, deltas in enumerate(choices):
        text = "".join(delta.text for delta in deltas if delta.kind == "answer")
        reason = _finish_reason(deltas)
        data = json.loads(text) if reason == "stop" else None
        results.append({"index": index, "data": data, "text": text, "finish_reason": reason})
    return {
        "id": uuid.uuid4().hex,
        "object": "list",
        "model": served.name,
        "results": results,
        "usage": usage_of(jobs),
    }


def _finish_reason(deltas: list[Delta]) -> str | None:
    return next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), None)
