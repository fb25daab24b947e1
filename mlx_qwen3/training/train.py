"""`train()`: train a model or an adapter on data files and save it in a folder."""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import remove
from ..folders import contains
from .datasets import (
    collect_token_labels,
    encode_texts,
    make_token_examples,
    match_labels,
    read_classification_rows,
    read_language_examples,
    read_question_examples,
    read_token_rows,
)
from .files import data_hash, find_files
from .fitting import Base, fit, load_base, make_objective, token_limit
from .labels import REGRESSION, Labels, class_weights, describe_imbalance
from .objectives import Example
from .options import TrainingOptions
from .output import compute_identity, resolve_output, write_output
from .report import TrainingReport
from .state import locate_state
from .trainer import Progress

logger = logging.getLogger(__name__)

TASKS = ("text-classification", "token-classification", "question-answering", "text-generation")
HELD_OUT_FROM = 50
"""Minimum number of rows to hold out `validation_split` of them if there is no validation file."""


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
    """Fine-tune a model on data files and save the result in a folder.

    Args:
        task: "text-classification", "token-classification", "question-answering" or "text-generation".
        data: a file (csv, tsv, jsonl, json, parquet; CoNLL for token classification), or a folder with train.* and
            optionally valid.*.
        output: folder to write: a checkpoint for "head" and "full", a PEFT adapter for "lora" and "dora".
        model: a folder or Hub repository; None for the bundled model.
        revision: revision of the Hub repository.
        valid: a file with held-out rows. Without it, `validation_split` of the rows is held out if there are at least
            50.
        method: "head", "lora", "dora" or "full".
        text_column, label_column: names of the columns.
        regression: whether the labels are numbers to predict.
        mask_prompt: for text generation, compute the loss of completions or last messages only.
        validation_split: share of the rows to hold out.
        pooling: input of a text classifier's head: "last" for the last token, "mean" for the mean over the tokens,
            "auto" for the better one with the method "head" and the last token with other methods.
        dtype: dtype of the computation.
        resume: resume an interrupted training from its saved state.
        force: replace an existing output.
        progress: called with each entry of the log.
        command: the command line, for the model card.
        **options: see `TrainingOptions`.

    Returns:
        The report, with metrics and baselines.

    Raises:
        InputError: an unknown option, or invalid data; the message names the file and the line.
        CheckpointError: the output exists or cannot be written.
        MemoryFitError: the training needs more memory than the machine has.
        TrainingError: the training diverged before there were weights to keep.
        QuantizationError: `method` is "full" and the base is quantized.
    """
    if task not in TASKS:
        raise InputError(f"task is {task!r}, expected one of {', '.join(TASKS)}.")
    chosen = training_options({"method": method, **options})
    if task == "text-generation" and method == "head":
        raise InputError("text generation has no head of its own to train. Use method lora, dora or full.")
    if pooling not in ("auto", "last", "mean"):
        raise InputError(f"pooling is {pooling!r}, expected 'auto', 'last' or 'mean'.")
    if regression and task != "text-classification":
        raise InputError(f"regression is not supported for {task}. Omit it.")
    if mask_prompt and task != "text-generation":
        raise InputError(f"mask_prompt is not supported for {task}. Omit it.")
    if isinstance(validation_split, str | bytes | None) or not 0 <= validation_split < 1:
        raise InputError(f"validation_split is {validation_split!r}, expected a number from 0 to below 1.")
    target = resolve_output(output, force)
    train_file, valid_file = find_files(data, valid)
    _check_inputs_outside(target, train_file, valid_file, model)
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
    state_folder = locate_state(target)
    identity = compute_identity(
        chosen, task, report.data_sha256, prepared.base.source, mask_prompt, validation_split, pooling
    )
    if not resume and state_folder.exists():
        logger.warning(
            "%s, the saved state of an interrupted training, is discarded because resume is off", state_folder
        )
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


def _check_inputs_outside(target: Path, *inputs: str | Path | None) -> None:
    """Raise `InputError` if the target is or contains an input, which would be lost when the target is replaced."""
    for given in inputs:
        path = None if given is None else Path(os.path.expanduser(given))
        if path is not None and path.exists() and contains(target, path):
            raise InputError(f"the output {target} contains {given}, which is needed. Choose another output.")


