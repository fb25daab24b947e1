"""Save a trained model as an ordinary checkpoint, or as an adapter in the format of PEFT."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..errors import InputError
from ..files import disk_errors
from ..folders import check_only_model, check_target_free, replace_folder
from .fitting import Fitted
from .report import build_card, write_log

ADAPTER_FIELDS = ("id2label", "problem_type", "pad_token_id", "classifier_pooling")
"""Configuration fields that are saved in training.json, because PEFT's files cannot store them."""


def resolve_output(output: Any, force: bool) -> Path:
    """Return the absolute path of a folder to write, and check that it may be created or replaced.

    Raises:
        InputError: `output` is not a path.
        CheckpointError: the folder exists and `force` is false, holds no model, or contains the current folder.
    """
    if not isinstance(output, str | os.PathLike) or not str(output) or "\0" in str(output):
        raise InputError(f"output is {output!r}. Give the path of the folder to write.")
    target = Path(os.path.abspath(os.path.expanduser(output)))
    check_target_free(target, force)
    check_only_model(target)
    return target


def write_output(
    fitted: Fitted, folder: str | Path, *, extra: dict[str, Any], command: str | None = None, force: bool = False
) -> None:
    """Write a folder: a checkpoint for "head" and "full", an adapter for "lora" and "dora".

    Args:
        extra: further fields to record, such as the labels with their types.

    Raises:
        CheckpointError: the folder exists and `force` is false, cannot be written, or the disk is full.
    """
    if not isinstance(folder, str | os.PathLike) or not str(folder) or "\0" in str(folder):
        raise InputError(f"the folder to write is {folder!r}. Give a path.")
    target = Path(os.path.expanduser(folder))
    if force:
        check_only_model(target)
    report, base = fitted.report, fitted.base
    report.output = str(folder)
    adapter = base.model.adapter
    summary = {**report.summary(), **extra, "mlx_qwen3_version": __version__, "command": command}
    text = build_card(report, target.name, adapter=adapter is not None, command=command)
    with replace_folder(target, force=force) as staging, disk_errors(target):
        if adapter is not None:
            fields = {name: value for name, value in base.fields.items() if name in ADAPTER_FIELDS}
            adapter.training = {"config": _to_jsonable(fields), **summary}
            base.model.save_pretrained(staging)
        else:
            with _restore_packed(base) as model:
                model.config.training = summary
                try:
                    model.save_pretrained(staging)
                finally:
                    del model.config.training
        base.tokenizer.save_pretrained(staging)
        write_log(staging, report.log)
        (staging / "README.md").write_text(text, encoding="utf-8")


def _to_jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else value
        for name, value in fields.items()
    }


@contextlib.contextmanager
def _restore_packed(base: Any) -> Iterator[Any]:
    """Yield the model to save: if the base was unpacked for speed, its packed weights with the trained head."""
    model = base.model
    if not base.packed or "quantization" in model.config.__dict__:
        yield model
        return
    fields = {name: value for name, value in base.fields.items() if name != "classifier_pooling"}
    from .fitting import suppress_warning

    with suppress_warning("the head is initialized with random weights"):
        packed = type(model).from_pretrained(base.folder, ignore_mismatched_sizes=True, **fields)
    for name in ("score", "qa_outputs"):
        if name in model:
            packed[name] = model[name]
    if "classifier_pooling" in base.fields:
        packed.config.classifier_pooling = base.fields["classifier_pooling"]
    mx.eval(packed.parameters())
    yield packed


def compute_identity(*parts: Any) -> str:
    """Return a hash of data, model and options, by which a saved state is matched to its training."""
    import hashlib
    import json

    def plain(part: Any) -> Any:
        return dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part

    text = json.dumps([plain(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
