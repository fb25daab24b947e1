"""Files of a repository of the Hugging Face Hub: from its cache, else downloaded.

The cache is asked first, so a model that is here already needs no network.
"""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
"""Every keyword that speaks of the Hub; none of them is a field of a configuration or is ever saved."""


@dataclass(frozen=True)
class HubOptions:
    """How files are fetched from the Hub.

    Attributes:
        revision: a branch, tag or commit; default the main branch.
        token: an access token, True for the one of `hf auth login`, False for none.
        cache_dir: the cache's folder; default the Hub library's.
        local_files_only: use the cache only.
        subfolder: the folder inside the repository (or local folder) that holds the model.
        proxies: URL scheme -> proxy address.
        force_download: fetch again what is in the cache.
    """

    revision: str | None = None
    token: bool | str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    subfolder: str = ""
    proxies: Mapping[str, str] | None = None
    force_download: bool = False

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                shown = "of another type" if name == "token" else repr(getattr(self, name))
                raise InputError(f"{name} is {shown}. Give {expected}")

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
        """Take what speaks of the Hub out of the keywords of a call.

        Raises:
            InputError: a value of the wrong type.
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

        `revision` and `subfolder` belong to one repository, so they are not taken over.
        """
        return replace(self, revision=revision, subfolder="")

    def after_download(self) -> "HubOptions":
        """Return the options for reading again what this call has downloaded already."""
        return replace(self, force_download=False)


Complete = Callable[[Path], bool]
"""Whether a folder of the cache holds everything that is needed."""


def fetch(repo: str, patterns: list[str], options: HubOptions, complete: Complete) -> Path:
    """Return the folder of a repository's files, from the cache where it is complete there.

    Raises:
        HubError: no network, no such repository or revision, no access to it, or no space.
    """
    if options.subfolder:
        patterns = [f"{options.subfolder.strip('/')}/{pattern}" for pattern in patterns]
    cached = None if options.force_download else _cached(repo, patterns, options)
    if cached is not None and complete(cached / options.subfolder):
        return cached / options.subfolder
    folder = download_files(repo, patterns, options) / options.subfolder
    if options.subfolder and not folder.is_dir():
        raise HubError(f"{repo} has no folder {options.subfolder}. Check it on https://huggingface.co/{repo}")
    return folder


def _cached(repo: str, patterns: list[str], options: HubOptions) -> Path | None:
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
        raise HubError(f"{repo!r} is neither a folder here nor a valid Hub id: {error}") from None


def download_files(repo: str, patterns: list[str], options: HubOptions) -> Path:
    """Download the files of a repository that fit patterns; return the folder of the snapshot.

    Raises:
        HubError: no network, no such repository or revision, or no access to it.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(repo, options) as where:
        logger.info("downloading %s from the Hub", where)
        more: dict[str, Any] = {"token": options.token, "force_download": options.force_download}
        if options.cache_dir is not None:
            more["cache_dir"] = options.cache_dir
        with _proxies(options, more):
            return Path(snapshot_download(repo, revision=options.revision, allow_patterns=patterns, **more))


def list_files(repo: str, options: HubOptions) -> list[str]:
    """Return the names of all files of a repository.

    Raises:
        HubError: no network, no such repository or revision, or no access to it.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repo, options), _proxies(options, {}):
        return HfApi(token=options.token).list_repo_files(repo, revision=options.revision)


@contextlib.contextmanager
def _hub_errors(repo: str, options: HubOptions) -> Iterator[str]:
    """Turn every error of the Hub's client into a `HubError`; yield the name of what is fetched."""
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
    why, remedy = "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
    if options.local_files_only:
        why, remedy = "local_files_only is set", "leave local_files_only out"
    offline = (
        f"there is no folder {repo} here and no complete model of that name in the Hub's cache, and {why}: "
        f"check the path, or {remedy} to download it"
    )
    if constants.HF_HUB_OFFLINE or options.local_files_only:
        raise HubError(offline)
    where = repo if options.revision is None else f"{repo} at revision {options.revision}"
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
        address = f"https://huggingface.co/{repo}"
        raise HubError(f"{repo} has no revision {options.revision}: check it on {address}") from None
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


@contextlib.contextmanager
def _proxies(options: HubOptions, more: dict[str, Any]) -> Iterator[None]:
    """Make the Hub's client use the proxies: as its argument in older versions, else by its environment."""
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
    huggingface_hub.close_session()  # the next request makes a client that reads the environment
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        huggingface_hub.close_session()
