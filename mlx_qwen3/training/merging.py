"""Merge an adapter into its base model and write an ordinary checkpoint, in floats or quantized."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..adapters import read_adapter
from ..checkpoint import resolve_checkpoint
from ..config.pretrained import read_config_file
from ..conversion import Conversion, convert
from ..conversion.folder import copied_files
from ..errors import CheckpointError, InputError
from ..files import disk_errors, make_folders
from ..folders import check_target_free, replace_folder
from ..loading import load

NOT_COPIED = ("adapter_config.json", "training.json", "log.jsonl", "trainer_state.json")
"""Files of an adapter folder that mean nothing beside a merged model."""


def merge(
    adapter: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    quantize: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    measuring: Callable[[str, int, int], object] | None = None,
    command: str | None = None,
    **quantization: Any,
) -> Conversion | None:
    """Write base plus adapter as an ordinary checkpoint folder with its tokenizer.

    Args:
        adapter: the folder or Hub repository of an adapter.
        output: the folder to write.
        model: the base, instead of the one that the adapter names.
        revision: of the base on the Hub, instead of the one that the adapter names.
        dtype: of the weights; default the base's own.
        quantize: pack the merged weights and measure what that costs: without, weights are floats.
        force: replace an existing folder.
        progress, measuring, command, **quantization: what `convert` takes, such as `q_bits` and `report_text`.

    Returns:
        What quantizing did, with the quality report; None without it.

    Raises:
        CheckpointError: the output exists or cannot be written, or the adapter does not fit its base.
        UnsupportedModelError: an adapter that cannot be merged.
    """
    target = Path(os.path.abspath(os.path.expanduser(output)))
    check_target_free(target, force)
    if quantization and not quantize:
        asked = {name: value for name, value in quantization.items() if value not in (None, [], (), "affine", False)}
        if asked:
            raise InputError(f"{next(iter(asked))} needs quantize (-q). Add it, or leave {next(iter(asked))} out")
    found = read_adapter(adapter)
    base_name = str(model) if model is not None else found.needs_base()
    named = revision if revision is not None or model is not None else found.config.get("revision")
    base = resolve_checkpoint(base_name, revision=named)
    if target in (base.resolve(), found.folder.resolve()):
        raise CheckpointError(f"{target} is the base or the adapter itself. Choose another output")
    values = read_config_file(base)
    stored = dtype or values.get("dtype") or values.get("torch_dtype") or "float32"
    loaded, _ = load(base, adapter=adapter, dtype=stored)
    loaded.merge_adapter()

    def write(folder: Path) -> None:
        _copy_companions(base, found.folder, folder)
        loaded.save_pretrained(folder)
        (folder / "README.md").write_text(_card(target.name, base_name, type(loaded).__name__), encoding="utf-8")

    if not quantize:
        with replace_folder(target, force=force) as folder:
            write(folder)
        return None
    with disk_errors(target):
        make_folders(target.parent)
        merged = Path(tempfile.mkdtemp(prefix=".merged-", dir=target.parent))
    try:
        named = merged / found.folder.name  # the card of the converted model names its source
        with disk_errors(named):
            named.mkdir()
        write(named)
        return convert(
            named,
            target,
            quantize=True,
            force=force,
            progress=progress,
            measuring=measuring,
            command=command,
            **quantization,
        )
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _copy_companions(base: Path, adapter: Path, folder: Path) -> None:
    """Copy tokenizer and generation settings: the adapter's own where it has them, else the base's."""
    for source in (base, adapter):
        for file in copied_files(source):
            if file.name in NOT_COPIED or file.name.endswith(".safetensors") or file.parent != source:
                continue
            with disk_errors(folder):
                shutil.copyfile(file, folder / file.name)


def _card(name: str, base: str, class_name: str) -> str:
    from ..conversion.card import pipeline_tag

    named = f"base_model: {base}\n" if "/" in base and not Path(base).exists() else ""
    return (
        f"---\n{named}library_name: mlx\npipeline_tag: {pipeline_tag(class_name)}\ntags:\n- mlx\n- mlx-qwen3\n---\n\n"
        f"# {name}\n\n`{class_name}` with an adapter merged into its weights by mlx-qwen3.\n"
    )
