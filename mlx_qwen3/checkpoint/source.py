"""Find a checkpoint in a local folder or in a repository of the Hugging Face Hub."""

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
"""Files of which a tokenizer needs at least one."""
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
    """Return the local folder or GGUF file of a checkpoint, downloading it from the Hub if necessary.

    An interrupted save into a local folder is completed first.

    Args:
        path_or_id: a folder, an id such as `Qwen/Qwen3-0.6B`, a GGUF file, `org/repo:Q4_K_M`, or `ollama:qwen3:4b`.
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        allow_patterns: patterns of the files to download; configuration, tokenizer and safetensors by default. Weights
            in pickle files and Python files are never downloaded.
        gguf_file: GGUF file in the folder or repository, by name or quantization.
        hub: the other options of the download. Its `revision` is used if `revision` is None.
        tokenizer: whether a folder of the cache is complete only with a vocabulary.

    Raises:
        InputError: `path_or_id` is not a name.
        CheckpointError: `path_or_id` is a path, and there is no such folder.
        HubError: there is no network, no such repository or revision, or no access.
    """
    if not isinstance(path_or_id, str | os.PathLike) or not str(path_or_id):
        raise InputError(f"{path_or_id!r} names no model. Give a folder, or a Hub id such as Qwen/Qwen3-0.6B.")
    text = str(path_or_id)
    if "\0" in text:
        raise InputError(f"{text!r} contains a NUL character. Give a folder, or a Hub id such as Qwen/Qwen3-0.6B.")
    options = hub or HubOptions()
    if revision is not None:
        options = HubOptions(**{**options.__dict__, "revision": revision})
    folder = _find_local(path_or_id, text, options, gguf_file)
    if folder is not None:
        return folder
    patterns = list(ALLOW_PATTERNS if allow_patterns is None else allow_patterns)
    folder = fetch(text, patterns, options, lambda folder: _is_complete(folder, patterns, tokenizer))
    if allow_patterns is None and not any(folder.glob("*.safetensors")):
        refuse_gguf_repository(text, options)
    return folder


def _find_local(path_or_id: str | Path, text: str, options: HubOptions, gguf_file: str | None) -> Path | None:
    """Return the local folder or GGUF file, or None if the name is a Hub id."""
    subfolder = options.subfolder
    path = Path(os.path.expanduser(path_or_id))  # unlike Path.expanduser, this does not raise for an unknown user
    try:
        recover_folder(path)
        if path.is_dir() or not subfolder:
            gguf = find_gguf(path / subfolder if subfolder else path_or_id, options, gguf_file)
            if gguf is not None:
                return gguf
        if path.is_dir():
            path = path / subfolder if subfolder else path
            if not path.is_dir():
                raise CheckpointError(f"{text} has no folder {subfolder}. Check subfolder.")
            finish_update(path)
            return path
        exists = path.exists()
    except OSError as error:
        raise CheckpointError(f"cannot access {text}: {error.strerror}. Check the path.") from None
    if exists:
        raise CheckpointError(f"{text} is a file. Give the folder that contains it: {path.parent}.")
    if isinstance(path_or_id, Path) or _looks_like_path(text):
        raise CheckpointError(f"there is no folder {text}. Check the path, or give a Hub id such as Qwen/Qwen3-0.6B.")
    return None


def _is_complete(folder: Path, patterns: list[str], tokenizer: bool) -> bool:
    """Return whether a snapshot in the Hub's cache, which may be partly downloaded, holds all required files."""
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
    """Raise `CheckpointError` if a folder holds an adapter instead of a model."""
    file = folder / "adapter_config.json"
    if not file.is_file() or any(folder.glob("model*.safetensors")):
        return
    content: Any = read_json(file)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    shown = f" for {base}" if isinstance(base, str) and base else ""
    raise CheckpointError(
        f"{source} holds an adapter{shown}, not a model. Load the base model with the adapter, or merge both."
    )
