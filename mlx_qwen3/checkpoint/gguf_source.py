"""Find a GGUF file by path, in a folder, in a Hub repository, or among the models of ollama."""

import fnmatch
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import CheckpointError, HubError, InputError
from ..files import read_json
from .gguf import is_gguf
from .gguf_split import PART, part_names
from .hub import HubOptions, download_files, list_files

logger = logging.getLogger(__name__)

OLLAMA = "ollama:"
_HUB_FILE = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+):(?P<name>[\w][\w./ +-]*)$")
_PLAIN = re.compile(r"^[A-Za-z0-9_][\w.-]*$")
_DIGEST = re.compile(r"^sha256[:-][0-9a-f]{64}$")
_MODEL_LAYER = "application/vnd.ollama.image.model"
_MAX_MANIFEST_BYTES = 1 << 20


def find_gguf(path_or_id: str | Path, options: HubOptions, gguf_file: str | None = None) -> Path | None:
    """Return the GGUF file that a name refers to, downloading it if necessary; None if it is not a GGUF model.

    Args:
        path_or_id: a GGUF file, a folder that holds one, `org/repo:Q4_K_M`, `org/repo:NAME.gguf`, or
            `ollama:qwen3:4b`; with `gguf_file` also a folder or `org/repo`.
        options: how files are downloaded from the Hub.
        gguf_file: GGUF file in the folder or repository, by name or quantization.

    Raises:
        CheckpointError: there is no such file, or several match.
        HubError: the repository cannot be read.
        InputError: both `path_or_id` and `gguf_file` name a file.
    """
    text = str(path_or_id)
    path = Path(os.path.expanduser(path_or_id))
    if path.is_file() and is_gguf(path):
        if gguf_file is not None:
            raise InputError(f"{text} is a GGUF file already. Leave out gguf_file {gguf_file}.")
        return path
    if path.is_dir():
        return _find_in_folder(path, gguf_file)
    if text.startswith(OLLAMA):
        return find_ollama(text.removeprefix(OLLAMA))
    match = _HUB_FILE.match(text)
    if match is not None and gguf_file is not None:
        raise InputError(f"{text} names a file and gguf_file is {gguf_file}. Give one of them.")
    if match is not None:
        return _find_in_repository(match["repo"], match["name"], options)
    if gguf_file is not None and path.suffix != ".gguf":
        return _find_in_repository(text, gguf_file, options)
    return None


def _find_in_folder(folder: Path, gguf_file: str | None) -> Path | None:
    """Return a GGUF file in a folder: by name, or without a name the only one if there is no other model."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.glob("*.gguf")) if path.is_file()]
    if gguf_file is not None:
        if (folder / gguf_file).is_file():
            return folder / gguf_file
        return folder / _choose(names, gguf_file, str(folder))
    if not names or (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return None
    first = _keep_first_parts(names)
    if len(first) == 1:
        return folder / first[0]
    raise CheckpointError(f"{folder} holds {len(first)} GGUF models. Name one of {_join_names(first)}.")


def _keep_first_parts(names: Iterable[str]) -> list[str]:
    """Return the names without vision projectors and without later parts of split models."""
    kept = []
    for name in names:
        match = PART.match(name)
        if (match is None or int(match["number"]) == 1) and not Path(name).name.startswith("mmproj"):
            kept.append(name)
    return kept


def _choose(names: Sequence[str], wanted: str, source: str) -> str:
    """Return the file that matches a file name or the name of a quantization (`Q4_K_M`).

    Raises:
        CheckpointError: none or several match.
    """
    first = _keep_first_parts(names)
    if wanted in names:
        return wanted
    by_name = [name for name in first if Path(name).name == wanted]
    label = re.compile(rf"(^|[-._/]){re.escape(wanted)}(-\d{{5}}-of-\d{{5}})?\.gguf$", re.IGNORECASE)
    fitting = by_name or [name for name in first if label.search(name)]
    if not fitting:
        fitting = [name for name in first if fnmatch.fnmatch(name.lower(), f"*{glob_escape(wanted.lower())}*")]
    if len(fitting) > 1:  # prefer Q4_K_M to UD-Q4_K_M
        shortest = min(map(len, fitting))
        plain = [name for name in fitting if len(name) == shortest]
        fitting = plain if len(plain) == 1 else fitting
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise CheckpointError(f"{source} has no GGUF file {wanted!r}; it has {_join_names(first) or 'none'}.")
    raise CheckpointError(f"{source} has several GGUF files for {wanted!r}. Name one of {_join_names(fitting)}.")


def glob_escape(text: str) -> str:
    """Escape the special characters of file patterns in a text."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _join_names(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _find_in_repository(repo: str, wanted: str, options: HubOptions) -> Path:
    """Return a file of a Hub repository with all its parts, from the cache or downloaded."""
    cached = _list_cached(repo, options)
    if cached is not None:
        folder, names = cached
        try:
            name = _choose(names, wanted, repo)
        except CheckpointError:
            pass  # the repository may have more files than the cache
        else:
            parent = Path(name).parent
            if all((folder / parent / part).is_file() for part in part_names(Path(name).name)):
                return folder / name
    name = _choose(hub_gguf_names(repo, options), wanted, repo)
    parent = Path(name).parent
    parts = [glob_escape(str(parent / part)) for part in part_names(Path(name).name)]
    return download_files(repo, parts, options) / name


