"""From rows of files to examples of tokens, for each task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..tokenizer import Tokenizer
from .files import CONLL, Row, field, read_conll, read_rows
from .labels import REGRESSION, SINGLE, Labels, check_labels, check_numbers, check_texts
from .objectives import IGNORED, Example

logger = logging.getLogger(__name__)


@dataclass
class DataSet:
    """Examples with what their labels are called.

    Attributes:
        texts: of text classification, for reports.
    """

    examples: list[Example]
    labels: Labels | None = None


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Return the ids of texts, cut to `limit` tokens; how many were cut is logged."""
    rows = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    _report_cut(sum(len(row) > limit for row in rows), len(rows), limit)
    return [row[:limit] for row in rows]


def _report_cut(cut: int, rows: int, limit: int) -> None:
    if cut:
        logger.warning("%d of %d texts have more than %d tokens and are cut", cut, rows, limit)


# text classification


def classification_rows(
    path: Path, text_column: str, label_column: str, regression: bool, least: int = 2
) -> tuple[list[str], Labels]:
    """Return texts and labels of a file.

    Args:
        least: how many different labels there must be.

    Raises:
        InputError: a missing column or value; names the line.
    """
    rows = read_rows(path)
    places = [f"{path}: {row.place}" for row in rows]
    texts = check_texts([field(row, text_column, path, "--text-column") for row in rows], text_column, places)
    values = [_value(field(row, label_column, path, "--label-column")) for row in rows]
    if regression:
        return texts, check_numbers(values, len(rows), label_column, places)
    numbers = [_as_number(value) for value in values]
    fractions = [number for number in numbers if number is not None and not number.is_integer()]
    if fractions and None not in numbers and len(set(numbers)) > 2:
        raise InputError(
            f"{path}: the column {label_column!r} holds {len(set(values))} different numbers with fractions. Use "
            "--regression to predict numbers"
        )
    return texts, check_labels(values, len(rows), label_column, places, least)


