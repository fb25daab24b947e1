"""Get files of a Hugging Face Hub repository from the local cache, or download them.

The cache is searched first, so that a complete model in the cache needs no network.
"""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from ..errors import HubError, InputError

logger = logging.getLogger(__name__)

HUB_ARGUMENTS = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "subfolder",
    "proxies",
    "force_download",
)
_OLDER_NAMES = {"use_auth_token": "token"}
_IGNORED = (
    "resume_download",
    "local_dir_use_symlinks",
    "code_revision",
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
)
HUB_NAMES = frozenset((*HUB_ARGUMENTS, *_OLDER_NAMES, *_IGNORED))
"""All keywords for the Hub. They are never treated as fields of a configuration and never saved."""


class HubArguments(TypedDict, total=False):
    """Keywords for the Hub of functions that have a `revision` of their own; see `HubOptions`."""

    token: bool | str | None
    cache_dir: str | Path | None
    local_files_only: bool
    subfolder: str
    proxies: Mapping[str, str] | None
    force_download: bool


@dataclass(frozen=True)
class HubOptions:
    """Options for downloads from the Hub.

    Attributes:
        revision: branch, tag or commit; the main branch by default.
        token: access token, True for the one stored by `hf auth login`, or False for none.
        cache_dir: folder of the cache; by default that of huggingface_hub.
        local_files_only: use only the cache.
        subfolder: folder with the model inside the repository or local folder.
        proxies: URL scheme -> address of the proxy.
        force_download: download files even if they are in the cache.
    """

    revision: str | None = None
    token: bool | str | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    subfolder: str = ""
    proxies: Mapping[str, str] | None = None
    force_download: bool = False

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                shown = "of another type" if name == "token" else repr(getattr(self, name))
                raise InputError(f"{name} is {shown}. Give {expected}.")

        check("revision", self.revision is None or isinstance(self.revision, str), "a branch, tag or commit")
        check("token", self.token is None or isinstance(self.token, bool | str), "a token, true or false")
        check("cache_dir", self.cache_dir is None or isinstance(self.cache_dir, str | os.PathLike), "a folder")
        check("local_files_only", isinstance(self.local_files_only, bool), "true or false")
        check("force_download", isinstance(self.force_download, bool), "true or false")
        parts = self.subfolder.replace("\\", "/").split("/") if isinstance(self.subfolder, str) else [".."]
        inside = ".." not in parts and not str(self.subfolder).startswith("/")
        check("subfolder", inside, "a folder inside the repository")
        good = self.proxies is None or (
            isinstance(self.proxies, Mapping)
            and all(isinstance(text, str) for pair in self.proxies.items() for text in pair)
        )
        check("proxies", good, "a mapping such as {'https': 'http://host:3128'}")

    @classmethod
    def take(cls, keywords: dict[str, Any]) -> "HubOptions":
        """Remove the Hub's arguments from the keywords of a call, and return them.

        Raises:
            InputError: a value has the wrong type.
        """
        for older, name in _OLDER_NAMES.items():
            if older in keywords:
                keywords.setdefault(name, keywords.pop(older))
        for name in _IGNORED:
            keywords.pop(name, None)
        found = {name: keywords.pop(name) for name in HUB_ARGUMENTS if name in keywords}
        return cls(**{name: value for name, value in found.items() if value is not None})

    def without_subfolder(self) -> "HubOptions":
        """Return the same options for the root of the repository."""
        return replace(self, subfolder="")

    def for_other_repository(self, revision: str | None = None) -> "HubOptions":
        """Return the options for another repository that the same call needs, such as that of an adapter.

        `revision` and `subfolder` belong to one repository, so they are not kept.
        """
        return replace(self, revision=revision, subfolder="")

    def after_download(self) -> "HubOptions":
        """Return the options for reading again what this call has downloaded already."""
        return replace(self, force_download=False)


Complete = Callable[[Path], bool]
"""Returns whether a folder of the cache holds all required files."""


def fetch(repo: str, patterns: list[str], options: HubOptions, complete: Complete) -> Path:
    """Return a folder with files of a repository, from the cache if it is complete there.

    Args:
        repo: id of the repository.
        patterns: patterns of the file names to download, relative to `options.subfolder`.
        options: options of the download.
        complete: returns whether a folder of the cache holds all required files.

    Raises:
        HubError: there is no network, no such repository or revision, no access, or no disk space.
    """
    if options.subfolder:
        patterns = [f"{options.subfolder.strip('/')}/{pattern}" for pattern in patterns]
    cached = None if options.force_download else _find_cached(repo, patterns, options)
    if cached is not None and complete(cached / options.subfolder):
        return cached / options.subfolder
    folder = download_files(repo, patterns, options) / options.subfolder
    if options.subfolder and not folder.is_dir():
        raise HubError(f"{repo} has no folder {options.subfolder}. Check its name on https://huggingface.co/{repo}.")
    return folder


