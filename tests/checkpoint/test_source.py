"""Finding a checkpoint: local folders, Hub ids in the cache, and errors that name the next step."""

import traceback
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3.checkpoint import resolve_checkpoint, save_checkpoint
from mlx_qwen3.checkpoint.hub import HubOptions
from mlx_qwen3.errors import CheckpointError, HubError, InputError


def test_a_local_folder_is_returned(tmp_path, monkeypatch):
    assert resolve_checkpoint(tmp_path) == tmp_path
    (tmp_path / "Qwen").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("Qwen").name == "Qwen"


@pytest.mark.parametrize(
    "text",
    ["./nowhere", "/no/such/folder", "~/no-such-folder", "~no-such-user/x", "a/b/", "a/b/c", "a b", "x\\y", "m.bin"],
)
def test_names_that_look_like_paths_are_paths(text):
    with pytest.raises(CheckpointError, match="no folder"):
        resolve_checkpoint(text)


@pytest.mark.parametrize("name", [3, None, b"Qwen", "", ["Qwen"]])
def test_values_that_are_not_names_are_refused(name):
    with pytest.raises(InputError, match=r"names no model\. Give a folder"):
        resolve_checkpoint(name)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Give the folder"):
        resolve_checkpoint(tmp_path / "model.safetensors")


@pytest.fixture
def hub(monkeypatch):
    """Return a function that replaces `snapshot_download` by a list of results: folders or errors."""
    import huggingface_hub

    calls = []

    def install(*answers):
        left = list(answers)

        def snapshot_download(repo, **options):
            calls.append((repo, options))
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return install


def not_cached():
    from huggingface_hub.errors import LocalEntryNotFoundError

    return LocalEntryNotFoundError("not there")


def test_the_cache_is_searched_first(tmp_path, hub):
    save_checkpoint(tmp_path, {"a": mx.zeros(2)})
    (tmp_path / "config.json").write_text("{}")
    calls = hub(tmp_path)
    assert resolve_checkpoint("Qwen/Qwen3-0.6B") == tmp_path
    assert calls[0][1]["local_files_only"] is True
    assert not any("bin" in pattern or ".py" in pattern for pattern in calls[0][1]["allow_patterns"])


def test_the_offline_error_names_the_setting(tmp_path, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub(not_cached())
    with pytest.raises(HubError, match=r"no folder Qwen/Qwen3-0.6B here .* HF_HUB_OFFLINE") as caught:
        resolve_checkpoint("Qwen/Qwen3-0.6B")
    assert "\n" not in str(caught.value)
    hub(tmp_path)  # only a part of the repository is in the cache
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        resolve_checkpoint("Qwen/Qwen3-0.6B")


def test_errors_of_the_hub_are_reported_in_one_line(hub, monkeypatch, tmp_path):
    from types import SimpleNamespace

    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404, text="", url="")
    wrapped = not_cached()
    wrapped.__cause__ = OSError("no route")
    for error, says in (
        (GatedRepoError("x", response=response), "gated.*hf auth login"),
        (RepositoryNotFoundError("x", response=response), "no folder .* and no Hub repository"),
        (RevisionNotFoundError("x", response=response), "no revision v9"),
        (ConnectionError("x"), r"no folder Qwen/Qwen3-0.6B here.* does not answer .*\(ConnectionError: x\)"),
        (wrapped, r"does not answer .*\(OSError: no route\)"),
        (OSError(28, "No space left on device"), "No space left"),
    ):
        hub(not_cached(), error)
        with pytest.raises(HubError, match=says) as caught:
            resolve_checkpoint("Qwen/Qwen3-0.6B", revision="v9")
        assert len("".join(traceback.format_exception(caught.value)).split("Traceback")) == 2
    hub(not_cached(), tmp_path)
    assert resolve_checkpoint("Qwen/Qwen3-0.6B") == tmp_path


def test_a_token_is_not_shown_with_the_other_options():
    options = HubOptions(token="hf_secret", revision="v2")
    assert "v2" in repr(options)
    assert "hf_secret" not in repr(options)
