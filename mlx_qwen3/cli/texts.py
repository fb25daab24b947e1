"""Where the verbs for texts take their rows from: arguments, a file (txt, csv, tsv, jsonl, json) or stdin."""

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
from .model_flags import add_gguf_file_flag, add_revision_flag, check_revision, name_gguf_file
from .ranks import is_first_process, launched, share_rows
from .results import output_path, rows_done
from .standard_streams import not_utf8, utf8_input

TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
READ = "txt (one row per line), csv, tsv, jsonl, json (an array) or parquet"
REFUSED = (
    *(".doc", ".docx", ".odt", ".pdf", ".rtf", ".html", ".xml", ".yaml", ".yml"),
    *(".xls", ".xlsx", ".ods", ".npy", ".npz", ".pkl", ".gz", ".zip", ".zst"),
)
"""Suffixes of files whose lines are no texts."""

BATCH_TOKENS = {"cpu": 512, "gpu": 8192}
"""Tokens of a batch by device: on a CPU few, so that results appear and Ctrl-C is heard; a GPU is fast with many."""


def add_model_arguments(parser: argparse.ArgumentParser, needed: str | None = None) -> None:
    """`--model`, `--dtype` and what every task takes.

    Args:
        needed: a model for the message, where the one that comes with the package cannot do what the verb does.
    """
    default = f"such as {needed}; needed" if needed else "by default the model that comes with the package"
    parser.add_argument("--model", help=f"a folder or a Hub repository; {default}")
    parser.add_argument("--adapter", help="a PEFT or mlx-lm adapter to put into the model")
    add_revision_flag(parser)
    add_gguf_file_flag(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="what to compute in (default: float32 on a CPU, else the checkpoint's)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"rows that the model sees at once; by default as many as {BATCH_TOKENS['gpu']} tokens hold on a GPU, "
        f"{BATCH_TOKENS['cpu']} on a CPU",
    )
    parser.add_argument("--max-length", type=int, help="tokens of a row; longer texts are cut")
    parser.set_defaults(model_needed=needed)


def add_text_arguments(parser: argparse.ArgumentParser, what: str, column: str = "text") -> None:
    """The texts themselves, `--file` and `--column`."""
    parser.add_argument(
        "text", nargs="*", help=f"{what}; without any, and without --file, stdin is read, one row per line"
    )
    parser.add_argument("--file", help=f"{READ}; - for stdin. Blank lines are left out and not counted")
    parser.add_argument(
        "--column", "--text-column", default=column, help=f"column of a csv or tsv, key of a json (default: {column})"
    )


def task_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `pipeline` takes from the arguments of every verb.

    Raises:
        InputError: no model, for a verb that needs one.
    """
    if args.model is None and args.model_needed:
        raise InputError(
            f"{args.verb} needs --model, such as {args.model_needed}; the model of the package cannot do it"
        )
    check_revision(args)
    name_gguf_file(args)
    output_path(args)
    import mlx.core as mx

    return {
        "distributed": launched(),
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
    """A row of a file: all its columns. `value` is what the task gets: the text, or some of the columns."""

    value: Any


def row_of(value: Any, columns: dict[str, Any] | None = None) -> Row:
    """Return a row with this value; without columns its text is its one column."""
    row = Row({"text": value} if columns is None else columns)
    row.value = value
    return row


def read_rows(args: argparse.Namespace, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read the rows; with `columns`, their values are dictionaries of these columns. Blank lines are no rows.

    The first row is read at once, so that a file that cannot be used is refused before a model is loaded.

    Raises:
        InputError: a file that cannot be read, a column that it does not have, a line that is no JSON.
    """
    if args.text and args.file:
        raise InputError("give texts or --file, and not both")
    done = rows_done(args) if is_first_process() else 0
    rows = share_rows(lambda: islice(_all_rows(args, columns), done, None), row_of)
    first = list(islice(rows, 1))
    return chain(first, rows)


