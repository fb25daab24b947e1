"""Read the rows of the verbs for texts from arguments, a file (txt, csv, tsv, jsonl, json, parquet) or stdin."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

from ..errors import InputError
from .model_flags import add_gguf_file_flag, add_revision_flag, check_revision, resolve_gguf_file
from .ranks import is_first_process, is_launched, share_rows
from .results import count_finished_rows, output_path
from .standard_streams import open_utf8_input, utf8_error

TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
READABLE = "txt (one row per line), csv, tsv, jsonl, json (an array) or parquet"
REFUSED_SUFFIXES = (
    *(".doc", ".docx", ".odt", ".pdf", ".rtf", ".html", ".xml", ".yaml", ".yml"),
    *(".xls", ".xlsx", ".ods", ".npy", ".npz", ".pkl", ".gz", ".zip", ".zst"),
)
"""Suffixes of formats that cannot be read as lines of text."""

BATCH_TOKENS = {"cpu": 512, "gpu": 8192}
"""Tokens per batch by device: few on a CPU, so that results and Ctrl-C are not delayed; many keep a GPU busy."""


def add_model_arguments(parser: argparse.ArgumentParser, needed: str | None = None) -> None:
    """Add `--model`, `--dtype` and the other flags of every task.

    Args:
        needed: an example of a suitable model, for verbs that the bundled model does not support.
    """
    default = f", such as {needed} (required, no default)" if needed else " (default: the bundled small model)"
    parser.add_argument("--model", help=f"a folder or a Hub repository{default}")
    parser.add_argument("--adapter", help="PEFT or mlx-lm adapter to apply to the model")
    add_revision_flag(parser)
    add_gguf_file_flag(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="computation dtype (default: float32 on a CPU, else that of the checkpoint)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"rows per batch (default: as many as fit into {BATCH_TOKENS['gpu']} tokens on a GPU, "
        f"{BATCH_TOKENS['cpu']} tokens on a CPU)",
    )
    parser.add_argument(
        "--max-length", type=int, help="maximum tokens per row; longer texts are cut (default: the limit of the model)"
    )
    parser.set_defaults(model_needed=needed)


def add_text_arguments(parser: argparse.ArgumentParser, what: str, column: str = "text") -> None:
    """Add the positional texts, `--file` and `--column`. `what` describes the texts in the help."""
    parser.add_argument("text", nargs="*", help=f"{what}; without texts and --file, stdin is read, one row per line")
    parser.add_argument("--file", help=f"{READABLE}; - for stdin. Blank lines are skipped and not counted")
    parser.add_argument(
        "--column",
        "--text-column",
        default=column,
        help=f"column or JSON key of the texts in --file (default: {column})",
    )


def task_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `pipeline` that all verbs share.

    Raises:
        InputError: the verb needs a model and there is none, or `--output` cannot be used.
    """
    if args.model is None and args.model_needed:
        raise InputError(
            f"{args.verb} needs --model, because the bundled model does not support it. "
            f"Give one such as {args.model_needed}."
        )
    check_revision(args)
    resolve_gguf_file(args)
    output_path(args)
    import mlx.core as mx

    return {
        "distributed": is_launched(),
        "model": args.model,
        "model_options": {
            name: value for name in ("dtype", "adapter", "revision") if (value := getattr(args, name, None)) is not None
        }
        or None,
        "batch_size": args.batch_size,
        "batch_tokens": BATCH_TOKENS[mx.default_device().type.name],
        "max_length": args.max_length,
        "on_error": "record",
        "progress": not args.text and sys.stderr.isatty() and not (sys.stdout.isatty() and args.format == "json"),
    }


class Row(dict[str, Any]):
    """A row of a file with all its columns.

    value: the input of the task: the text, or a dictionary of some columns.
    """

    value: Any


def make_row(value: Any, columns: dict[str, Any] | None = None) -> Row:
    """Return a row with a value; without `columns`, its only column is "text", the value itself."""
    row = Row({"text": value} if columns is None else columns)
    row.value = value
    return row


