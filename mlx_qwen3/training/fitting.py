"""Train one model on examples: load the base, fit or train its head and layers, and measure the result."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import models
from ..adapters import TARGETS, add_adapter, is_adapter_folder
from ..checkpoint import resolve_checkpoint
from ..config.pretrained import read_config_file
from ..errors import InputError, QuantizationError
from ..layers.parameters import flatten
from ..tokenizer import AutoTokenizer, Tokenizer
from .frozen_features import embed, fit_head
from .memory_estimate import check_training_fits
from .objectives import Example, LanguageObjective, Objective, SequenceObjective, SpanObjective, TokenObjective
from .options import TrainingOptions
from .report import TrainingReport
from .state import TrainingState
from .trainer import Progress, Trainer, evaluate

logger = logging.getLogger(__name__)

CLASSES = {
    "text-classification": "Qwen3ForSequenceClassification",
    "text-regression": "Qwen3ForSequenceClassification",
    "token-classification": "Qwen3ForTokenClassification",
    "question-answering": "Qwen3ForQuestionAnswering",
    "text-generation": "Qwen3ForCausalLM",
}


@dataclass
class Base:
    """A base model with its tokenizer.

    Attributes:
        model: the model to train.
        tokenizer: its tokenizer.
        source: folder or repository, as recorded in adapters.
        folder: folder of its files.
        packed: whether the weights in the files are quantized.
        fields: configuration fields that were changed.
        revision: revision of the repository, or None.
    """

    model: Any
    tokenizer: Tokenizer
    source: str
    folder: Path
    packed: bool
    fields: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None


def load_base(
    model: str | Path | None, task: str, method: str, dtype: str | None, revision: str | None = None, **fields: Any
) -> Base:
    """Load a base model with the head of a task; initialize the head if its size differs.

    Args:
        model: a folder or Hub repository; None for the bundled model.
        revision: revision of the Hub repository.
        fields: configuration fields: labels and problem type.

    Raises:
        QuantizationError: `method` is "full" and the base is quantized.
        InputError: the folder contains an adapter.
        CheckpointError, UnsupportedModelError, HubError: see `from_pretrained`.
    """
    if model is None:
        from ..bundled import bundled_model_path

        folder = Path(bundled_model_path())
        source = str(folder)
    else:
        folder = resolve_checkpoint(model, revision)
        source = str(folder.resolve()) if Path(os.path.expanduser(model)).is_dir() else str(model)
    if is_adapter_folder(folder):
        raise InputError(f"{model} is an adapter, not a base model. Merge it first: mlx-qwen3 merge.")
    packed = bool(read_config_file(folder).get("quantization")) if folder.is_dir() else True
    if packed and method == "full":
        raise QuantizationError(
            f"{model or 'the bundled model'} is quantized, and its weights cannot be trained. Use --method lora "
            "(QLoRA), or dequantize it first: mlx-qwen3 convert -d."
        )
    cls = getattr(models, CLASSES[task])
    if dtype is None and method == "full":
        dtype = "float32"  # small updates are rounded away in 16 bits
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    with suppress_warning("the head is initialized with random weights"):
        loaded = cls.from_pretrained(
            folder, dtype=dtype, unpack=packed and on_cpu, ignore_mismatched_sizes=True, **fields
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad = tokenizer.pad_token_id
    if loaded.config.pad_token_id is None and pad is not None and pad < loaded.config.vocab_size:
        loaded.config.pad_token_id = fields["pad_token_id"] = pad
    return Base(loaded, tokenizer, source, folder, packed, fields, revision)


@contextlib.contextmanager
def suppress_warning(text: str) -> Iterator[None]:
    """Suppress a warning of the loader that does not apply, because the new head is trained next."""
    log = logging.getLogger("mlx_qwen3.models.pretrained")

    def keep(record: logging.LogRecord) -> bool:
        return text not in record.msg

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def token_limit(base: Base, options: TrainingOptions) -> int:
    """Return the maximum number of tokens per row."""
    context = min(base.model.config.max_position_embeddings, base.tokenizer.model_max_length)
    return min(context, options.max_length or context)


def make_objective(base: Base, task: str, labels: list[str], problem: str) -> Objective:
    """Create the objective of a task."""
    pad = base.tokenizer.pad_token_id
    pad = 0 if pad is None or pad >= base.model.config.vocab_size else pad
    if task in ("text-classification", "text-regression"):
        return SequenceObjective(pad, labels, problem=problem)
    if task == "token-classification":
        return TokenObjective(pad, labels)
    if task == "question-answering":
        return SpanObjective(pad)
    return LanguageObjective(pad)


@dataclass
class Fitted:
    """A trained model with its report and the final state of the training."""

    base: Base
    report: TrainingReport
    state: TrainingState | None = None


def fit(
    base: Base,
    objective: Objective,
    train: list[Example],
    valid: list[Example],
    options: TrainingOptions,
    report: TrainingReport,
    *,
    pooling: str = "auto",
    folder: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> Fitted:
    """Train `base` in place and fill `report`.

    Args:
        pooling: input of a text classifier's head: "last" for the last token, "mean" for the mean over the tokens.
            "auto" selects the better one for the method "head". For other methods it means the last token, as in PEFT
            and transformers, unless the base has a head on the mean.
        folder: folder of the saved state, from which an interrupted training resumes; None to save none.
        identity: hash of data, model and options, saved with the state.
        progress: called with each entry of the log.

    Raises:
        MemoryFitError: the training needs more memory than the machine has.
        TrainingError: the loss became infinite before there were weights to keep.
    """
    started = time.perf_counter()
    mx.random.seed(options.seed)
    _initialize_head(base.model)
    report.rows, report.valid_rows, report.held_out = len(train), len(valid), bool(valid)
    measured = valid or train
    if isinstance(objective, SequenceObjective):
        _fit_frozen_head(base, objective, train, measured, options, report, pooling, progress)
    state = None
    if options.method != "head" or not isinstance(objective, SequenceObjective):
        state = _train(base, objective, train, valid, options, folder, identity, progress)
        report.log, report.best_step = state.log, state.best_step if state.best else state.step
        report.stopped = next((row["stopped"] for row in state.log if "stopped" in row), None)
        report.metrics = evaluate(base.model, objective, measured, options.batch_size)
        if valid and "head" in report.baselines:
            report.remarks += _compare_with_head(options.method, report)
    report.seconds = time.perf_counter() - started
    return Fitted(base, report, state)


def _initialize_head(model: Any) -> None:
    """Initialize a new head from the seed; loading used the current random state, not the seed."""
    deviation = model.config.initializer_range
    for name in sorted(model.fresh_weights):
        path, _, leaf = name.rpartition(".")
        layer = dict(model.named_modules())[path]
        array = layer[leaf]
        drawn = mx.random.normal(array.shape) * deviation if leaf == "weight" else mx.zeros(array.shape)
        layer[leaf] = drawn.astype(array.dtype)
    model.fresh_weights = frozenset()


def _fit_frozen_head(
    base: Base,
    objective: SequenceObjective,
    train: list[Example],
    measured: list[Example],
    options: TrainingOptions,
    report: TrainingReport,
    pooling: str,
    progress: Progress | None,
) -> None:
    """Fit the head on frozen features: the result of "head", else the baseline and the initial head."""
    classes = base.model.score.weight.shape[0]
    same = measured is train
    rows = [example.ids for example in train] + ([] if same else [example.ids for example in measured])
    seen = [0]

    def count(done: int) -> None:
        seen[0] += done
        if progress is not None:
            progress({"embedded": seen[0], "total": len(rows)})

    features = embed(base.model, rows, count)
    of_train = {name: array[: len(train)] for name, array in features.items()}
    of_measured = of_train if same else {name: array[len(train) :] for name, array in features.items()}
    chosen, head = fit_head(of_train, train, objective.problem, classes, pooling, options.seed)
    found = objective.metrics(measured, [(row,) for row in of_measured[chosen] @ head.weight.T])
    if objective.problem == "single_label_classification":
        targets = np.array([example.target for example in train])
        majority = int(np.bincount(targets, minlength=classes).argmax())
        constant = np.eye(classes, dtype=np.float32)[[majority] * len(measured)]
        report.baselines["majority"] = _select_numbers(objective.metrics(measured, [(row,) for row in constant]))
    weight = head.weight
    if options.method == "head":
        report.metrics = found
        report.remarks.append(
            f"features: {'the last token' if chosen == 'last' else 'the mean over the tokens'}; L2 penalty "
            f"{head.penalty:g} by cross-validation"
        )
    else:
        report.baselines["head"] = _select_numbers(found)
        best, chosen = chosen, _choose_pooling(base, pooling)
        if chosen != best:
            weight = fit_head(of_train, train, objective.problem, classes, chosen, options.seed)[1].weight
    if chosen == "mean" or getattr(base.model.config, "classifier_pooling", None) is not None:
        base.model.config.classifier_pooling = base.fields["classifier_pooling"] = chosen
    if chosen == "mean":
        file = "training.json" if options.method in ("lora", "dora") else "config.json"
        report.remarks.append(
            f"{file} has classifier_pooling: mean, which transformers and PEFT ignore. Load the model with mlx-qwen3, "
            "or train with --pooling last"
        )
    base.model.score.weight = mx.array(weight).astype(base.model.score.weight.dtype)


def _choose_pooling(base: Base, pooling: str) -> str:
    """Return the pooling of a trained model: by default that of the base, else the last token."""
    if pooling != "auto":
        return pooling
    return getattr(base.model.config, "classifier_pooling", None) or "last"


def _select_numbers(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def _compare_with_head(method: str, report: TrainingReport) -> list[str]:
    name = next((n for n in ("accuracy", "r2", "exact_match") if n in report.metrics), None)
    if name is None or name not in report.baselines["head"]:
        return []
    difference = report.metrics[name] - report.baselines["head"][name]
    if difference > 0:
        return [f"{method} is {difference:.4f} better in {name} than a linear head on frozen features"]
    return [
        f"{method} is not better than a linear head on frozen features ({name} {difference:+.4f}). Use --method "
        "head, or train longer or on more rows"
    ]


def _train(
    base: Base,
    objective: Objective,
    train: list[Example],
    valid: list[Example],
    options: TrainingOptions,
    folder: Path | None,
    identity: str,
    progress: Progress | None,
) -> TrainingState:
    model = base.model
    if options.method == "full":
        names = [name for name, array in flatten(model.parameters()).items() if mx.issubdtype(array.dtype, mx.floating)]
        if isinstance(objective, LanguageObjective):
            objective.frozen_head = False
    elif options.method == "head":
        names = [name for name in flatten(model.parameters()) if name.startswith(("score.", "qa_outputs."))]
    else:
        targets = options.targets or TARGETS
        add_adapter(
            model,
            r=options.rank,
            alpha=options.alpha,
            targets=targets,
            dora=options.method == "dora",
            dropout=options.dropout,
            base=base.source,
            revision=base.revision,
        )
        names = model.adapter.names
        if isinstance(objective, LanguageObjective) and any(name.startswith("lm_head.") for name in names):
            objective.frozen_head = False
    longest = max(len(example.ids) for example in train)
    check_training_fits(model, list(names), longest, options, base.source)
    trainer = Trainer(model, names, objective, train, valid, options, folder, identity, progress)
    return trainer.run()
