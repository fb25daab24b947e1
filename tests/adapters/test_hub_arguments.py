"""Arguments of the Hub apply to the download of an adapter and of its base model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3 import AutoModelForCausalLM, HubError, InputError, Qwen3ForCausalLM, convert, load
from mlx_qwen3.adapters import lora_config, write_adapter
from mlx_qwen3.adapters.describe import describe_adapter
from mlx_qwen3.conversion import describe
from mlx_qwen3.training import merge
from mlx_qwen3.training.adapter_set import AdapterSet
from tests.support.tiny_checkpoints import write_qwen3

HUB: dict[str, Any] = {"token": "hf_x", "cache_dir": "cache"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return write_qwen3(tmp_path / "base", "Qwen3ForCausalLM")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    config = lora_config(
        task_type="CAUSAL_LM", base="me/base", r=4, alpha=8, targets=["layers.0.self_attn.q_proj"], revision="v7"
    )
    path = "model.layers.0.self_attn.q_proj"
    write_adapter(
        tmp_path / "adapter",
        config,
        {f"{path}.lora_A.weight": mx.zeros((4, 32)), f"{path}.lora_B.weight": mx.zeros((32, 4))},
    )
    return tmp_path / "adapter"


Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, base: Path, adapter: Path) -> Calls:
    """Return the calls of `snapshot_download`, which finds a repository in the cache once it is downloaded."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    made: Calls = []
    cached: set[tuple[str, Any]] = set()

    def snapshot_download(repo: str, **options: Any) -> str:
        made.append((repo, options))
        place = (repo, options.get("cache_dir"))
        if options.get("local_files_only") and place not in cached:
            raise LocalEntryNotFoundError("not there")
        cached.add(place)
        return str({"me/base": base, "me/adapter": adapter}[repo])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return made


def downloads(calls: Calls) -> Calls:
    return [(repo, options) for repo, options in calls if not options.get("local_files_only")]


def assert_downloaded_once_with_token(calls: Calls) -> dict[str, dict[str, Any]]:
    found = downloads(calls)
    assert sorted(repo for repo, _ in found) == sorted({repo for repo, _ in found})
    for _, options in found:
        assert {name: options[name] for name in HUB} == HUB
    assert {options["cache_dir"] for _, options in calls} == {"cache"}
    return dict(found)


def test_load_passes_the_arguments_of_the_hub_to_the_adapter(calls: Calls):
    model, _ = load("me/base", adapter="me/adapter", revision="v1", **HUB)
    found = assert_downloaded_once_with_token(calls)
    assert model.adapter is not None
    # a revision belongs to one repository: this one to the base
    assert {repo: options["revision"] for repo, options in found.items()} == {"me/base": "v1", "me/adapter": None}


@pytest.mark.parametrize("call", [Qwen3ForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, load])
def test_an_adapter_repository_passes_the_arguments_to_its_base(calls: Calls, call: Any):
    call("me/adapter", revision="v1", **HUB)
    found = assert_downloaded_once_with_token(calls)
    assert {repo: options["revision"] for repo, options in found.items()} == {"me/base": "v7", "me/adapter": "v1"}


def test_from_pretrained_passes_the_arguments_to_the_adapter(calls: Calls, base: Path):
    Qwen3ForCausalLM.from_pretrained(base, adapter="me/adapter", **HUB)
    assert list(assert_downloaded_once_with_token(calls)) == ["me/adapter"]


def test_an_adapter_set_passes_the_arguments_to_every_adapter(calls: Calls):
    adapters = AdapterSet({"first": "me/adapter"}, **HUB)
    adapters.add("second", "me/adapter")
    assert sorted(assert_downloaded_once_with_token(calls)) == ["me/adapter", "me/base"]


def test_local_files_only_covers_the_adapter(calls: Calls, base: Path):
    with pytest.raises(HubError, match=r"me/adapter.*local_files_only"):
        load(base, adapter="me/adapter", local_files_only=True)
    assert not downloads(calls)


def test_force_download_fetches_base_and_adapter_once(calls: Calls):
    load("me/base", adapter="me/adapter", **HUB)
    calls.clear()
    load("me/base", adapter="me/adapter", force_download=True, **HUB)
    found = assert_downloaded_once_with_token(calls)
    assert {repo: options["force_download"] for repo, options in found.items()} == {
        "me/base": True,
        "me/adapter": True,
    }


def test_the_subfolder_applies_to_the_base(calls: Calls, base: Path, tmp_path: Path):
    (tmp_path / "outer").mkdir()
    base.rename(tmp_path / "outer" / "inner")
    model, _ = load(tmp_path / "outer", adapter="me/adapter", subfolder="inner", **HUB)
    assert model.adapter is not None


def test_the_bundled_model_has_no_revision():
    with pytest.raises(InputError, match="need path_or_id"):
        load(revision="v1")


def test_merging_passes_the_arguments_to_base_and_adapter(calls: Calls, tmp_path: Path):
    merge("me/adapter", tmp_path / "merged", **HUB)
    found = assert_downloaded_once_with_token(calls)
    assert {repo: options["revision"] for repo, options in found.items()} == {"me/base": "v7", "me/adapter": None}
    calls.clear()
    merge("me/adapter", tmp_path / "other", model="me/base", revision="v2", **HUB)
    assert {options["revision"] for repo, options in calls if repo == "me/base"} == {"v2"}


def test_conversions_and_descriptions_pass_the_arguments(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    convert("me/base", tmp_path / "folder", revision="v1", **HUB)
    assert assert_downloaded_once_with_token(calls)["me/base"]["revision"] == "v1"
    calls.clear()
    assert describe_adapter("me/adapter", **HUB).rank == 4
    assert {options["cache_dir"] for _, options in calls} == {"cache"}
    asked = []

    def read_metadata(repo: str, **options: Any) -> Any:
        asked.append((repo, options))
        return SimpleNamespace(files_metadata={})

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", read_metadata)
    description = describe("me/base", "v1", **HUB)
    assert description.architecture == "Qwen3ForCausalLM"
    assert asked == [("me/base", {"revision": "v1", "token": "hf_x"})]
    with pytest.raises(InputError, match="unknown argument of convert: 'tokens'"):
        convert("me/base", tmp_path / "more", **{"tokens": "hf_x"})  # pyright: ignore


def test_a_repository_without_safetensors_is_reported_without_a_doubled_period(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub.errors import NotASafetensorsRepoError

    def read_metadata(repo: str, **options: Any) -> Any:
        raise NotASafetensorsRepoError("it has no model.safetensors. Couldn't find\nthe files.")

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", read_metadata)
    with pytest.raises(HubError, match=r"Couldn't find the files\. Check the repository\.$"):
        describe("me/base", "v1", **HUB)
