"""`train()`: from files of data to a trained model or adapter in a folder."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import remove
from ..folders import check_target_free
from .datasets import (
    classification_rows,
    encode_texts,
    language_examples,
    question_examples,
    same_labels,
    token_examples,
    token_labels,
    token_rows,
)
from .files import data_hash, find_files
from .fitting import Base, fit, load_base, make_objective, token_limit
from .labels import REGRESSION, Labels, class_weights, imbalance
from .objectives import Example
from .options import TrainingOptions
from .output import identity_of, write_output
from .report import TrainingReport
from .trainer import Progress

TASKS = ("text-classification", "token-classification", "question-answering", "text-generation")
HELD_OUT_FROM = 50
"""Rows from which on a tenth is held out where no validation file is given."""


def train(
    task: str,
    data: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    revision: str | None = None,
    valid: str | Path | None = None,
    method: str = "head",
    text_column: str = "text",
    label_column: str = "label",
    regression: bool = False,
    mask_prompt: bool = False,
    validation_split: float = 0.1,
    pooling: str = "auto",
    dtype: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> TrainingReport:
    """Fine-tune a model on files and write the result into a folder.

    Args:
        task: "text-classification", "token-classification", "question-answering" or "text-generation".
        data: a file, or a folder with train.* and perhaps valid.*: csv, tsv, jsonl, json, parquet; CoNLL for tokens.
        output: the folder to write: a checkpoint for "head" and "full", a PEFT adapter for "lora" and "dora".
        model: a folder or Hub repository; None for the bundled model. revision: of the Hub repository.
        valid: a file of held-out rows; without one, `validation_split` of 50 rows or more is held out.
        method: "head", "lora", "dora" or "full".
        text_column, label_column: their names in tables.
        regression: whether the labels are numbers to predict.
        mask_prompt: whether only completions, or last messages, count in text generation.
        pooling: what the head of a text classifier sees: "last" for the last token, "mean" for the mean over the
            tokens, "auto" for the better one with the method "head" and the last token with the others.
        dtype: to compute in.
        resume: go on from the state of a training that was interrupted.
        force: replace an existing output.
        progress: called with rows of the log.
        command: the command line, for the card.
        **options: see `TrainingOptions`.

    Returns:
        The report, with metrics and baselines.

    Raises:
        InputError: an unknown option, or data that cannot be used; names the file and the line.
        CheckpointError: the output exists, or cannot be written.
        MemoryFitError, TrainingError, QuantizationError: see there.
    """
    if task not in TASKS:
        raise InputError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    chosen = training_options({"method": method, **options})
    if task == "text-generation" and method == "head":
        raise InputError("text generation has no head of its own to train. Use method lora, dora or full")
    if pooling not in ("auto", "last", "mean"):
        raise InputError(f"pooling is {pooling!r}, expected 'auto', 'last' or 'mean'")
    if not 0 <= validation_split < 1:
        raise InputError(f"validation_split is {validation_split!r}, expected a number from 0 to below 1")
    target = Path(os.path.abspath(os.path.expanduser(output)))
    check_target_free(target, force)
    train_file, valid_file = find_files(data, valid)
    task = "text-regression" if regression and task == "text-classification" else task
    prepared = _prepare(
        task, train_file, valid_file, model, revision, chosen, text_column, label_column, mask_prompt, dtype
    )
    examples, held = prepared.train, prepared.valid
    if held is None:
        examples, held = _split(examples, prepared.labels, validation_split, chosen.seed)
    report = TrainingReport(task, method, prepared.base.source, len(examples), labels=prepared.names)
    report.data_sha256 = data_hash(train_file, valid_file)
    report.remarks += prepared.remarks
    state_folder = target.parent / f".{target.name}.training"
    identity = identity_of(
        chosen, task, report.data_sha256, prepared.base.source, mask_prompt, validation_split, pooling
    )
    if not resume and state_folder.exists():
        remove(state_folder)
    problem = prepared.labels.problem if prepared.labels else ""
    objective = make_objective(prepared.base, task, prepared.names, problem)
    fitted = fit(
        prepared.base,
        objective,
        examples,
        held,
        chosen,
        report,
        pooling=pooling,
        folder=state_folder,
        identity=identity,
        progress=progress,
    )
    extra = {"classes": prepared.labels.classes, "problem_type": problem} if prepared.labels else {}
    write_output(fitted, target, extra=extra, command=command, force=force)
    report.output = str(output)
    remove(state_folder)
    return report


def training_options(options: dict[str, Any]) -> TrainingOptions:
    """Return checked options.

    Raises:
        InputError: an unknown name or a wrong value.
    """
    known = [field.name for field in dataclasses.fields(TrainingOptions)]
    for name in options:
        if name not in known:
            raise InputError(f"unknown option {name!r}. Expected one of {', '.join(known)}")
    return TrainingOptions(**options)


@dataclasses.dataclass
class _Prepared:
    base: Base
    train: list[Example]
    valid: list[Example] | None
    names: list[str]
    labels: Labels | None = None
    remarks: list[str] = dataclasses.field(default_factory=list)


def _prepare(
    task: str,
    train_file: Path,
    valid_file: Path | None,
    model: str | Path | None,
    revision: str | None,
    options: TrainingOptions,
    text_column: str,
    label_column: str,
    mask_prompt: bool,
    dtype: str | None,
) -> _Prepared:
    """Read the data before the model, so that what is wrong with them is said at once."""
    load = partial(load_base, model, task, options.method, dtype, revision)
    if task in ("text-classification", "text-regression"):
        regression = task == "text-regression"
        texts, labels = classification_rows(train_file, text_column, label_column, regression)
        weights = class_weights(labels, options.class_weights)
        held = None
        if valid_file is not None:
            held_texts, held_labels = classification_rows(valid_file, text_column, label_column, regression, least=1)
            held = held_texts, same_labels(held_labels, labels, valid_file)
        base = load(**label_fields(labels))
        limit = token_limit(base, options)
        train = text_examples(base, texts, labels, weights, limit)
        valid = None if held is None else text_examples(base, held[0], held[1], None, limit)
        names = labels.names if labels.problem != REGRESSION else []
        remarks = [remark for remark in [imbalance(labels, options.class_weights is not None)] if remark]
        return _Prepared(base, train, valid, names, labels, remarks)
    if options.class_weights is not None:
        raise InputError(f"class_weights is for text classification, not for {task}. Leave it out")
    if task == "token-classification":
        rows = token_rows(train_file, text_column, label_column)
        held_rows = None if valid_file is None else token_rows(valid_file, text_column, label_column)
        names = token_labels(rows)
        if len(names) < 2:
            raise InputError(f"{train_file}: all tokens have the label {names[0]!r}. Give rows with other labels")
        base = load(id2label=dict(enumerate(names)))
        limit = token_limit(base, options)
        train = token_examples(rows, base.tokenizer, names, limit, train_file)
        valid = None
        if held_rows is not None and valid_file is not None:
            valid = token_examples(held_rows, base.tokenizer, names, limit, valid_file)
        return _Prepared(base, train, valid, names)
    base = load()
    limit = token_limit(base, options)

    def read(path: Path) -> list[Example]:
        if task == "question-answering":
            return question_examples(path, base.tokenizer, min(limit, options.max_length or 384))
        return language_examples(path, base.tokenizer, min(limit, options.max_length or 2048), mask_prompt)

    return _Prepared(base, read(train_file), None if valid_file is None else read(valid_file), [])


def label_fields(labels: Labels) -> dict[str, Any]:
    """Return the fields of a configuration that labels decide."""
    return {"id2label": dict(enumerate(labels.names)), "problem_type": labels.problem}


def text_examples(
    base: Base, texts: list[str], labels: Labels, weights: list[float] | None, limit: int
) -> list[Example]:
    """Return the examples of texts with their labels."""
    rows = encode_texts(base.tokenizer, texts, limit)
    weights = weights or [1.0] * len(rows)
    return [Example(ids, target, w) for ids, target, w in zip(rows, labels.targets, weights, strict=True)]


def _split(
    examples: list[Example], labels: Labels | None, share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the examples, of each label alike; a label with one example stays in training."""
    if len(examples) < HELD_OUT_FROM or not share:
        return examples, []
    rng = np.random.default_rng([seed, 1])
    groups: dict[Any, list[int]] = {}
    for index, example in enumerate(examples):
        single = labels is not None and labels.problem == "single_label_classification"
        groups.setdefault(example.target if single else 0, []).append(index)
    held: set[int] = set()
    for rows in groups.values():
        count = min(round(len(rows) * share) or (1 if len(rows) > 4 else 0), len(rows) - 1)
        held |= {rows[i] for i in rng.permutation(len(rows))[:count]}
    kept = [example for index, example in enumerate(examples) if index not in held]
    return kept, [examples[index] for index in sorted(held)]
