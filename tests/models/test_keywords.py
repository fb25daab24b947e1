"""Keywords of from_pretrained: passed to the Hub, reported once or refused; none is saved."""

import json
import logging
from typing import Any

import pytest

import mlx_qwen3
from mlx_qwen3 import HubError, InputError
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.checkpoint import keywords
from tests.support import tiny

HUB = {"token": "hf_secret", "cache_dir": "cache", "local_files_only": True, "force_download": False, "proxies": None}
CALLS = [
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained,
    mlx_qwen3.Qwen3Config.from_pretrained,
    mlx_qwen3.AutoModelForCausalLM.from_pretrained,
    mlx_qwen3.AutoConfig.from_pretrained,
]


@pytest.fixture
def folder(tmp_path):
    tiny.model().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("call", CALLS)
def test_no_keyword_of_the_hub_is_saved(folder, tmp_path, call):
    made = call(folder, **HUB)
    made.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert "hf_secret" not in file.read_text()
    assert not set(HUB) & set(json.loads((tmp_path / "out" / "config.json").read_text()))


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_keyword_is_refused_with_a_suggestion(folder, call):
    with pytest.raises(InputError, match=r"'num_label'\. Did you mean num_labels"):
        call(folder, num_label=3)
    with pytest.raises(InputError, match="trust_remote_code"):
        call(folder, trust_remote_code=True)


def test_harmless_keywords_are_reported_once(folder, caplog):
    keywords._reported.clear()
    with caplog.at_level(logging.WARNING, "mlx_qwen3"):
        for _ in range(2):
            mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder, device_map="auto", attn_implementation="sdpa")
    for name in ("device_map", "attn_implementation"):
        assert caplog.text.count(f"{name} has no effect") == 1
    with pytest.raises(InputError, match="pickle"):
        mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(InputError, match="convert -q"):
        mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder, load_in_4bit=True)


def test_keywords_reach_the_hub(folder, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    calls = []

    def snapshot_download(repo, **options):
        calls.append(options)
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not there")
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        folder.rename(tmp_path / "snapshot" / "inner") if folder.exists() else None
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    options = {"token": "hf_x", "cache_dir": "c", "subfolder": "inner", "revision": "v1", "force_download": True}
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained("me/model", **options)
    asked = calls[-1]
    assert {name: asked[name] for name in ("token", "cache_dir", "revision", "force_download")} == {
        name: value for name, value in options.items() if name != "subfolder"
    }
    assert all(pattern.startswith("inner/") for pattern in asked["allow_patterns"])
    with pytest.raises(HubError, match="local_files_only"):
        mlx_qwen3.Qwen3ForCausalLM.from_pretrained("me/model", local_files_only=True)


def test_a_partly_cached_repository_is_downloaded_completely(folder, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def snapshot_download(repo, **options):
        asked.append(options.get("local_files_only", False))
        return str(folder)  # weights and config, no tokenizer

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained("me/model")
    assert asked == [True]
    with pytest.raises(mlx_qwen3.TokenizerError):
        mlx_qwen3.AutoTokenizer.from_pretrained("me/model")
    assert asked == [True, True, False]


def test_a_cached_configuration_is_enough_to_load_the_configuration(folder, monkeypatch, tmp_path):
    import huggingface_hub

    (tmp_path / "snapshot").mkdir()
    (folder / "config.json").rename(tmp_path / "snapshot" / "config.json")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(tmp_path / "snapshot"))
    assert mlx_qwen3.AutoConfig.from_pretrained("me/model", local_files_only=True).model_type == "qwen3"
    with pytest.raises(HubError, match="no complete model"):
        mlx_qwen3.AutoModelForCausalLM.from_pretrained("me/model", local_files_only=True)


@pytest.mark.parametrize(
    "bad", [{"token": 5}, {"subfolder": "../x"}, {"proxies": 5}, {"local_files_only": "yes"}, {"revision": 3}]
)
def test_keywords_of_the_wrong_type_are_refused(folder, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        mlx_qwen3.Qwen3Config.from_pretrained(folder, **bad)


SAVED = {
    "model": lambda folder: mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder),
    "configuration": lambda folder: mlx_qwen3.Qwen3Config.from_pretrained(folder),
    "generation configuration": lambda folder: mlx_qwen3.GenerationConfig(),
    "tokenizer": lambda folder: mlx_qwen3.AutoTokenizer.from_pretrained(bundled_model_path()),
}


@pytest.mark.parametrize("kind", SAVED)
def test_saving_accepts_the_keywords_of_the_reference(folder, tmp_path, kind):
    made = SAVED[kind](folder)
    made.save_pretrained(tmp_path / "out", safe_serialization=True, push_to_hub=False, token="hf_secret", variant=None)
    for file in (tmp_path / "out").glob("*.json"):
        assert "hf_secret" not in file.read_text()
    refused = {
        "push_to_hub": (True, "hf upload"),
        "safe_serialization": (False, "safetensors only"),
        "variant": ("fp16", "rename"),
        "is_main_process": (False, "process that writes"),
        "safe_serialisation": (True, "Did you mean safe_serialization"),
    }
    for name, (value, says) in refused.items():
        with pytest.raises(InputError, match=says):
            made.save_pretrained(tmp_path / "other", **{name: value})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("size", "count"), [("5GB", 5 * 10**9), ("200 KB", 200_000), ("1.5GiB", 3 << 29), ("7b", 7), ("12", 12), (34, 34)]
)
def test_shard_sizes_are_parsed(size, count):
    assert keywords.parse_shard_size(size) == count


@pytest.mark.parametrize("size", [0, -5, 1.5, None, True, "x", "5 bananas", "-5GB", "", "0KB"])
def test_invalid_shard_sizes_are_refused(folder, tmp_path, size):
    model = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match="max_shard_size"):
        model.save_pretrained(tmp_path / "out", max_shard_size=size)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("quantization_config", {"load_in_4bit": True}, "convert -q"),
        ("adapter_path", "x", "adapter="),
        ("model_config", {"vocab_size": 8}, "fields of the configuration"),
        ("variant", "fp16", "Rename"),
    ],
)
def test_options_of_other_packages_are_refused_with_a_remedy(folder, name, value, says):
    with pytest.raises(InputError, match=says):
        mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder, **{name: value})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "keywords",
    [
        {"generation_config": None, "adapter_kwargs": {}, "device_mesh": None, "kernel_config": None, "tp_size": None},
        {"adapter_path": None, "model_config": {}, "tokenizer_config": None, "strict": True, "return_config": False},
        {
            "trust_remote_code": False,
            "resume_download": True,
            "code_revision": "main",
            "subfolder": "",
            "dtype": "auto",
        },
    ],
    ids=["transformers", "mlx-lm", "the Hub"],
)
def test_values_that_request_nothing_are_accepted(folder, call, keywords, caplog):
    with caplog.at_level(logging.WARNING, "mlx_qwen3"):
        call(folder, **keywords)
    assert not caplog.text


def test_requests_of_other_packages_are_refused_with_the_next_step(folder):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"strict": False}, "ignore_mismatched_sizes"),
        ({"generation_config": mlx_qwen3.GenerationConfig()}, "set model.generation_config"),
        ({"tp_size": 2}, "distributed=True"),
        ({"return_config": True}, "model.config"),
    ]
    for given, says in refused:
        with pytest.raises(InputError, match=says):
            mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder, **given)
