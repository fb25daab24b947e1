"""Where a checkpoint comes from: a folder on this disk, or a repository of the Hugging Face Hub.

The Hub's cache is asked first, so a model that is here already needs no network.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_qwen3.checkpoint.gguf_source import find_gguf
from mlx_qwen3.errors import CheckpointError, HubError, InputError
from mlx_qwen3.folders import finish_update, recover_folder

logger = logging.getLogger(__name__)

ALLOW_PATTERNS = (
    "*.json",
    "model*.safetensors",
    "*/model.safetensors",
    "*.txt",
    "*.jinja",
    "*.model",
    "README.md",
    "LICENSE*",
)
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
) -> Path:
    """Return the folder or GGUF file of a checkpoint: what exists as it is, a Hub id from the cache or downloaded.

    Args:
        path_or_id: a folder, an id such as `Qwen/Qwen3-0.6B`, a GGUF file, `org/repo:Q4_K_M`, or `ollama:qwen3:4b`.
        revision: a branch, tag or commit of the Hub repository; default its main branch.
        allow_patterns: the files to fetch; default configuration, tokenizer and safetensors. Weights in
            pickle files and Python files are never fetched.
        gguf_file: the GGUF file in the folder or repository, by its name or its quantization.

    Raises:
        InputError: this is no name at all.
        CheckpointError: this is a path, and no folder is there.
        HubError: no network, no such repository or revision, or no access to it.
    """
    if not isinstance(path_or_id, str | os.PathLike) or not str(path_or_id):
        raise InputError(f"{path_or_id!r} names no model: give a folder, or a Hub id such as Qwen/Qwen3-0.6B")
    text = str(path_or_id)
    path = Path(os.path.expanduser(path_or_id))  # unlike Path.expanduser it takes the name of an unknown user as it is
    recover_folder(path)
    gguf = find_gguf(path_or_id, revision, gguf_file)
    if gguf is not None:
        return gguf
    if path.is_dir():
        finish_update(path)
        return path
    if path.exists():
        raise CheckpointError(f"{text} is a file; give the folder that it lies in: {path.parent}")
    if isinstance(path_or_id, Path) or _looks_like_path(text):
        raise CheckpointError(f"there is no folder {text}; check the path, or give a Hub id such as Qwen/Qwen3-0.6B")
    patterns = list(ALLOW_PATTERNS if allow_patterns is None else allow_patterns)
    cached = _cached(text, revision, patterns)
    return cached if cached is not None else _download(text, revision, patterns)


def _cached(repo: str, revision: str | None, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise HubError(f"{repo!r} is neither a folder here nor a valid Hub id: {error}") from None
    if not any(pattern.endswith(".safetensors") for pattern in patterns):
        return folder if any(any(folder.glob(pattern)) for pattern in patterns) else None
    # Older versions of the hub's client give back a snapshot of which only some files were fetched.
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    from mlx_qwen3.checkpoint.reader import open_checkpoint

    if not (folder / "config.json").is_file():
        return False
    try:
        open_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(repo, revision) as where:
        logger.info("downloading %s from the Hub", where)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def download_files(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Download the files of a repository that fit patterns; returns the folder of the snapshot.

    Raises:
        HubError: no network, no such repository or revision, or no access to it.
    """
    return _download(repo, revision, patterns)


def list_files(repo: str, revision: str | None) -> list[str]:
    """Return the names of all files of a repository.

    Raises:
        HubError: no network, no such repository or revision, or no access to it.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repo, revision):
        return HfApi().list_repo_files(repo, revision=revision)


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[str]:
    """Turn every error of the Hub's client into a `HubError`; gives the name of what is fetched."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The parent of every error of the HTTP client, whichever client this version of the hub's library uses.
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    offline = (
        f"there is no folder {repo} here and no complete model of that name in the Hub's cache, and HF_HUB_OFFLINE is "
        "set: check the path, or unset HF_HUB_OFFLINE to download it"
    )
    if constants.HF_HUB_OFFLINE:
        raise HubError(offline)
    where = repo if revision is None else f"{repo} at revision {revision}"
    try:
        yield where
    except HFValidationError as error:
        raise HubError(f"{repo!r} is neither a folder here nor a valid Hub id: {error}") from None
    except GatedRepoError:
        raise HubError(
            f"{repo} is gated: accept its terms on https://huggingface.co/{repo} and run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"there is no folder {repo} here and no Hub repository that you can read under that name: "
            "check the spelling, or run `hf auth login` for a private one"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{repo} has no revision {revision}: check it on https://huggingface.co/{repo}") from None
    except OfflineModeIsEnabled:
        raise HubError(offline) from None
    except (LocalEntryNotFoundError, http_error, ConnectionError) as error:
        reason = error.__cause__ or error  # the Hub's client wraps what the network said
        told = str(reason).strip().partition("\n")[0]
        raise HubError(
            f"there is no folder {repo} here, and the Hub does not answer for {where} "
            f"({type(reason).__name__}: {told}); check the path, or the network and run again: what was fetched is kept"
        ) from None
    except OSError as error:
        raise HubError(f"cannot store {where}: {error.strerror or error}; check the disk's space") from None
