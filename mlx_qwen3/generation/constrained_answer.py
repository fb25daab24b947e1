"""Constrained answers: where the constraint begins, when an answer is complete, and how it is parsed."""

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
    """Return the finish_reason after a token, or None if the answer continues.

    Args:
        ended: whether the token is an ending token.
        complete, finished: state of the constraint, as in `Step`; false without a constraint.
        last: whether the token limit is reached.
    """
    if ended or finished:
        return "stop"
    return ("stop" if complete else "length") if last else None


def check_answer(text: str, reason: str | None, *, parse: bool = False, schema: Any = None, **others: Any) -> Any:
    """Check that an answer is complete and return it, parsed if requested.

    Args:
        reason: finish_reason of the answer.
        parse: return an instance of the pydantic model class `schema`, or the JSON value for other schemas.
        others: the other constraints; if there is none, every answer counts as complete.

    Raises:
        IncompleteOutputError: a constrained answer was cut off; the error's `text` is the partial answer.
        InputError: `parse` without a schema, or the model class rejects the value.
    """
    names = [name for name, value in {"schema": schema, **others}.items() if value is not None]
    if names and reason == "length":
        raise IncompleteOutputError(
            f"the answer was cut before its {names[0]} was complete. Increase max_tokens.", text
        )
    if not parse:
        return text
    if schema is None:
        raise InputError("parse needs a schema. Pass one, or omit parse.")
    return parse_answer(schema, text)


def parse_answer(schema: Any, text: str) -> Any:
    """Return the value of a constrained answer: an instance of a pydantic model class, or the JSON value.

    Raises:
        InputError: the model class rejects the value for a reason that is not part of its schema.
    """
    text = text.rpartition(CLOSE)[2].lstrip("\n") if CLOSE in text else text
    if not isinstance(schema, type):
        return json.loads(text)
    try:
        return schema.model_validate_json(text)  # pyright: ignore[reportAttributeAccessIssue]
    except ValueError as problem:
        reason = " ".join(str(problem).split())[:200]
        raise InputError(
            f"{schema.__name__} rejects the answer {text[:80]!r}: {reason}. Check its validators."
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
        ends: ids that end the answer.
        prompt: a rendered conversation; the constraint begins after its reasoning. None for a text, which has no
            reasoning.
        enable_thinking: the value passed to the chat template.
        budget: maximum number of reasoning tokens; None for no limit.
    """
    matcher, tables = constraint.matcher(ends), constraint.tables
    if prompt is None:
        return matcher
    banned = sorted({*tables.added, *ends})
    return after_thinking(matcher, tokenizer, prompt, enable_thinking, len(tables.tokens), banned, budget)


def constrain(matcher: TokenMatcher, decoding: Decoding | None) -> Decoding:
    """Return the decoding strategy under a constraint, which uses the drafts of `decoding` if it is a `Speculation`."""
    if isinstance(decoding, ConstrainedDecoding):
        return decoding
    return ConstrainedDecoding(matcher, decoding if isinstance(decoding, Speculation) else None)
