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


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_of_labels_is_kept_next_to_the_prediction(ending, tmp_path):
    source, target = tmp_path / "rows.csv", tmp_path / f"found.{ending}"
    source.write_text("text,label,score\nOpen a socket.,gold,7\n", encoding="utf-8")
    assert main(["classify", "--file", str(source), "-o", str(target)]) == 0
    with target.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file)) if ending == "csv" else json.loads(file.read())
    assert (row["label"], row["score"]) == ("gold", "7")
    assert (row["predicted_label"] if ending == "csv" else row["labels"][0]["label"]) == "network"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_ctrl_c_before_the_first_row_keeps_an_existing_file(ending, rows, tmp_path, capsys, monkeypatch):
    target = tmp_path / f"found.{ending}"
    target.write_text("earlier rows", encoding="utf-8")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_qwen3.tasks.task.Task._window", interrupted)
    assert main(["classify", "--file", str(rows), "-o", str(target)]) == 130
    assert target.read_text(encoding="utf-8") == "earlier rows"
    assert f"stopped by Ctrl-C before the first row; {target} is not written\n" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, rows.name])


@pytest.mark.parametrize(
    ("content", "message"), [("", "holds no text"), ("\ntext\nOpen a file.\n", "line 1 is empty. Write the names")]
)
def test_a_csv_file_without_names_of_columns_is_refused(content, message, tmp_path, capsys):
    source = tmp_path / "rows.csv"
    source.write_text(content, encoding="utf-8")
    assert main(["classify", "--file", str(source)]) == 2
    assert message in capsys.readouterr().err
