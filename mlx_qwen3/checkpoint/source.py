"""Where a checkpoint comes from: a folder on this disk, or a repository of the Hugging Face Hub.

The Hub's cache is asked first, so a model that is here already needs no network.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_qwen3.errors import CheckpointError, HubError, InputError
from mlx_qwen3.folders import finish_update, recover_folder

logger = logging.getLogger(__name__)

ALLOW_PATTERNS = ("*.json", "model*.safetensors", "*.txt", "*.jinja", "*.model", "README.md", "LICENSE*")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def _looks_like_path(text: str) -> bool:
    if text.startswith((".", "/", "~")) or "\\" in text or text.endswith("/"):
        return True
    return not _HUB_ID.match(text) or text.endswith((".safetensors", ".bin", ".gguf", ".json"))


def resolve_checkpoint(
    path_or_id: str | Path, revision: str | None = None, allow_patterns: Sequence[str] | None = None
) -> Path:
    """The folder of a checkpoint: an existing folder as it is, a Hub id from the cache or downloaded.

    Args:
        path_or_id: a folder, or an id such as `Qwen/Qwen3-0.6B`.
        revision: a branch, tag or commit of the Hub repository; default its main branch.
        allow_patterns: the files to fetch; default configuration, tokenizer and safetensors. Weights in
            pickle files and Python files are never fetched.

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
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
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
    logger.info("downloading %s from the Hub", where)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
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
