"""Upload a converted folder to the Hugging Face Hub."""

import logging
from pathlib import Path

from ..errors import HubError

logger = logging.getLogger(__name__)


def check_repo_id(repo: str) -> None:
    """Raise `HubError` if a name is not valid for a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise HubError(
            f"{repo!r} is not a valid name of a repository: {reason}. Give a name such as me/my-model."
        ) from None


def upload_folder(folder: Path, repo: str, token: bool | str | None = None) -> str:
    """Upload a folder to a repository, creating it if necessary, and return its address.

    Args:
        token: access token; by default the one stored by `hf auth login`.

    Raises:
        HubError: there is no network, no login, or no permission to write.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    api = HfApi() if token is None else HfApi(token=token)
    kept = f"The converted model is in {folder}"
    try:
        api.create_repo(repo_id=repo, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo, repo_type="model")
    except HFValidationError as error:
        raise HubError(f"{repo!r} is not a valid name of a repository ({error}). {kept}.") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"uploading to {repo} needs a login. Run `hf auth login`. {kept}.") from error
    except (http_error, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"cannot upload to {repo} ({reason}). Check the network and `hf auth whoami`. {kept}."
        ) from error
    address = f"https://huggingface.co/{repo}"
    logger.info("uploaded to %s", address)
    return address
