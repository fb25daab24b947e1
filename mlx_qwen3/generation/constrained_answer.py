"""What a constraint changes about an answer: where it begins, when it is whole, and what is made of it."""

import json
from collections.abc import Sequence
from typing import Any

from ..errors import IncompleteOutputError, InputError
from .after_thinking import CLOSE, TokenMatcher, after_thinking
from .constrained import ConstrainedDecoding
from .constraints import Constraint
from .decoding import Decoding
from .speculation import Speculation


def end_reason(ended: bool, complete: bool, finished: bool, last: bool) -> str | None:
    """Return the finish_reason after a token, or None where the answer goes on.

    Args:
        ended: the token ends an answer. complete, finished: of the constraint, as in `Step`; without one a token is
            complete only by `ended`. last: no further token may follow.
    """
    if ended or finished:
        return "stop"
    return ("stop" if complete else "length") if last else None


def whole_answer(text: str, reason: str | None, *, parse: bool = False, schema: Any = None, **others: Any) -> Any:
    """Return an answer that is whole, or what it says.

    Args:
        reason: its finish_reason. parse: return an instance of the pydantic model class that `schema` is, or the JSON
            value. others: the other constraints; where all are None, any answer is whole.

    Raises:
        IncompleteOutputError: the answer was cut; `text` holds what there is.
        InputError: `parse` without a schema, or the class refuses the value.
    """
    names = [name for name, value in {"schema": schema, **others}.items() if value is not None]
    if names and reason == "length":
        raise IncompleteOutputError(f"the answer was cut before its {names[0]} was complete. Raise max_tokens", text)
    if not parse:
        return text
    if schema is None:
        raise InputError("parse needs a schema. Give one, or leave parse out")
    return parsed(schema, text)


def parsed(schema: Any, text: str) -> Any:
    """Return the value of a constrained answer: an instance of a pydantic model class, or the JSON value.

    Raises:
        InputError: the class itself refuses the value, for a reason that its schema does not state.
    """
    text = text.rpartition(CLOSE)[2].lstrip("\n") if CLOSE in text else text
    if not isinstance(schema, type):
        return json.loads(text)
    try:
        return schema.model_validate_json(text)  # pyright: ignore[reportAttributeAccessIssue]
    except ValueError as problem:
        reason = " ".join(str(problem).split())[:200]
        raise InputError(
            f"{schema.__name__} refuses the answer {text[:80]!r}: {reason}. Check its validators"
        ) from None


def matcher_for(
    constraint: Constraint,
    tokenizer: Any,
    ends: Sequence[int],
    prompt: str | None,
    enable_thinking: bool | None,
    budget: int | None = None,
) -> TokenMatcher:
    """Return a matcher for the answer to a prompt.

    Args:
        ends: ids that end the answer. prompt: a rendered conversation, after whose reasoning the constraint begins, or
            None for a text, which has no reasoning. enable_thinking: as the chat template got it. budget: tokens of
            reasoning at most.
    """
    matcher, tables = constraint.matcher(ends), constraint.tables
    if prompt is None:
        return matcher
    banned = sorted({*tables.added, *ends})
    return after_thinking(matcher, tokenizer, prompt, enable_thinking, len(tables.tokens), banned, budget)


def constrained(matcher: TokenMatcher, decoding: Decoding | None) -> Decoding:
    """Return the way to decode under a constraint, with the drafts of another way."""
    if isinstance(decoding, ConstrainedDecoding):
        return decoding
    return ConstrainedDecoding(matcher, decoding if isinstance(decoding, Speculation) else None)
