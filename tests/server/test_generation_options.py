"""The options of a request are resolved as those of `stream_generate`, the checkpoint's own included."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3 import load, stream_generate
from tests.support.running_server import Running

PROMPT = [301, 302, 303, 304, 302, 303]
CONFIGS: dict[str, dict[str, Any]] = {
    "suppressed": {"suppress_tokens": [*range(0, 416, 3)], "no_repeat_ngram_size": 2, "min_new_tokens": 9},
    "warped": {"do_sample": True, "typical_p": 0.9, "epsilon_cutoff": 0.001, "repetition_penalty": 1.2},
    "plain": {"do_sample": True, "temperature": 0.8},
}


@pytest.fixture(scope="module", params=CONFIGS)
def configured(
    chat_folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Running, Path]]:
    folder = tmp_path_factory.mktemp("configured") / "tiny-chat"
    shutil.copytree(chat_folder, folder)
    path = folder / "generation_config.json"
    own = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**own, **CONFIGS[request.param]}))
    running = Running("--model", str(folder))
    yield running, folder
    assert running.stop() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"seed": 7},
        {"seed": 7, "temperature": 1.3, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0.0, "presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.5},
        {"temperature": 0.0, "logit_bias": {"310": 30.0}},
    ],
    ids=str,
)
def test_a_completion_is_what_stream_generate_yields(configured: tuple[Running, Path], options: dict[str, Any]):
    running, folder = configured
    model, tokenizer = load(folder)
    keywords = dict(options)
    if "logit_bias" in keywords:
        keywords["logit_bias"] = {int(token): value for token, value in keywords["logit_bias"].items()}
    expected = "".join(
        response.text for response in stream_generate(model, tokenizer, mx.array(PROMPT), max_tokens=20, **keywords)
    )
    body = {"prompt": PROMPT, "max_tokens": 20, **options}
    assert running.post("/v1/completions", body).json()["choices"][0]["text"] == expected