def _value(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _as_number(value: Any) -> float | None:
    """Return a float, or a string that is written like one, as a number."""
    if isinstance(value, float):
        return value
    try:
        return float(value) if isinstance(value, str) and "_" not in value else None
    except ValueError:
        return None


def same_labels(labels: Labels, train: Labels, path: Path | str) -> Labels:
    """Number the labels of a validation set as those of the training set.

    Raises:
        InputError: a label that the training set does not have, or several per row in one of them only.
    """
    if train.problem == REGRESSION:
        return labels
    if labels.problem != train.problem:
        one = "one label per row, the training data several"
        several = "several labels per row, the training data one"
        raise InputError(f"{path} has {one if labels.problem == SINGLE else several}. Give both in the same form")
    unseen = [label for label in labels.classes if label not in train.classes]
    if unseen:
        raise InputError(
            f"{path} has labels that the training data do not have: {', '.join(map(repr, unseen[:5]))}. Add rows of "
            "them to the training data, or remove them"
        )
    number = {label: index for index, label in enumerate(train.classes)}
    if train.problem == SINGLE:
        return Labels(SINGLE, train.classes, [number[labels.classes[target]] for target in labels.targets])
    targets = []
    for row in labels.targets:
        held = [0.0] * len(train.classes)
        for label, value in zip(labels.classes, row, strict=True):
            held[number[label]] = value
        targets.append(held)
    return Labels(train.problem, train.classes, targets)


# token classification


def token_rows(path: Path, text_column: str, label_column: str) -> list[tuple[Row, list[str] | str, Any]]:
    """Return (row, tokens with their labels, or text with its spans) of a CoNLL or jsonl file."""
    if path.suffix.lower() in CONLL:
        rows = read_conll(path)
        return [(row, row.fields["tokens"], row.fields["labels"]) for row in rows]
    found = []
    for row in read_rows(path):
        fields = row.fields
        if "tokens" in fields:
            labels = next(
                (fields[name] for name in ("labels", "tags", "ner_tags", label_column) if name in fields), None
            )
            if not isinstance(labels, list) or len(labels) != len(fields["tokens"]):
                raise InputError(f"{path}: {row.place} has not one label per token. Give 'tokens' and 'labels'")
            found.append((row, [str(token) for token in fields["tokens"]], [str(label) for label in labels]))
            continue
        text = field(row, text_column, path, "--text-column")
        check_texts([text], text_column, [f"{path}: {row.place}"])
        spans = fields.get("spans", fields.get("entities", fields.get(label_column)))
        if not isinstance(spans, list):
            raise InputError(f"{path}: {row.place} has no list of 'spans'. Write [{{'start', 'end', 'label'}}, …]")
        found.append((row, text, [_span(path, row, text, span) for span in spans]))
    return found


def _span(path: Path, row: Row, text: str, span: Any) -> tuple[int, int, str]:
    values: Any = [span.get(name) for name in ("start", "end", "label")] if isinstance(span, dict) else span
    good = isinstance(values, list) and len(values) == 3 and all(type(place) is int for place in values[:2])
    if not good or not 0 <= values[0] < values[1] <= len(text) or not isinstance(values[2], str):
        raise InputError(
            f"{path}: {row.place} has a span that is not within its text: {span}. Give start, end and label"
        )
    return values[0], values[1], values[2]


def token_labels(rows: Sequence[tuple[Row, Any, Any]]) -> list[str]:
    """Return the sorted labels of tokens, "O" first; spans become B-… and I-…."""
    found: set[str] = set()
    for _, text, labels in rows:
        if isinstance(text, str):
            found |= {f"{prefix}-{label}" for _, _, label in labels for prefix in ("B", "I")}
        else:
            found |= set(labels)
            found |= {f"I-{label[2:]}" for label in labels if label.startswith("B-")}
    return ["O", *sorted(found - {"O"}, key=lambda label: (label[2:], label))]


def token_examples(
    rows: Sequence[tuple[Row, Any, Any]], tokenizer: Tokenizer, labels: list[str], limit: int, path: Path
) -> list[Example]:
    """Return examples with a label id per token: the first token of a span begins it, the others go on with it."""
    number = {label: index for index, label in enumerate(labels)}
    examples, cut = [], 0
    ends: list[int] = []
    for row, text, marks in rows:
        starts: list[int] = []
        if not isinstance(text, str):  # words become a text, as a model reads it later
            starts = [sum(len(word) + 1 for word in text[:i]) for i in range(len(text))]
            ends = [start + len(word) for start, word in zip(starts, text, strict=True)]
            text = " ".join(text)
        encoding = tokenizer([text], return_attention_mask=False)[0]
        target = [IGNORED] * len(encoding.ids)
        before = -1
        for index, special in enumerate(encoding.special_tokens_mask):
            if special:
                continue
            if starts:
                first, last = encoding.offsets[index]
                word = next((i for i in range(len(starts)) if starts[i] < last and first < ends[i]), None)
                if word is None:
                    continue
                label = marks[word]
                label = f"I-{label[2:]}" if word == before and label.startswith("B-") else label
                before = word
            else:
                label = _label_at(encoding.offsets, index, marks)
            if label not in number:
                raise InputError(
                    f"{path}: {row.place} has the label {label!r}, which the training data do not have. Add rows of it"
                )
            target[index] = number[label]
        cut += len(encoding.ids) > limit
        examples.append(Example(list(encoding.ids[:limit]), target[:limit]))
    _report_cut(cut, len(examples), limit)
    return examples


def _label_at(offsets: Sequence[tuple[int, int]], index: int, spans: Sequence[tuple[int, int, str]]) -> str:
    start, end = offsets[index]
    for first, last, label in spans:
        if start < last and first < end:
            before = index > 0 and offsets[index - 1][1] > first and offsets[index - 1][0] < last
            return f"{'I' if before else 'B'}-{label}"
    return "O"


# question answering


def question_examples(path: Path, tokenizer: Tokenizer, limit: int) -> list[Example]:
    """Return windows of contexts with the tokens of the answer, from SQuAD's form, nested or a row per question.

    A window without the answer, and a question without one, has the answer (0, 0).

    Raises:
        InputError: a row without question, context or answer, or an answer that is not in its context.
    """
    examples = []
    for row in read_rows(path):
        where = f"{path}: {row.place}"
        question = check_texts([field(row, "question", path, "its keys")], "question", [where])[0]
        context = check_texts([field(row, "context", path, "its keys")], "context", [where])[0]
        examples += _windows(tokenizer, question, context, _answer(row, context, where), limit)
    return examples


def _answer(row: Row, context: str, where: str) -> tuple[int, int] | None:
    answers: Any = row.fields.get("answers", row.fields.get("answer"))
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        starts = answers.get("answer_start") or []
        answers = [{"text": t, "answer_start": s} for t, s in zip(answers["text"], starts, strict=False)]
    answers = [answers] if isinstance(answers, dict | str) else answers or []
    if not answers or row.fields.get("is_impossible"):
        return None
    first = {"text": answers[0]} if isinstance(answers[0], str) else answers[0]
    text, start = first.get("text"), first.get("answer_start")
    if isinstance(text, str) and start is None:
        start = context.find(text)
    if not isinstance(text, str) or not text or type(start) is not int or context[start : start + len(text)] != text:
        raise InputError(f"{where}: the answer {text!r} does not stand in the context at {start}. Correct answer_start")
    return start, start + len(text)


def _windows(
    tokenizer: Tokenizer, question: str, context: str, answer: tuple[int, int] | None, limit: int
) -> list[Example]:
    asked = tokenizer([question], add_special_tokens=False)["input_ids"][0]
    room = limit - tokenizer.num_special_tokens_to_add(True) - len(asked)
    if room < 8:
        raise InputError(f"a question of {len(asked)} tokens leaves no room for its context. Raise max_length")
    inputs = tokenizer(
        [question],
        [context],
        truncation="only_second",
        max_length=limit,
        stride=min(128, room // 2),
        return_overflowing_tokens=True,
        return_attention_mask=False,
    )
    examples = []
    for position, ids in enumerate(inputs["input_ids"]):
        encoding = inputs[position]
        target = (0, 0)
        if answer is not None:
            inside = [
                index
                for index, (start, end) in enumerate(encoding.offsets)
                if encoding.sequence_ids[index] != 0
                and not encoding.special_tokens_mask[index]
                and start < answer[1]
                and answer[0] < end
            ]
            whole = inside and encoding.offsets[inside[0]][0] <= answer[0] + 1
            if whole and encoding.offsets[inside[-1]][1] >= answer[1]:
                target = (inside[0], inside[-1])
        examples.append(Example(list(ids), target))
    return examples


# text generation


def language_examples(path: Path, tokenizer: Tokenizer, limit: int, mask_prompt: bool) -> list[Example]:
    """Return examples of rows {"text"}, {"prompt", "completion"} or {"messages"}, as mlx-lm takes them.

    Args:
        mask_prompt: whether only the completion, or the last message, counts.

    Raises:
        InputError: rows of another form, or `mask_prompt` with plain texts.
    """
    examples, cut = [], 0
    for row in read_rows(path):
        fields, where = row.fields, f"{path}: {row.place}"
        first = 1
        if "messages" in fields or ("prompt" in fields and "completion" in fields):
            messages = fields.get("messages")
            if messages is None:
                pair = check_texts([fields["prompt"], fields["completion"]], "prompt and completion", [where, where])
                messages = [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
            if not isinstance(messages, list) or len(messages) < 2:
                raise InputError(f"{where}: 'messages' is no list of two messages or more. Give a conversation")
            tools = fields.get("tools")
            ids = tokenizer.apply_chat_template(messages, tools=tools)
            if mask_prompt:
                generation = messages[-1].get("role") == "assistant"
                prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=generation)
                first = _common(prompt, ids)
        elif "text" in fields:
            if mask_prompt:
                raise InputError(f"{where}: mask_prompt needs prompts. Give 'prompt' and 'completion', or 'messages'")
            text = check_texts([fields["text"]], "text", [where])[0]
            ids = tokenizer([text], return_attention_mask=False)["input_ids"][0]
            if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
                ids = [*ids, tokenizer.eos_token_id]
        else:
            known = ", ".join(map(repr, fields))
            raise InputError(f"{where} has the keys {known}. Give 'text', 'prompt' and 'completion', or 'messages'")
        cut += len(ids) > limit
        ids = ids[:limit]
        if len(ids) > max(first, 1):
            examples.append(Example(list(ids), first))
    _report_cut(cut, len(examples), limit)
    if not examples:
        raise InputError(f"{path}: no row has a token to learn. Give longer texts, or raise max_length")
    return examples


def _common(prompt: Sequence[int], ids: Sequence[int]) -> int:
    count = 0
    for a, b in zip(prompt, ids, strict=False):
        if a != b:
            break
        count += 1
    return max(count, 1)