def training_options(options: dict[str, Any]) -> TrainingOptions:
    """Create training options from keyword arguments.

    Raises:
        InputError: an unknown name or an invalid value.
    """
    known = [field.name for field in dataclasses.fields(TrainingOptions)]
    for name in options:
        if name not in known:
            raise InputError(f"unknown option {name!r}. Use one of {', '.join(known)}.")
    values = {name: plain_scalar(value) for name, value in options.items()}
    if values.get("targets") is not None:
        values["targets"] = _check_targets(values["targets"])
    return TrainingOptions(**values)


def _check_targets(targets: Any) -> tuple[str, ...]:
    """Return the names of the adapted layers, given as one name or as a sequence of names."""
    names = (targets,) if isinstance(targets, str) else targets
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"targets is {targets!r}. Give names of layers, such as ('q_proj', 'v_proj').")
    return tuple(names)


def plain_scalar(value: Any) -> Any:
    """Convert a number of NumPy, as grid searches pass them, to one of Python; return other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value


@dataclasses.dataclass
class _PreparedData:
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
) -> _PreparedData:
    """Load the data and the base; read the data first, so that errors in them are reported at once."""
    load = partial(load_base, model, task, options.method, dtype, revision)
    if task in ("text-classification", "text-regression"):
        regression = task == "text-regression"
        if text_column == label_column:
            raise InputError(f"text_column and label_column are both {text_column!r}. Name two columns.")
        texts, labels = read_classification_rows(train_file, text_column, label_column, regression)
        weights = class_weights(labels, options.class_weights)
        held = None
        if valid_file is not None:
            held_texts, held_labels = read_classification_rows(
                valid_file, text_column, label_column, regression, least=1
            )
            held = held_texts, match_labels(held_labels, labels, valid_file)
        base = load(**label_fields(labels))
        limit = token_limit(base, options)
        train = text_examples(base, texts, labels, weights, limit)
        valid = None if held is None else text_examples(base, held[0], held[1], None, limit)
        names = labels.names if labels.problem != REGRESSION else []
        remarks = [remark for remark in [describe_imbalance(labels, options.class_weights is not None)] if remark]
        return _PreparedData(base, train, valid, names, labels, remarks)
    if options.class_weights is not None:
        raise InputError(f"class_weights is not supported for {task}. Omit it.")
    if task == "token-classification":
        rows = read_token_rows(train_file, text_column, label_column)
        held_rows = None if valid_file is None else read_token_rows(valid_file, text_column, label_column)
        names = collect_token_labels(rows)
        if len(names) < 2:
            raise InputError(f"{train_file}: all tokens have the label {names[0]!r}. Give rows with other labels.")
        base = load(id2label=dict(enumerate(names)))
        limit = token_limit(base, options)
        train = make_token_examples(rows, base.tokenizer, names, limit, train_file)
        valid = None
        if held_rows is not None and valid_file is not None:
            valid = make_token_examples(held_rows, base.tokenizer, names, limit, valid_file)
        return _PreparedData(base, train, valid, names)
    base = load()
    limit = token_limit(base, options)

    def read(path: Path) -> list[Example]:
        if task == "question-answering":
            return read_question_examples(path, base.tokenizer, min(limit, options.max_length or 384))
        return read_language_examples(
            path, base.tokenizer, min(limit, options.max_length or 2048), mask_prompt, text_column
        )

    return _PreparedData(base, read(train_file), None if valid_file is None else read(valid_file), [])


def label_fields(labels: Labels) -> dict[str, Any]:
    """Return the configuration fields that depend on the labels."""
    return {"id2label": dict(enumerate(labels.names)), "problem_type": labels.problem}


def text_examples(
    base: Base, texts: list[str], labels: Labels, weights: list[float] | None, limit: int
) -> list[Example]:
    """Create examples of texts and their labels."""
    rows = encode_texts(base.tokenizer, texts, limit)
    weights = weights or [1.0] * len(rows)
    return [Example(ids, target, w) for ids, target, w in zip(rows, labels.targets, weights, strict=True)]


def _split(
    examples: list[Example], labels: Labels | None, share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the examples of each label; a single example of a label is not held out."""
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
