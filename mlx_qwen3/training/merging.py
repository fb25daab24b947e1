"""Merge an adapter into its base model and save an ordinary checkpoint, in floating point or quantized."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..adapters import read_adapter
from ..checkpoint import resolve_checkpoint, take_hub_options
from ..config.pretrained import read_config_file
from ..conversion import Conversion, convert
from ..conversion.folder import copied_files
from ..errors import CheckpointError, InputError
from ..files import disk_errors, make_folders
from ..folders import contains, replace_folder
from ..loading import load
from .output import resolve_output

NOT_COPIED = ("adapter_config.json", "training.json", "log.jsonl", "trainer_state.json")
"""Files of an adapter folder that do not apply to a merged model."""


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
    """Merge an adapter into its base model and save the result as a checkpoint folder with the tokenizer.

    Args:
        adapter: folder or Hub repository of the adapter.
        output: folder to write.
        model: base model to use instead of the one in the adapter's configuration.
        revision: Hub revision of the base to use instead of the one in the adapter's configuration.
        dtype: dtype of the weights; default: the base's.
        quantize: quantize the merged weights and measure the loss of quality; otherwise weights stay floating point.
        force: replace an existing folder.
        progress, measuring, command, **quantization: arguments of `convert`, such as `q_bits` and `report_text`, and
            arguments of the Hub as for `load`, such as `token`, for the adapter and its base.

    Returns:
        The conversion with its quality report if `quantize` is set, else None.

    Raises:
        CheckpointError: the output exists or cannot be written, or the adapter does not fit its base.
        UnsupportedModelError: the adapter cannot be merged.
    """
    target = resolve_output(output, force)
    hub = take_hub_options(quantization, "merge")
    if quantization and not quantize:
        given = {name: value for name, value in quantization.items() if value not in (None, [], (), "affine", False)}
        if given:
            raise InputError(f"{next(iter(given))} needs quantize (-q). Add it, or leave {next(iter(given))} out.")
    found = read_adapter(adapter, hub=hub.for_other_repository())
    base_name = str(model) if model is not None else found.needs_base()
    named = revision if revision is not None or model is not None else found.config.get("revision")
    base = resolve_checkpoint(base_name, revision=named, hub=hub)
    if contains(target, base) or contains(target, found.folder):
        raise CheckpointError(f"{target} is or contains the base or the adapter. Choose another output.")
    values = read_config_file(base)
    stored = dtype or values.get("dtype") or values.get("torch_dtype") or "float32"
    others = hub.for_other_repository().after_download()
    loaded, _ = load(base, adapter=adapter, dtype=stored, **others.__dict__)
    loaded.merge_adapter()

    def write(folder: Path) -> None:
        _copy_companions(base, found.folder, folder)
        loaded.save_pretrained(folder)
        (folder / "README.md").write_text(_build_card(target.name, base_name, type(loaded).__name__), encoding="utf-8")

    if not quantize:
        with replace_folder(target, force=force) as folder:
            write(folder)
        return None
    with disk_errors(target):
        make_folders(target.parent)
        merged = Path(tempfile.mkdtemp(prefix=".merged-", dir=target.parent))
    try:
        named = merged / found.folder.name  # the model card of the converted model contains this name
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
    """Copy tokenizer and generation settings of the adapter, or those of the base if the adapter has none."""
    for source in (base, adapter):
        for file in copied_files(source):
            if file.name in NOT_COPIED or file.name.endswith(".safetensors") or file.parent != source:
                continue
            with disk_errors(folder):
                shutil.copyfile(file, folder / file.name)


def _build_card(name: str, base: str, class_name: str) -> str:
    from ..conversion.card import pipeline_tag

    named = f"base_model: {base}\n" if "/" in base and not Path(base).exists() else ""
    return (
        f"---\n{named}library_name: mlx\npipeline_tag: {pipeline_tag(class_name)}\ntags:\n- mlx\n- mlx-qwen3\n---\n\n"
        f"# {name}\n\n`{class_name}` with an adapter merged into its weights by mlx-qwen3.\n"
    )