def _all_rows(args: argparse.Namespace, columns: Sequence[str]) -> Iterator[Row]:
    if args.text:
        return map(row_of, args.text)
    if args.file in (None, "-"):
        if columns:
            raise InputError(f"stdin: rows of {' and '.join(columns)} need a csv, tsv, jsonl or json file")
        rows: Iterator[Row] = map(row_of, _stdin())
    else:
        rows = _file(Path(args.file), columns or (args.column,), bool(columns))
    first = list(islice(rows, 1))
    if not first:
        raise InputError(f"{args.file or 'stdin'}: holds no text")
    return chain(first, rows)


def _stdin() -> Iterator[str]:
    if sys.stdin.isatty():
        raise InputError("no text: give texts, --file, or text on stdin")
    try:
        yield from _lines(utf8_input())
    except UnicodeDecodeError:
        raise not_utf8() from None


def _file(path: Path, columns: Sequence[str], several: bool) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix in REFUSED:
        raise InputError(f"{path}: a {suffix} file is not read; give {READ}")
    if suffix == ".parquet":
        yield from _picked(path, _parquet(path), columns, several)
        return
    with _opened(path) as file:
        if suffix in TABLES:
            yield from _table(path, file, columns, several)
        elif suffix in JSON_LINES:
            yield from _picked(path, _json_lines(path, file), columns, several)
        elif suffix == ".json":
            yield from _picked(path, _json_array(path, file), columns, several)
        elif several:
            raise InputError(f"{path}: rows of {' and '.join(columns)} need a csv, tsv, jsonl or json file")
        else:
            yield from map(row_of, _lines(file))


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def _lines(file: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in file if line.strip())


def _table(path: Path, file: TextIO, columns: Sequence[str], several: bool) -> Iterator[Any]:
    reader = csv.DictReader(file, delimiter=TABLES[path.suffix.lower()], restval="")
    try:
        for name in columns:
            if name not in (reader.fieldnames or ()):
                known = shorten(", ".join(reader.fieldnames or ()) or "nothing", 200)
                raise InputError(f"{path}: has no column {name!r}, only {known}; name one with --column")
        for row in reader:
            if any("".join(cells).strip() for cells in row.values()):  # those beyond the columns are a list
                row.pop(None, None)  # cells beyond the columns
                value = {name: row[name] for name in columns} if several else row[columns[0]]
                yield row_of(value, dict(row))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read after line {reader.line_num} ({error}); try a jsonl file") from error


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
            reason = getattr(error, "msg", "nested too deeply, or a number is too long")
            raise InputError(f"{path}: line {number} is not JSON ({reason})") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f"{path}: parquet files need pyarrow. Run pip install pyarrow, or give {READ}") from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (OSError, ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}). Write it again") from None


def _json_array(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.load(file)
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply; give an array of texts or objects") from error
    except json.JSONDecodeError as error:
        hint = "a file with one row per line is named .jsonl"
        raise InputError(f"{path}: line {error.lineno} is not JSON ({error.msg}); {hint}") from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: holds a number of too many digits. Write it as text") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: is no JSON array; write [row, row, …], or one row per line in a .jsonl file")
    yield from ((f"row {index}", row) for index, row in enumerate(rows))


def _picked(path: Path, rows: Iterable[tuple[str, Any]], columns: Sequence[str], several: bool) -> Iterator[Any]:
    """Yield the texts or columns of JSON rows, each given with its place in the file."""
    for place, row in rows:
        if isinstance(row, str) and not several:
            yield row_of(row)
            continue
        if not isinstance(row, dict):
            raise InputError(f"{path}: {place} is no JSON object")
        for name in columns:
            if name not in row:
                raise InputError(f"{path}: {place} has no key {name!r}")
        value = {name: row[name] for name in columns} if several else row[columns[0]]
        yield row_of(value, row)


def joined(row: Row, result: dict[str, Any]) -> Row:
    """Return a row with what a task said of it added to its columns."""
    return row_of(row.value, {**row, **result})
