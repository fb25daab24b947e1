"""Adapters of `--adapter`: the field `model` selects the base or an adapter, also in one batch."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3.adapters import add_adapter
from mlx_qwen3.server import ServerSettings
from mlx_qwen3.server.engine import Engine
from mlx_qwen3.server.models import load_models
from tests.support.running_server import Running

BASE = "tiny-chat"
ADAPTERS = ("first", "second")
NAMES = (BASE, *ADAPTERS)


def write_adapter(folder: Path, base: Path, seed: int) -> Path:
    """Save a LoRA adapter with random matrices, strong enough to change greedy tokens."""
    model, _ = mlx_qwen3.load(base)
    mx.random.seed(seed)
    add_adapter(model, r=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"], base=str(base))
    weights: list[Any] = tree_flatten(model.parameters())
    random_ones = [(name, mx.random.normal(array.shape) * 0.3) for name, array in weights if ".lora_" in name]
    model.load_weights(random_ones, strict=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(root / name, chat_folder, seed) for seed, name in enumerate(ADAPTERS)}


@pytest.fixture(scope="module")
def adapted(chat_folder: Path, adapters: dict[str, Path]) -> Iterator[Running]:
    flags = [flag for name, folder in adapters.items() for flag in ("--adapter", f"{name}={folder}")]
    running = Running("--model", str(chat_folder), "--max-batch", "8", "--prefix-cache", "0.01", *flags)
    yield running
    assert running.stop() == 0


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def request(number: int) -> dict[str, Any]:
    """Return a completion request of 5 to 60 token ids, for the base and the adapters in turn."""
    generator = random.Random(number)
    prompt = [generator.randrange(300, 400) for _ in range(5 + 11 * number % 56)]
    return {"model": NAMES[number % 3], "prompt": prompt, "max_tokens": 6 + number % 9}


def test_models_lists_the_base_and_every_adapter(adapted: Running):
    listed = adapted.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == list(NAMES)
    for model in listed:
        assert {"chat", "completions"} <= set(model["abilities"])
    assert adapted.client.get("/v1/models/second").json() == listed[2]


def test_the_model_field_selects_the_base_or_an_adapter(adapted: Running, chat_folder: Path, adapters: dict[str, Path]):
    prompt = [301, 333, 350, 342, 399]
    expected = {}
    for name, source in {BASE: chat_folder, **adapters}.items():
        model, tokenizer = mlx_qwen3.load(source)
        assert isinstance(model, mlx_qwen3.Qwen3ForCausalLM)
        ids = model.generate(mx.array([prompt]), max_new_tokens=12, do_sample=False)
        expected[name] = tokenizer.decode(ids[0].tolist()[len(prompt) :], skip_special_tokens=True)
    assert len(set(expected.values())) == 3
    for name, answer in expected.items():
        response = adapted.complete(prompt, model=name, max_tokens=12)
        assert text(response) == answer
        assert response.json()["model"] == name
    assert text(adapted.complete(prompt, max_tokens=12)) == expected[BASE]


def test_an_adapter_answers_chats(adapted: Running):
    body = {"messages": [{"role": "user", "content": "Ann?"}], "temperature": 0, "max_tokens": 12}
    answers = [adapted.post("/v1/chat/completions", {**body, "model": name}).json() for name in NAMES]
    assert [answer["model"] for answer in answers] == list(NAMES)
    assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_unknown_name_is_404_and_lists_the_models(adapted: Running, path: str):
    content = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    answer = adapted.post(path, {**content, "model": "third"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", "model", "model_not_found")
    assert all(name in error["message"] for name in ("third", *NAMES))


def test_interleaved_requests_of_the_base_and_the_adapters_equal_single_ones(adapted: Running):
    alone = [text(adapted.complete(**request(number))) for number in range(18)]
    with ThreadPoolExecutor(18) as pool:
        together = list(pool.map(lambda number: text(adapted.complete(**request(number))), range(18)))
    assert together == alone


def test_a_cached_prompt_is_not_reused_for_another_adapter(adapted: Running):
    prompt = [random.Random(99).randrange(300, 400) for _ in range(64)]
    before = adapted.wait_idle()["prefix_cache_entries"]
    answers = [adapted.complete(prompt, model=name, max_tokens=4) for name in NAMES * 2]
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [0, 0, 0, 63, 63, 63]
    assert [text(answer) for answer in answers[:3]] == [text(answer) for answer in answers[3:]]
    assert adapted.wait_idle()["prefix_cache_entries"] >= before + 3


def test_the_base_and_the_adapters_share_the_bytes_for_earlier_prompts(chat_folder: Path, adapters: dict[str, Path]):
    folders = {name: str(folder) for name, folder in adapters.items()}
    settings = ServerSettings(model=chat_folder, adapters=folders, prefix_bytes=1000)
    engine = Engine(settings, lambda: load_models(settings))
    engine.start()
    assert engine.ready.wait(60)
    engine.stop()
    assert engine.join(10)
    assert engine.error is None
    assert [cache.max_bytes for cache in engine.prefixes] == [333, 333, 333]
