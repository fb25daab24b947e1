"""`--output FILE`: every format keeps ids and columns; an invalid name is refused before a model is loaded."""

import csv
import json

import numpy as np
import pytest

from mlx_qwen3.cli import main

ROWS = [{"id": "a", "text": "Return the length of a list.", "note": "ünïcode"}, {"id": "b", "text": "Open a socket."}]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def test_json_lines_keep_every_column(rows, tmp_path):
    target = tmp_path / "found.jsonl"
    assert main(["classify", "--file", str(rows), "--output", str(target)]) == 0
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in found] == ["a", "b"]
    assert found[0]["note"] == ROWS[0]["note"]
    assert all(0 < row["labels"][0]["score"] <= 1 for row in found)


def test_a_csv_file_has_one_column_for_the_label(rows, tmp_path):
    target = tmp_path / "found.csv"
    assert main(["classify", "--file", str(rows), "-o", str(target)]) == 0
    with target.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == ["a", "b"]
    assert [row["note"] for row in found] == ["ünïcode", ""]
    assert all(row["label"] and float(row["score"]) > 0 for row in found)


def test_a_parquet_file_has_the_same_columns(rows, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "found.parquet"
    assert main(["classify", "--file", str(rows), "-o", str(target)]) == 0
    found = parquet.read_table(target).to_pylist()
    assert [(row["id"], row["note"]) for row in found] == [("a", "ünïcode"), ("b", None)]
    assert all(isinstance(row["score"], float) for row in found)


def test_embeddings_are_saved_as_one_array(rows, tmp_path, capsys):
    target = tmp_path / "vectors.npy"
    assert main(["embed", "--file", str(rows), "-o", str(target)]) == 0
    vectors = np.load(target)
    assert vectors.shape[0] == 2
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-4)
    assert "vectors.npy: 2 rows" in capsys.readouterr().err


def test_a_row_that_fails_is_reported_and_the_others_are_written(tmp_path, capsys):
    source, target = tmp_path / "rows.jsonl", tmp_path / "found.csv"
    source.write_text('{"id": 1, "text": "Open a file."}\n{"id": 2, "text": ""}\n', encoding="utf-8")
    assert main(["classify", "--file", str(source), "-o", str(target)]) == 1
    with target.open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["id"], first["error"], second["id"], second["label"]) == ("1", "", "2", "")
    assert "text is empty" in second["error"]
    assert main(["embed", "--file", str(source), "-o", str(tmp_path / "vectors.npy")]) == 2
    assert "row 1 has no vector" in capsys.readouterr().err
    assert not (tmp_path / "vectors.npy").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("found.txt", "expected a name that ends in one of .jsonl, .csv, .parquet"),
        ("found", "expected a name that ends in"),
        ("found.npy", "expected a name that ends in"),
        ("folder.csv", "is a folder"),
        ("rows.jsonl", "is the file that the rows are read from"),
    ],
)
def test_invalid_names_are_refused_before_a_model_is_loaded(rows, tmp_path, capsys, monkeypatch, name, words):
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr("mlx_qwen3.pipeline", None)
    before = rows.read_bytes()
    assert main(["classify", "--file", str(rows), "--output", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert rows.read_bytes() == before
