"""The tables for constrained output are built at startup, not by the first request with a schema."""

import threading
from pathlib import Path

import pytest

import mlx_qwen3
from mlx_qwen3.errors import ConstraintError
from mlx_qwen3.generation import tokenizer_tables
from mlx_qwen3.generation.constraints import compile_constraint
from mlx_qwen3.server import ServerSettings
from mlx_qwen3.server.models import load_models, start_constraint_preparation
from tests.support import tiny_checkpoints


def test_loading_the_models_builds_the_tables_once(chat_folder: Path, monkeypatch: pytest.MonkeyPatch):
    built = []

    class Recorded(tokenizer_tables.TokenTables):
        def __init__(self, tokenizer):
            built.append(threading.current_thread().name)
            super().__init__(tokenizer)

    monkeypatch.setattr(tokenizer_tables, "TokenTables", Recorded)
    models = load_models(ServerSettings(model=chat_folder))
    for thread in threading.enumerate():
        if thread.name == "mlx-qwen3-constraints":
            thread.join(30)
    assert built == ["mlx-qwen3-constraints"]
    compile_constraint("schema", {"type": "boolean"}, models.served[0].tokenizer)
    assert len(built) == 1


def test_a_tokenizer_without_byte_level_vocabulary_is_no_failure_at_startup(tmp_path: Path):
    folder = tiny_checkpoints.write_bert(tmp_path / "bert", "QDQBertForMaskedLM")
    tokenizer = mlx_qwen3.AutoTokenizer.from_pretrained(folder)
    thread = start_constraint_preparation(tokenizer)
    thread.join(30)  # an error in the thread fails this test
    assert not thread.is_alive()
    with pytest.raises(ConstraintError):
        compile_constraint("schema", {"type": "boolean"}, tokenizer)