def _list_cached(repo: str, options: HubOptions) -> tuple[Path, list[str]] | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=options.revision,
                cache_dir=options.cache_dir,
                allow_patterns=["*.gguf"],
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise HubError(f"{repo!r} is not a valid Hub id: {str(error).rstrip('.')}.") from None
    return folder, [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf"))]


def hub_gguf_names(repo: str, options: HubOptions) -> list[str]:
    """Return the names of the GGUF files in a Hub repository.

    Raises:
        HubError: the repository cannot be read.
    """
    return [name for name in list_files(repo, options) if name.lower().endswith(".gguf")]


def refuse_gguf_repository(repo: str, options: HubOptions) -> None:
    """Raise `CheckpointError` if a repository has GGUF files, because the user must choose one."""
    try:
        names = _keep_first_parts(hub_gguf_names(repo, options))
    except HubError:
        return  # the caller reports what is missing
    if names:
        raise CheckpointError(f"{repo} holds GGUF files. Name one, as {repo}:{names[0]}; it has {_join_names(names)}.")


def ollama_folder() -> Path:
    """Return the folder of ollama's models: $OLLAMA_MODELS, by default ~/.ollama/models."""
    return Path(os.path.expanduser(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models"))


def find_ollama(name: str) -> Path:
    """Return the GGUF file of a model that ollama has downloaded. Nothing is written to ollama's folder.

    Args:
        name: name in ollama: `qwen3:4b`, `user/model:tag`, `host/user/model:tag`. The default tag is `latest`.

    Raises:
        CheckpointError: ollama has no such model, or its files are incomplete.
    """
    root = ollama_folder()
    model, _, tag = name.partition(":")
    parts = model.split("/")
    if len(parts) > 3 or not all(_PLAIN.match(part) for part in (*parts, tag or "latest")):
        raise CheckpointError(f"{name!r} is not the name of an ollama model. Give a name such as qwen3:4b.")
    default = ["registry.ollama.ai", "library"]
    manifest = root.joinpath("manifests", *default[: 3 - len(parts)], *parts, tag or "latest")
    if not manifest.is_file():
        known = _list_ollama(root)
        there = f"it has {_join_names(known)}" if known else "there are none"
        raise CheckpointError(f"ollama has no model {name!r} in {root}, {there}. Run `ollama pull {name}`.")
    digest = _read_model_digest(manifest)
    blob = root / "blobs" / digest.replace(":", "-")
    if not blob.is_file():
        raise CheckpointError(
            f"ollama's {name!r} lacks the file {blob.name} in {blob.parent}. Run `ollama pull {name}`."
        )
    if not is_gguf(blob):
        raise CheckpointError(f"ollama's {name!r} is not a GGUF file ({blob}). Pull a GGUF model.")
    return blob


def _list_ollama(root: Path) -> list[str]:
    names = []
    for path in sorted((root / "manifests").glob("*/*/*/*")):
        host, user, model, tag = path.parts[-4:]
        owner = "" if (host, user) == ("registry.ollama.ai", "library") else f"{user}/"
        names.append(f"{'' if host == 'registry.ollama.ai' else f'{host}/'}{owner}{model}:{tag}")
    return names


def _read_model_digest(manifest: Path) -> str:
    again = "Pull the model again"
    try:
        content = read_json(manifest, max_bytes=_MAX_MANIFEST_BYTES)
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).removesuffix('.')}, or {again.lower()}.") from None
    layers = content.get("layers") if isinstance(content, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER:
            digest = layer.get("digest")
            if isinstance(digest, str) and _DIGEST.match(digest):
                return digest
    raise CheckpointError(f"{manifest} names no model file. {again}.")
