"""Where a checkpoint comes from: a folder on this disk, or a repository of the Hugging Face Hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError
from ..files import read_json
from ..folders import finish_update, recover_folder
from .gguf_source import find_gguf, refuse_gguf_repository
from .hub import HubOptions, fetch

ALLOW_PATTERNS = (
    "*.json",
    "model*.safetensors",
    "*/model.safetensors",
    "adapter*.safetensors",
    "*.txt",
    "*.jinja",
    "*.model",
    "README.md",
    "LICENSE*",
)
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
"""One of these makes a tokenizer."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def _looks_like_path(text: str) -> bool:
    if text.startswith((".", "/", "~")) or "\\" in text or text.endswith("/"):
        return True
    return not _HUB_ID.match(text) or text.endswith((".safetensors", ".bin", ".gguf", ".json"))


def resolve_checkpoint(
    path_or_id: str | Path,
    revision: str | None = None,
    allow_patterns: Sequence[str] | None = None,
    gguf_file: str | None = None,
    *,
    hub: HubOptions | None = None,
    tokenizer: bool = False,
) -> Path:
    """Return the folder or GGUF file of a checkpoint: what exists as it is, a Hub id from the cache or downloaded.

    A save into a local folder that was interrupted is completed first.

    Args:
        path_or_id: a folder, an id such as `Qwen/Qwen3-0.6B`, a GGUF file, `org/repo:Q4_K_M`, or `ollama:qwen3:4b`.
        revision: a branch, tag or commit of the Hub repository; default its main branch.
        allow_patterns: the files to fetch; default configuration, tokenizer and safetensors. Weights in pickle files
            and Python files are never fetched.
        gguf_file: the GGUF file in the folder or repository, by its name or its quantization.
        hub: everything else about the Hub; its `revision` is used where `revision` is not given.
        tokenizer: whether the folder must hold a vocabulary besides the weights to be used from the cache.

    Raises:
        InputError: this is no name at all.
        CheckpointError: this is a path, and no folder is there.
        HubError: no network, no such repository or revision, or no access to it.
    """
    if not isinstance(path_or_id, str | os.PathLike) or not str(path_or_id):
        raise InputError(f"{path_or_id!r} names no model: give a folder, or a Hub id such as Qwen/Qwen3-0.6B")
    text = str(path_or_id)
    if "\0" in text:
        raise InputError(f"{text!r} holds a NUL character. Give a folder, or a Hub id such as Qwen/Qwen3-0.6B")
    options = hub or HubOptions()
    if revision is not None:
        options = HubOptions(**{**options.__dict__, "revision": revision})
    folder = _local_folder(path_or_id, text, options, gguf_file)
    if folder is not None:
        return folder
    patterns = list(ALLOW_PATTERNS if allow_patterns is None else allow_patterns)
    folder = fetch(text, patterns, options, lambda folder: _complete(folder, patterns, tokenizer))
    if allow_patterns is None and not any(folder.glob("*.safetensors")):
        refuse_gguf_repository(text, options)
    return folder


def _local_folder(path_or_id: str | Path, text: str, options: HubOptions, gguf_file: str | None) -> Path | None:
    """Return the folder on this disk, or the GGUF file, or None where the name is a Hub id."""
    subfolder = options.subfolder
    path = Path(os.path.expanduser(path_or_id))  # unlike Path.expanduser it takes the name of an unknown user as it is
    try:
        recover_folder(path)
        if path.is_dir() or not subfolder:
            gguf = find_gguf(path / subfolder if subfolder else path_or_id, options, gguf_file)
            if gguf is not None:
                return gguf
        if path.is_dir():
            path = path / subfolder if subfolder else path
            if not path.is_dir():
                raise CheckpointError(f"{text} has no folder {subfolder}. Check the subfolder")
            finish_update(path)
            return path
        exists = path.exists()
    except OSError as error:
        raise CheckpointError(f"cannot look at {text}: {error.strerror}. Check the path") from None
    if exists:
        raise CheckpointError(f"{text} is a file; give the folder that it lies in: {path.parent}")
    if isinstance(path_or_id, Path) or _looks_like_path(text):
        raise CheckpointError(f"there is no folder {text}; check the path, or give a Hub id such as Qwen/Qwen3-0.6B")
    return None


def _complete(folder: Path, patterns: list[str], tokenizer: bool) -> bool:
    """Return whether a snapshot in the Hub's cache, of which perhaps only some files were fetched, holds what is
    needed.
    """
    if (folder / "adapter_config.json").is_file() and any(folder.glob("adapter*.safetensors")):
        return True
    if (tokenizer or any(name in patterns for name in VOCABULARY_FILES)) and not any(
        (folder / name).is_file() for name in VOCABULARY_FILES
    ):
        return False
    if not any(pattern.endswith("model*.safetensors") for pattern in patterns):
        return any(any(folder.glob(pattern)) for pattern in patterns)
    from .opening import open_checkpoint

    if not (folder / "config.json").is_file():
        return False
    try:
        open_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def refuse_adapter(folder: Path, source: str) -> None:
    """Raise `CheckpointError` for a folder that holds an adapter instead of a model."""
    file = folder / "adapter_config.json"
    if not file.is_file() or any(folder.glob("model*.safetensors")):
        return
    content: Any = read_json(file)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    shown = f" for {base}" if isinstance(base, str) and base else ""
    raise CheckpointError(
        f"{source} holds an adapter{shown}, not a model. Load the base model and apply the adapter to it, or merge both"
    )
