"""Extraction: one valid value per text."""

import json

import pytest

import mlx_qwen3
from mlx_qwen3.cli.main import main
from mlx_qwen3.errors import ConstraintError, InputError, RowError

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def task():
    return mlx_qwen3.pipeline("extraction", schema=SCHEMA)


def test_each_text_gives_a_valid_value(task):
    for value in task(["one", "two two", "three"], temperature=1.0, seed=1):
        assert value["kind"] in ("a", "b")
        assert 0 <= value["n"] <= 9


def test_truncated_and_bad_rows_are_reported(task):
    with pytest.raises(RowError, match="cut after 2 tokens"):
        task(["one"], max_new_tokens=2, schema={"type": "string", "pattern": "^x{50}$"})
    with pytest.raises(ConstraintError, match="uniqueItems"):
        task("one", schema={"uniqueItems": True})
    with pytest.raises(InputError, match="needs a schema"):
        mlx_qwen3.extract("one", None, task.model, task.tokenizer)
    records = task(["one", ""], on_error="record")
    assert set(records[0]) == {"kind", "n"}
    assert records[1]["row"] == 1


def test_the_command_extracts_from_the_rows_of_a_file(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("id,text\n7,one\n8,two\n")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    out = tmp_path / "rows.jsonl"
    arguments = ["extract", "--file", str(tmp_path / "rows.csv"), "--output", str(out), "--schema"]
    assert main([*arguments, str(tmp_path / "schema.json")]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["7", "8"]
    assert all(row["value"]["kind"] in ("a", "b") for row in rows)
    assert main([*arguments, str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err
