"""Token tables on disk: concurrent processes, read-only folders, damaged files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_qwen3
from mlx_qwen3.generation.tokenizer_tables import CACHE_VARIABLE, TokenTables

ROOT = Path(mlx_qwen3.__file__).parent.parent
WRITER = (
    "import mlx_qwen3, hashlib; from mlx_qwen3.generation.tokenizer_tables import TokenTables; "
    "_, tokenizer = mlx_qwen3.load(); "
    "print([hashlib.sha256(b'|'.join(TokenTables(tokenizer).tokens)).hexdigest() for _ in range(3)])"
)


@pytest.fixture(scope="module")
def tokenizer():
    return mlx_qwen3.load()[1]


def test_concurrent_processes_write_the_same_tables(tmp_path):
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path), "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    (output,) = outputs
    assert len(set(output.strip("[]\n").split(", "))) == 1
    (file,) = (tmp_path / "tokenizers").iterdir()  # no temporary file remains
    assert file.suffix == ".tokens"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_folder_is_sufficient_for_reading(tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    made = TokenTables(tokenizer)
    (tmp_path / "tokenizers").chmod(0o500)
    assert TokenTables(tokenizer).tokens == made.tokens
    assert not caplog.records
    (tmp_path / "tokenizers").chmod(0o700)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"x" + data[41:]]
)
def test_a_damaged_file_is_replaced(damage, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    made = TokenTables(tokenizer)
    (file,) = (tmp_path / "tokenizers").iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert TokenTables(tokenizer).tokens == made.tokens
    assert file.read_bytes() == content


def test_a_changed_vocabulary_has_separate_tables(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    _, tokenizer = mlx_qwen3.load()
    before = TokenTables(tokenizer)
    tokenizer.add_tokens(["<another one>"])
    after = TokenTables(tokenizer)
    assert len(after.tokens) == len(before.tokens) + 1
    assert after.tokens_by_text["<another one>"] == len(before.tokens)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_prepared_tables_give_the_same_masks(tokenizer, monkeypatch):
    from mlx_qwen3.generation import constraints

    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}}, "required": ["a"]}
    text = tokenizer.encode('{"a":"one text of a few words","b":[1,2]}', add_special_tokens=False)

    def masks():
        constraint = constraints.compile_constraint("schema", schema, tokenizer)
        matcher, found = constraint.matcher(), []
        for token in text:
            found.append(matcher.mask().tolist())
            matcher.accept(token)
        matcher.rollback(3)
        return [*found, matcher.mask().tolist()], constraint.tables

    plain, tables = masks()
    monkeypatch.setattr(constraints, "SLOW_MASK", 0.0)
    monkeypatch.setattr(tables, "generation", 0)
    monkeypatch.setattr(tables, "_credit", 1e-6)
    prepared, _ = masks()
    assert tables.generation == 1
    assert prepared == plain
