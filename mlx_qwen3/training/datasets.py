"""Convert rows of data files to tokenized examples, for each task."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MlxQwen3Error
from ..tokenizer import Tokenizer
from .files import CONLL, Row, field, read_conll, read_rows
from .labels import MANY_VALUES, REGRESSION, SINGLE, Labels, check_labels, check_numbers, check_texts
from .objectives import IGNORED, Example

logger = logging.getLogger(__name__)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Return the ids of texts, truncated to `limit` tokens; log how many were truncated."""
    rows = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    _warn_truncated(sum(len(row) > limit for row in rows), len(rows), limit)
    return [row[:limit] for row in rows]


def _warn_truncated(truncated: int, rows: int, limit: int) -> None:
    if truncated:
        logger.warning("%d of %d texts have more than %d tokens and are truncated", truncated, rows, limit)


# text classification


def read_classification_rows(
    path: Path, text_column: str, label_column: str, regression: bool, least: int = 2
) -> tuple[list[str], Labels]:
    """Return the texts and labels of a file.

    Args:
        least: minimum number of different labels.

    Raises:
        InputError: a column or value is missing; the message names the line.
    """
    rows = read_rows(path)
    locations = [f"{path}: {row.location}" for row in rows]
    texts = check_texts([field(row, text_column, path, "--text-column") for row in rows], text_column, locations)
    values = [_strip_value(field(row, label_column, path, "--label-column")) for row in rows]
    if regression:
        return texts, check_numbers(values, len(rows), label_column, locations)
    numbers = [_parse_number(value) for value in values]
    if None not in numbers:
        fractions = any(number is not None and not number.is_integer() for number in numbers)
        count = len(set(numbers))
        if (fractions and count > 2) or (count > MANY_VALUES and count == len(rows)):
            raise InputError(
                f"{path}: the column {label_column!r} has {count} different numbers"
                f"{' with fractions' if fractions else ''}. Use --regression to predict numbers."
            )
    return texts, check_labels(values, len(rows), label_column, locations, least)


