"""Write what was trained: an ordinary checkpoint, or an adapter as PEFT writes it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..files import disk_errors
from ..folders import replace_folder
from .fitting import Fitted
from .report import card, write_log

ADAPTER_FIELDS = ("id2label", "problem_type", "pad_token_id", "classifier_pooling")
"""Fields of the configuration that an adapter keeps in training.json, because PEFT's files have none for them."""


def write_output(
    fitted: Fitted, folder: str | Path, *, extra: dict[str, Any], command: str | None = None, force: bool = False
) -> None:
    """Write a folder: a checkpoint for "head" and "full", an adapter for "lora" and "dora".

    Args:
        extra: what else belongs to the training, such as the labels with their types.

    Raises:
        CheckpointError: the folder exists and `force` is off, cannot be written, or the disk is full.
    """
    target = Path(os.path.expanduser(folder))
    report, base = fitted.report, fitted.base
    report.output = str(folder)
    adapter = base.model.adapter
    summary = {**report.summary(), **extra, "mlx_qwen3_version": __version__, "command": command}
    text = card(report, target.name, adapter=adapter is not None, command=command)
    with replace_folder(target, force=force) as staging, disk_errors(target):
        if adapter is not None:
            fields = {name: value for name, value in base.fields.items() if name in ADAPTER_FIELDS}
            adapter.training = {"config": _jsonable(fields), **summary}
            base.model.save_pretrained(staging)
        else:
            with _packed_again(base) as model:
                model.config.training = summary
                try:
                    model.save_pretrained(staging)
                finally:
                    del model.config.training
        base.tokenizer.save_pretrained(staging)
        write_log(staging, report.log)
        (staging / "README.md").write_text(text, encoding="utf-8")


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else value
        for name, value in fields.items()
    }


@contextlib.contextmanager
def _packed_again(base: Any) -> Iterator[Any]:
    """Yield the model to save: where the base was unpacked for speed, its packed weights with the trained head."""
    model = base.model
    if not base.packed or "quantization" in model.config.__dict__:
        yield model
        return
    fields = {name: value for name, value in base.fields.items() if name != "classifier_pooling"}
    from .fitting import without_warning

    with without_warning("the head is initialized with random weights"):
        packed = type(model).from_pretrained(base.folder, ignore_mismatched_sizes=True, **fields)
    for name in ("score", "qa_outputs"):
        if name in model:
            packed[name] = model[name]
    if "classifier_pooling" in base.fields:
        packed.config.classifier_pooling = base.fields["classifier_pooling"]
    mx.eval(packed.parameters())
    yield packed


def identity_of(*parts: Any) -> str:
    """Return what a saved state is compared by: data, model and options."""
    import hashlib
    import json

    def plain(part: Any) -> Any:
        return dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part

    text = json.dumps([plain(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
