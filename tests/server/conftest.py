"""A server process with a tiny random chat model, shared by the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_checkpoints
from tests.support.running_server import Running


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.write_qwen3(
        tmp_path_factory.mktemp("served") / "tiny-chat", "Qwen3ForCausalLM", seed=3, max_position_embeddings=4096
    )


@pytest.fixture(scope="session")
def server(chat_folder: Path) -> Iterator[Running]:
    running = Running(
        "--model",
        str(chat_folder),
        "--max-batch",
        "8",
        "--max-queue",
        "64",
        "--cache-memory",
        "0.1",
        "--prefix-cache",
        "0.01",
    )
    yield running
    assert running.stop() == 0