def _strip_value(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _parse_number(value: Any) -> float | None:
    """Return a number, or that of a string that spells one, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def match_labels(labels: Labels, train: Labels, path: Path | str) -> Labels:
    """Map the labels of a validation set to the label ids of the training set.

    Raises:
        InputError: the training set lacks a label, or only one of the two has several labels per row.
    """
    if train.problem == REGRESSION:
        return labels
    if labels.problem != train.problem:
        one = "one label per row, the training data several"
        several = "several labels per row, the training data one"
        raise InputError(f"{path} has {one if labels.problem == SINGLE else several}. Use the same format in both.")
    unseen = [label for label in labels.classes if label not in train.classes]
    if unseen:
        raise InputError(
            f"{path} has labels that the training data do not have: {', '.join(map(repr, unseen[:5]))}. Add rows with "
            "them to the training data, or remove them."
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


def read_token_rows(path: Path, text_column: str, label_column: str) -> list[tuple[Row, list[str] | str, Any]]:
    """Return (row, tokens, labels) or (row, text, spans) for each row of a CoNLL or jsonl file."""
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
            tokens: Any = fields["tokens"]
            if not isinstance(tokens, list) or not isinstance(labels, list) or len(labels) != len(tokens):
                raise InputError(
                    f"{path}: {row.location} does not have one label per token. Give 'tokens' and 'labels'."
                )
            if not tokens:
                raise InputError(f"{path}: {row.location} has no tokens. Remove the row.")
            for kind, values in (("token", tokens), ("label", labels)):
                for value in values:
                    if not isinstance(value, str) or not value.strip():
                        raise InputError(
                            f"{path}: {row.location} has the {kind} {value!r}. Give a string with content."
                        )
            found.append((row, tokens, labels))
            continue
        text = field(row, text_column, path, "--text-column")
        check_texts([text], text_column, [f"{path}: {row.location}"])
        spans = fields.get("spans", fields.get("entities", fields.get(label_column)))
        if not isinstance(spans, list):
            raise InputError(f"{path}: {row.location} has no list of 'spans'. Write [{{'start', 'end', 'label'}}, …].")
        checked = [_check_span(path, row, text, span) for span in spans]
        for first, second in itertools.pairwise(sorted(set(checked))):
            if second[0] < first[1]:
                raise InputError(
                    f"{path}: {row.location} has overlapping spans: {first} and {second}. Keep one label per character."
                )
        found.append((row, text, checked))
    return found


def _check_span(path: Path, row: Row, text: str, span: Any) -> tuple[int, int, str]:
    values: Any = [span.get(name) for name in ("start", "end", "label")] if isinstance(span, dict) else span
    valid = isinstance(values, list) and len(values) == 3 and all(type(index) is int for index in values[:2])
    if not valid or not isinstance(values[2], str) or not values[2].strip():
        raise InputError(f"{path}: {row.location} has an invalid span: {span}. Give 'start', 'end' and 'label'.")
    start, end, label = values
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"{path}: {row.location} has a span outside its text of {len(text)} characters: {span}. Correct it."
        )
    if label == "O" or label.startswith(("B-", "I-")):
        raise InputError(f"{path}: {row.location} has a span with the tag {label!r}. Give a label without B- or I-.")
    return start, end, label


def collect_token_labels(rows: Sequence[tuple[Row, Any, Any]]) -> list[str]:
    """Return the sorted token labels, "O" first; the label of a span gives B-… and I-…."""
    found: set[str] = set()
    for _, text, labels in rows:
        if isinstance(text, str):
            found |= {f"{prefix}-{label}" for _, _, label in labels for prefix in ("B", "I")}
        else:
            found |= set(labels)
            found |= {f"I-{label[2:]}" for label in labels if label.startswith("B-")}
    return ["O", *sorted(found - {"O"}, key=lambda label: (label[2:], label))]


def make_token_examples(
    rows: Sequence[tuple[Row, Any, Any]], tokenizer: Tokenizer, labels: list[str], limit: int, path: Path
) -> list[Example]:
    """Return examples with one label id per token: B-… for the first token of a span, I-… for the others."""
    number = {label: index for index, label in enumerate(labels)}
    examples, truncated = [], 0
    ends: list[int] = []
    for row, text, marks in rows:
        starts: list[int] = []
        if not isinstance(text, str):  # join the words, because the model is later used with texts
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
                label = _find_label(encoding.offsets, index, marks)
            if label not in number:
                raise InputError(
                    f"{path}: {row.location} has the label {label!r}, which the training data lack. Add rows with it."
                )
            target[index] = number[label]
        truncated += len(encoding.ids) > limit
        examples.append(Example(list(encoding.ids[:limit]), target[:limit]))
    _warn_truncated(truncated, len(examples), limit)
    return examples


def _find_label(offsets: Sequence[tuple[int, int]], index: int, spans: Sequence[tuple[int, int, str]]) -> str:
    start, end = offsets[index]
    for first, last, label in spans:
        if start < last and first < end:
            before = index > 0 and offsets[index - 1][1] > first and offsets[index - 1][0] < last
            return f"{'I' if before else 'B'}-{label}"
    return "O"


# question answering


def read_question_examples(path: Path, tokenizer: Tokenizer, limit: int) -> list[Example]:
    """Return windows of contexts with the token span of the answer, in the SQuAD format.

    The format may be nested or have one row per question. Windows and questions without an answer have the span (0, 0).

    Raises:
        InputError: a row has no question or context, or an answer is not in its context.
    """
    examples = []
    for row in read_rows(path):
        where = f"{path}: {row.location}"
        texts = []
        for name in ("question", "context"):
            if name not in row.fields:
                raise InputError(f"{where} has no {name!r}, only {', '.join(map(repr, row.fields))}. Add it.")
            texts += check_texts([row.fields[name]], name, [where])
        answer = _find_answer(row, texts[1], where)
        examples += _split_windows(tokenizer, texts[0], texts[1], answer, limit, where)
    return examples


def _find_answer(row: Row, context: str, where: str) -> tuple[int, int] | None:
    """Return the first and last character of the first answer; None if the question has no answer."""
    fields = row.fields
    impossible = str(fields.get("is_impossible") or "false").lower()
    if impossible not in ("true", "false", "1", "0"):
        raise InputError(f"{where}: is_impossible is {fields['is_impossible']!r}. Give true or false.")
    if impossible in ("true", "1"):
        return None
    answers: Any = fields.get("answers", fields.get("answer"))
    if answers is None:
        raise InputError(f"{where} has no 'answers'. Give them, or an empty list if the question has no answer.")
    if isinstance(answers, str):
        answers = [{"text": answers, "answer_start": fields.get("answer_start")}]
    elif isinstance(answers, dict) and isinstance(answers.get("text"), list):
        starts = answers.get("answer_start") or [None] * len(answers["text"])
        if not isinstance(starts, list) or len(starts) != len(answers["text"]):
            raise InputError(f"{where} does not have one answer_start per answer. Correct 'answers'.")
        answers = [{"text": t, "answer_start": s} for t, s in zip(answers["text"], starts, strict=True)]
    elif isinstance(answers, dict):
        answers = [answers]
    if not isinstance(answers, list):
        raise InputError(f"{where}: 'answers' is {answers!r:.60}. Give a list of texts, or SQuAD's format.")
    spans = [_find_span(answer, context, where) for answer in answers]
    return spans[0] if spans else None


def _find_span(answer: Any, context: str, where: str) -> tuple[int, int]:
    values = {"text": answer} if isinstance(answer, str) else answer
    text = values.get("text") if isinstance(values, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has an answer without text: {answer!r:.60}. Correct it or remove it.")
    start = values.get("answer_start")
    if isinstance(start, str) and start.isdecimal():
        start = int(start)  # from a table
    if start in (None, ""):
        start = context.find(text)
        if start < 0:
            raise InputError(f"{where}: the answer {text!r:.60} is not in the context. Correct it.")
    if type(start) is not int or start < 0 or context[start : start + len(text)] != text:
        raise InputError(
            f"{where}: the answer {text!r:.60} is not in the context at {start!r}. Correct answer_start, which counts "
            "characters."
        )
    return start, start + len(text)


def _split_windows(
    tokenizer: Tokenizer, question: str, context: str, answer: tuple[int, int] | None, limit: int, where: str
) -> list[Example]:
    question_ids = tokenizer([question], add_special_tokens=False)["input_ids"][0]
    room = limit - tokenizer.num_special_tokens_to_add(True) - len(question_ids)
    if room < 8:
        raise InputError(
            f"{where}: the question has {len(question_ids)} tokens, which leaves no room for its context. Raise "
            "max_length."
        )
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


def read_language_examples(
    path: Path, tokenizer: Tokenizer, limit: int, mask_prompt: bool, text_column: str = "text"
) -> list[Example]:
    """Return examples of rows with "text", "prompt" and "completion", or "messages", the formats of mlx-lm.

    Args:
        mask_prompt: compute the loss of the completion or the last message only.
        text_column: name of the key "text".

    Raises:
        InputError: rows of another format, or `mask_prompt` with plain texts.
    """
    examples, truncated = [], 0
    rows = read_rows(path)
    for row in rows:
        fields, where = row.fields, f"{path}: {row.location}"
        first = 1
        if "messages" in fields or ("prompt" in fields and "completion" in fields):
            messages = fields.get("messages")
            if messages is None:
                pair = check_texts([fields["prompt"], fields["completion"]], "prompt and completion", [where, where])
                messages = [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
            if not isinstance(messages, list) or len(messages) < 2:
                raise InputError(f"{where}: 'messages' is not a list of at least two messages. Give a conversation.")
            tools = fields.get("tools")
            try:
                ids = tokenizer.apply_chat_template(messages, tools=tools)
                if mask_prompt:
                    generation = messages[-1].get("role") == "assistant"
                    prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=generation)
                    first = _count_common(prompt, ids)
            except MlxQwen3Error as error:
                raise type(error)(f"{where}: {error}") from None
        elif text_column in fields:
            if mask_prompt:
                raise InputError(f"{where}: mask_prompt needs prompts. Give 'prompt' and 'completion', or 'messages'.")
            text = check_texts([fields[text_column]], text_column, [where])[0]
            ids = tokenizer([text], return_attention_mask=False)["input_ids"][0]
            if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
                ids = [*ids, tokenizer.eos_token_id]
        else:
            known = ", ".join(map(repr, fields))
            raise InputError(f"{where} has the keys {known}. Give 'text', 'prompt' and 'completion', or 'messages'.")
        truncated += len(ids) > limit
        ids = ids[:limit]
        if len(ids) > max(first, 1):
            examples.append(Example(list(ids), first))
    _warn_truncated(truncated, len(rows), limit)
    if len(examples) < len(rows):
        logger.warning("%d of %d rows have no token to train on and are omitted", len(rows) - len(examples), len(rows))
    if not examples:
        raise InputError(f"{path}: no row has a token to train on. Give longer texts, or raise max_length.")
    return examples


def _count_common(prompt: Sequence[int], ids: Sequence[int]) -> int:
    count = 0
    for a, b in zip(prompt, ids, strict=False):
        if a != b:
            break
        count += 1
    return max(count, 1)
