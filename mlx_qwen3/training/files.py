"""Read the rows of training files: csv, tsv, jsonl, json, parquet, CoNLL, and folders of them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import parse_json, read_text

TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
CONLL = (".conll", ".conllu", ".iob", ".bio", ".txt")
READ = "csv, tsv, jsonl, json or parquet"
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Row:
    """One row of a file: its fields, and its location for messages, such as "line 3"."""

    location: str
    fields: dict[str, Any]


def find_files(data: str | Path, valid: str | Path | None) -> tuple[Path, Path | None]:
    """Return the training file and the validation file, if any; a folder contains train.* and optionally valid.*.

    Raises:
        InputError: a file does not exist.
    """
    for name, value in (("data", data), ("valid", valid)):
        if not isinstance(value, str | os.PathLike) and (name == "data" or value is not None):
            raise InputError(f"{name} is {value!r:.60}. Give the path of a file.")
    path = Path(os.path.expanduser(data))
    if not path.exists():
        raise InputError(f"there is no file or folder {data}. Check the path.")
    if not path.is_dir():
        return path, _check_exists(valid)
    train = _find_stem(path, ("train",))
    if train is None:
        raise InputError(f"{data} is a folder without train.jsonl, train.csv or similar. Give the path of the file.")
    return train, _check_exists(valid) or _find_stem(path, ("valid", "validation", "dev"))


def _check_exists(path: str | Path | None) -> Path | None:
    if path is None:
        return None
    found = Path(os.path.expanduser(path))
    if not found.is_file():
        raise InputError(f"there is no file {path}. Check the path.")
    return found


def _find_stem(folder: Path, stems: Sequence[str]) -> Path | None:
    for stem in stems:
        for suffix in (*JSON_LINES, ".json", *TABLES, ".parquet", *CONLL):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a csv, tsv, jsonl, json or parquet file.

    Raises:
        InputError: the file cannot be read, has another format, or has no rows; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix in TABLES:
        rows = list(_read_table(path, TABLES[suffix]))
    elif suffix in JSON_LINES:
        rows = list(_read_json_lines(path))
    elif suffix == ".json":
        rows = list(_read_json_array(path))
    elif suffix == ".parquet":
        rows = list(_read_parquet(path))
    else:
        raise InputError(f"{path}: unsupported file type: {suffix or 'no suffix'}. Give {READ}.")
    if not rows:
        raise InputError(f"{path} has no rows. Give a file with data.")
    return rows


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    text = read_text(path, error=InputError, max_bytes=MAX_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    limit = csv.field_size_limit(MAX_BYTES)
    try:
        names = [name for name in reader.fieldnames or [] if name]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{path} has the column {name!r} twice. Rename or remove one.")
        for row in reader:
            if None in row:
                raise InputError(f"{path}: line {reader.line_num} has more cells than the header. Quote its text.")
            yield Row(f"line {reader.line_num}", {name: _read_cell(cell) for name, cell in row.items()})
    except csv.Error as problem:
        raise InputError(f"{path}: line {reader.line_num} cannot be read: {problem}. Try a jsonl file.") from None
    finally:
        csv.field_size_limit(limit)


def _read_cell(cell: str | None) -> str | None:
    """Return the content of a cell; None for "nan", as missing values are often written."""
    return None if cell is None or cell.strip().lower() == "nan" else cell


def _read_json_lines(path: Path) -> Iterator[Row]:
    text = read_text(path, error=InputError, max_bytes=MAX_BYTES)
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            location = f"line {number}"
            yield _make_row(path, location, parse_json(line, f"{path}: {location}", error=InputError))


def _read_json_array(path: Path) -> Iterator[Row]:
    content = parse_json(read_text(path, error=InputError, max_bytes=MAX_BYTES), str(path), error=InputError)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = list(_read_squad(path, content["data"]))
    if not isinstance(content, list):
        raise InputError(f"{path} is not a JSON array. Write [row, row, …], or one row per line in a .jsonl file.")
    for index, entry in enumerate(content):
        yield _make_row(path, f"row {index}", entry)


def _make_row(path: Path, location: str, entry: Any) -> Row:
    if isinstance(entry, str):
        entry = {"text": entry}
    if not isinstance(entry, dict):
        raise InputError(f'{path}: {location} is not a JSON object. Write {{"text": …, "label": …}}.')
    return Row(location, entry)


def _read_squad(path: Path, articles: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions of a file in the nested SQuAD format."""
    for index, article in enumerate(articles):
        if not (isinstance(article, dict) and isinstance(article.get("paragraphs"), list)):
            if isinstance(article, dict):
                yield article
                continue
            raise InputError(
                f"{path}: entry {index} of 'data' is not an article with paragraphs. Use the SQuAD format."
            )
        for paragraph in article["paragraphs"]:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or not all(isinstance(question, dict) for question in questions):
                raise InputError(
                    f"{path}: entry {index} of 'data' has a paragraph without a list of questions 'qas'. Use the SQuAD "
                    "format."
                )
            for question in questions:
                yield {"context": paragraph.get("context"), **question}


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow. Run pip install pyarrow, or give a jsonl file.") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{path} is not a valid parquet file: {str(problem).splitlines()[0].rstrip('.')}. Check the file."
        ) from None
    for index, row in enumerate(rows):
        yield Row(f"row {index}", row)


def read_conll(path: Path) -> list[Row]:
    """Return the sentences of a CoNLL file as rows with `tokens` and `labels`, the first and the last column.

    Blank lines separate sentences; lines that begin with `#` or `-DOCSTART-` are skipped.

    Raises:
        InputError: a line has only one column, or the file has no sentences.
    """
    rows: list[Row] = []
    tokens: list[str] = []
    labels: list[str] = []
    start = 1
    lines = re.split(r"\r\n|\r|\n", read_text(path, error=InputError, max_bytes=MAX_BYTES))
    for number, line in enumerate([*lines, ""], 1):
        cells = re.split(r"[ \t]+", line.strip(" \t")) if line.strip() else []
        if not cells or cells[0] == "-DOCSTART-":
            if tokens:
                rows.append(Row(f"line {start}", {"tokens": tokens, "labels": labels}))
            tokens, labels, start = [], [], number + 1
            continue
        if cells[0].startswith("#") and len(cells) != 2 and not tokens:
            continue
        if len(cells) < 2:
            raise InputError(f"{path}: line {number} has no label: {line.strip()!r}. Write a token and its label.")
        tokens.append(cells[0])
        labels.append(cells[-1])
    if not rows:
        raise InputError(
            f"{path} has no sentences. Write a token and its label per line, and a blank line between sentences."
        )
    return rows


def field(row: Row, name: str, path: Path, flag: str) -> Any:
    """Return a field of a row.

    Raises:
        InputError: the file has no such column; the message lists its columns.
    """
    if name not in row.fields:
        known = ", ".join(map(repr, row.fields)) or "none"
        raise InputError(f"{path}: {row.location} has no column {name!r}, only {known}. Name one with {flag}.")
    return row.fields[name]


def data_hash(*paths: Path | None) -> str:
    """Return the SHA-256 of the contents of files."""
    import hashlib

    digest = hashlib.sha256()
    for path in paths:
        if path is not None:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def rows_hash(rows: Sequence[Any]) -> str:
    """Return the SHA-256 of rows in memory."""
    import hashlib

    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=str).encode()).hexdigest()
