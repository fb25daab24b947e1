"""Write the files next to the weights: config.json for mlx-lm, the tokenizer, and other data files."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.gguf import is_gguf
from ..config.gguf import generation_from_gguf
from ..config.qwen3 import Qwen3Config
from ..config.stock_mlx_lm import MODEL_FILE, silently_different
from ..errors import CheckpointError
from ..files import disk_errors, read_json, reason_of, write_atomically
from ..quantization.formats import PackedFormat
from ..quantization.packing import quantization_entry
from ..tokenizer import AutoTokenizer
from .source import Source

logger = logging.getLogger(__name__)

_PATTERNS = (
    *("*.json", "*.txt", "*.jinja", "*.jsonl", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*"),
    *("*/config.json", "additional_chat_templates/*.jinja"),
)
_LINKED = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "generation_config.json"),
)
_REWRITTEN = ("config.json", "quality.json", "quantize_config.json", "quant_config.json")
_DROPPED_FIELDS = ("quantization", "quantization_config", "auto_map", "model_file", "_name_or_path")


def leads_inside(file: Path, folder: Path) -> bool:
    """Return whether a file, after resolving links, is in a folder or in the Hub's cache that the folder belongs to."""
    real, root = file.resolve(), folder.resolve()
    stores = [root]
    if root.parent.name == "snapshots":
        stores.append(root.parent.parent / "blobs")
    return any(store in real.parents for store in stores)


def copied_files(source: Path) -> list[Path]:
    """Return the files of a checkpoint that are copied unchanged: data files, but no weights and no Python files.

    Links to files outside of the folder are refused, because these may be private. Files of the tokenizer may be links
    to files with the same name.

    Raises:
        CheckpointError: a file is a link to outside of the folder.
    """
    if source.is_file():
        return []
    files = _find_data_files(source)
    for file in files:
        if not leads_inside(file, source) and not (file.name in _LINKED and file.resolve().name == file.name):
            raise CheckpointError(
                f"{file} is a link to {file.resolve()}, which is outside of the folder. "
                "Replace it by the file, or delete it."
            )
    return files


def _find_data_files(source: Path) -> list[Path]:
    found = {file for pattern in _PATTERNS for file in source.glob(pattern) if file.is_file()}
    found |= {file for folder in _find_further_modules(source) if (file := folder / "model.safetensors").is_file()}
    own = {source / name for name in _REWRITTEN}
    return sorted(file for file in found if file not in own and not file.name.endswith(".index.json"))


def _find_further_modules(source: Path) -> list[Path]:
    """Return the folders of the modules that sentence-transformers lists in modules.json after the encoder."""
    if not (source / "modules.json").is_file():
        return []
    modules = read_json(source / "modules.json")
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    plain = [path for path in paths if isinstance(path, str) and path not in ("", ".", "..") and path.isprintable()]
    return [source / path for path in plain if "/" not in path and "\\" not in path]


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of `copied_files`, or write those of a GGUF file, to a folder.

    Raises:
        CheckpointError: a file cannot be read, or the disk is full.
    """
    if is_gguf(source):
        write_gguf_companions(source, target)
        return
    for file in copied_files(source):
        copied = target / file.relative_to(source)
        try:
            opened = file.open("rb")
        except OSError as problem:
            raise CheckpointError(f"cannot read {file}: {reason_of(problem)}. Check its permissions.") from problem
        with opened, disk_errors(target):
            copied.parent.mkdir(parents=True, exist_ok=True)
            with copied.open("wb") as copy:
                shutil.copyfileobj(opened, copy)


def write_gguf_companions(source: Path, target: Path) -> None:
    """Write the tokenizer and generation_config.json of a GGUF file to a folder.

    Raises:
        TokenizerError: the file has no usable tokenizer.
        CheckpointError: the disk is full.
    """
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    values = generation_from_gguf(source)
    if values:
        write_json(target / "generation_config.json", values)


def mlx_config(
    source: Source,
    formats: Mapping[str, PackedFormat | None],
    default: PackedFormat | None,
    dtype: mx.Dtype | None,
    tied: bool | None,
) -> dict[str, Any]:
    """Return the config.json of the converted model.

    It has all fields of the source, and the fields that mlx-lm requires with Hugging Face's defaults. It has
    `quantization` if layers are packed, and `model_file` if stock mlx-lm would compute different outputs.

    Args:
        source: the checkpoint that was converted.
        formats: path -> format of the packed layers.
        default: the default format in `quantization`; by default the most frequent.
        dtype: dtype of the weights that are not packed, or None if it did not change.
        tied: value of `tie_word_embeddings`, or None if it did not change.
    """
    config = dict(source.config)
    if config.get("model_type") == "qwen3":
        config.update(Qwen3Config.from_dict(_drop_fields(config)).to_dict())
        _write_rope_for_mlx_lm(config)
    config = _drop_fields(config)
    if tied is not None:
        config["tie_word_embeddings"] = tied
    if dtype is not None:
        config["dtype"] = config["torch_dtype"] = str(dtype).rpartition(".")[2]
    if any(formats.values()):
        config["quantization"] = quantization_entry(formats, default if default in formats.values() else None)
        config["quantization_config"] = config["quantization"]
    if silently_different(config):
        config["model_file"] = MODEL_FILE
    return config


def _drop_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _DROPPED_FIELDS}


def _write_rope_for_mlx_lm(config: dict[str, Any]) -> None:
    # mlx-lm reads `type` first, Hugging Face `rope_type`. Keep only `rope_type`, so that both read the same value.
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(name), Mapping):
            config[name] = {key: value for key, value in config[name].items() if key != "type"}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as sorted, indented JSON.

    Raises:
        CheckpointError: the disk is full.
    """
    write_atomically(path, json.dumps(dict(sorted(content.items())), indent=4, ensure_ascii=False) + "\n")