def read_rows(args: argparse.Namespace, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read the rows. With `columns`, their values are dictionaries of these columns. Blank lines are skipped.

    The first row is read immediately, so that an unusable file is reported before a model is loaded.

    Raises:
        InputError: the file cannot be read, lacks a column, or has a line that is not JSON.
    """
    if args.text and args.file:
        raise InputError("texts and --file are both given. Leave one of them out.")
    done = count_finished_rows(args) if is_first_process() else 0
    rows = share_rows(lambda: islice(_read_all_rows(args, columns), done, None), make_row)
    first = list(islice(rows, 1))
    return chain(first, rows)


def _read_all_rows(args: argparse.Namespace, columns: Sequence[str]) -> Iterator[Row]:
    if args.text:
        return map(make_row, args.text)
    if args.file in (None, "-"):
        if columns:
            raise InputError(
                f"stdin: rows of {' and '.join(columns)} need a file. Give a csv, tsv, jsonl or json file."
            )
        rows: Iterator[Row] = map(make_row, _read_stdin())
    else:
        rows = _read_file(Path(args.file), columns or (args.column,), bool(columns))
    first = list(islice(rows, 1))
    if not first:
        raise InputError(f"{args.file or 'stdin'}: holds no text. Give a text or a file with rows.")
    return chain(first, rows)


def _read_stdin() -> Iterator[str]:
    if sys.stdin.isatty():
        raise InputError("there is no text. Give texts, --file, or text on stdin.")
    try:
        yield from _read_lines(open_utf8_input())
    except UnicodeDecodeError:
        raise utf8_error() from None


def _read_file(path: Path, columns: Sequence[str], several: bool) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise InputError(f"{path}: cannot read {suffix} files. Give {READABLE}.")
    if suffix == ".parquet":
        yield from _select_columns(path, _read_parquet(path), columns, several)
        return
    with _open_text(path) as file:
        if suffix in TABLES:
            yield from _read_table(path, file, columns, several)
        elif suffix in JSON_LINES:
            yield from _select_columns(path, _read_json_lines(path, file), columns, several)
        elif suffix == ".json":
            yield from _select_columns(path, _read_json_array(path, file), columns, several)
        elif several:
            raise InputError(
                f"{path}: rows of {' and '.join(columns)} need columns. Give a csv, tsv, jsonl or json file."
            )
        else:
            yield from map(make_row, _read_lines(file))


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text. Save it as UTF-8.") from None


def _read_lines(file: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in file if line.strip())


def _read_table(path: Path, file: TextIO, columns: Sequence[str], several: bool) -> Iterator[Any]:
    reader = csv.DictReader(file, delimiter=TABLES[path.suffix.lower()], restval="")
    try:
        names = reader.fieldnames
        if names is None:
            return  # an empty file, reported as a file without text
        if not names:
            raise InputError(f"{path}: line 1 is empty. Write the names of the columns there.")
        for name in columns:
            if name not in names:
                known = shorten(", ".join(names), 200)
                raise InputError(f"{path}: has no column {name!r}, only {known}. Give one with --column.")
        for row in reader:
            if any("".join(cells).strip() for cells in row.values()):  # surplus cells are a list
                row.pop(None, None)  # drop surplus cells
                value = {name: row[name] for name in columns} if several else row[columns[0]]
                yield make_row(value, dict(row))
    except csv.Error as error:
        raise InputError(
            f"{path}: cannot be read after line {reader.line_num} ({error}). Correct the line, or write a jsonl file."
        ) from error


def _read_json_lines(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:  # a number with too many digits is a ValueError
            reason = getattr(error, "msg", "nested too deeply, or a number is too long")
            raise InputError(f"{path}: line {number} is not JSON ({reason}). Correct the line.") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f"{path}: parquet files need pyarrow. Run pip install pyarrow, or give {READABLE}.") from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (OSError, ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}). Write it again.") from None


def _read_json_array(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.load(file)
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply. Give an array of texts or objects.") from error
    except json.JSONDecodeError as error:
        hint = "Correct it, or name a file with one row per line .jsonl"
        raise InputError(f"{path}: line {error.lineno} is not JSON ({error.msg}). {hint}.") from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: holds a number with too many digits. Write it as text.") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: is not a JSON array. Write [row, row, …], or one row per line in a .jsonl file.")
    yield from ((f"row {index}", row) for index, row in enumerate(rows))


def _select_columns(
    path: Path, rows: Iterable[tuple[str, Any]], columns: Sequence[str], several: bool
) -> Iterator[Any]:
    """Yield a `Row` for each of `rows`, which are pairs of position in the file and JSON value."""
    for position, row in rows:
        if isinstance(row, str) and not several:
            yield make_row(row)
            continue
        if not isinstance(row, dict):
            raise InputError(f"{path}: {position} is not a JSON object. Write an object with the columns as keys.")
        for name in columns:
            if name not in row:
                raise InputError(f"{path}: {position} has no key {name!r}. Add it, or give another key with --column.")
        value = {name: row[name] for name in columns} if several else row[columns[0]]
        yield make_row(value, row)


def add_result(row: Row, result: dict[str, Any]) -> Row:
    """Return a row with the result of a task added to its columns."""
    return make_row(row.value, {**row, **result})