def _find_cached(repo: str, patterns: list[str], options: HubOptions) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo,
                revision=options.revision,
                cache_dir=options.cache_dir,
                allow_patterns=patterns,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise HubError(f"{repo!r} is neither a folder here nor a valid Hub id: {str(error).rstrip('.')}.") from None


def download_files(repo: str, patterns: list[str], options: HubOptions) -> Path:
    """Download the files of a repository that match patterns, and return the folder of the snapshot.

    Raises:
        HubError: there is no network, no such repository or revision, no access, or no disk space.
    """
    from huggingface_hub import snapshot_download

    with _convert_hub_errors(repo, options) as where:
        logger.info("downloading %s from the Hub", where)
        more: dict[str, Any] = {"token": options.token, "force_download": options.force_download}
        if options.cache_dir is not None:
            more["cache_dir"] = options.cache_dir
        with _use_proxies(options, more):
            return Path(snapshot_download(repo, revision=options.revision, allow_patterns=patterns, **more))


def list_files(repo: str, options: HubOptions) -> list[str]:
    """Return the names of all files in a repository.

    Raises:
        HubError: there is no network, no such repository or revision, or no access.
    """
    from huggingface_hub import HfApi

    with _convert_hub_errors(repo, options), _use_proxies(options, {}):
        return HfApi(token=options.token).list_repo_files(repo, revision=options.revision)


@contextlib.contextmanager
def _convert_hub_errors(repo: str, options: HubOptions) -> Iterator[str]:
    """Convert every error of the Hub's client to a `HubError`, and yield the name of the download for messages."""
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

    # The base class of all errors of the HTTP client, which differs between versions of huggingface_hub.
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    why, remedy = "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
    if options.local_files_only:
        why, remedy = "local_files_only is set", "omit local_files_only"
    offline = (
        f"there is no folder {repo} here and no complete model of that name in the Hub's cache, and {why}. "
        f"Check the path, or {remedy} to download it."
    )
    if constants.HF_HUB_OFFLINE or options.local_files_only:
        raise HubError(offline)
    where = repo if options.revision is None else f"{repo} at revision {options.revision}"
    try:
        yield where
    except HFValidationError as error:
        raise HubError(f"{repo!r} is neither a folder here nor a valid Hub id: {str(error).rstrip('.')}.") from None
    except GatedRepoError:
        raise HubError(
            f"{repo} is gated. Accept its terms on https://huggingface.co/{repo} and run `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"there is no folder {repo} here and no Hub repository of that name that you can access. "
            "Check the spelling, or run `hf auth login` for a private repository."
        ) from None
    except RevisionNotFoundError:
        address = f"https://huggingface.co/{repo}"
        raise HubError(f"{repo} has no revision {options.revision}. Check the revisions on {address}.") from None
    except OfflineModeIsEnabled:
        raise HubError(offline) from None
    except (LocalEntryNotFoundError, http_error, ConnectionError) as error:
        reason = error.__cause__ or error  # huggingface_hub wraps the network error
        message = str(reason).strip().partition("\n")[0]
        raise HubError(
            f"there is no folder {repo} here, and the Hub does not answer for {where} "
            f"({type(reason).__name__}: {message}). Check the path, or the network and run again; downloaded files are "
            "kept."
        ) from None
    except OSError as error:
        raise HubError(f"cannot store {where}: {error.strerror or error}. Check the free disk space.") from None


@contextlib.contextmanager
def _use_proxies(options: HubOptions, more: dict[str, Any]) -> Iterator[None]:
    """Make huggingface_hub use the proxies: as an argument in older versions, otherwise through the environment."""
    if not options.proxies:
        yield
        return
    import huggingface_hub

    if "proxies" in inspect.signature(huggingface_hub.snapshot_download).parameters:
        more["proxies"] = dict(options.proxies)
        yield
        return
    names = {f"{scheme.partition(':')[0].upper()}_PROXY": address for scheme, address in options.proxies.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    huggingface_hub.close_session()  # the next request creates a client that reads the environment
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        huggingface_hub.close_session()
