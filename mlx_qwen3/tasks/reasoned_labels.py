"""Classification after reasoning: the model reasons freely about a text, then must choose one of the labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..generation.after_thinking import CLOSE, OPEN, switches_thinking
from ..generation.batching import batch_generate

QUESTION = "{text}\n\nWhich label fits this text best? The labels are: {labels}. Answer with one label only."

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class ReasonedLabel:
    """The label of a text, its probability among the labels given the reasoning, and the reasoning."""

    label: str
    probability: float
    reasoning: str


def question(text: str, labels: Sequence[str]) -> list[dict[str, str]]:
    """Return the messages that ask for the label of a text."""
    # no template is applied to the text, so that braces in it are kept
    content = QUESTION.partition("{text}")[2].replace("{labels}", ", ".join(labels))
    return [{"role": "user", "content": text + content}]


def check_reasons(tokenizer: Any) -> None:
    """Raise `InputError` unless the chat template can switch thinking on and off."""
    if tokenizer.chat_template is None or not switches_thinking(tokenizer):
        raise InputError("think needs a checkpoint whose chat template turns thinking on and off. Leave think out.")


def label_room(labels: Sequence[str]) -> int:
    """Return an upper bound for the tokens of the tags and a label: a token has at least one byte."""
    return 8 + max(len(label.encode()) for label in labels)


def choose_labels(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, str]]],
    labels: Sequence[str],
    budget: int,
    batch_size: int | None = None,
    finished: Callable[[list[int]], None] = lambda rows: None,
) -> list[ReasonedLabel]:
    """Return the label of each prompt.

    Args:
        prompts: messages as `question` returns them.
        budget: maximum tokens of reasoning, after which the label must follow.
        finished: called with the indices of the finished prompts.
    """
    ends = tokenizer.encode(CLOSE, add_special_tokens=False)
    found = batch_generate(
        model,
        tokenizer,
        prompts,
        budget + label_room(labels),
        choices=list(labels),
        enable_thinking=True,
        thinking_budget=budget,
        logprobs=True,
        temperature=0,
        completion_batch_size=batch_size or ROWS_AT_ONCE,
    )
    assert found.logprobs is not None
    results = []
    for text, ids, logprobs in zip(found.texts, found.token_ids, found.logprobs, strict=True):
        reasoning, _, label = text.rpartition(CLOSE)
        start = max((i for i, token in enumerate(ids) if [token] == ends), default=-1) + 1
        chance = math.exp(sum(logprobs[start:]))
        results.append(ReasonedLabel(label.strip(), chance, reasoning.partition(OPEN)[2].strip()))
    finished([*range(len(prompts))])
    return results
