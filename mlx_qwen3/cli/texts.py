"""Where the verbs for texts take their rows from: arguments, a file (txt, csv, tsv, jsonl) or stdin."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError

TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--dtype` and what every task takes."""
    parser.add_argument(
        "--model", help="a folder or a Hub repository; by default the model that comes with the package"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="compute in this type")
    parser.add_argument("--batch-size", type=int, help="rows that the model sees at once; by default as many as fit")
    parser.add_argument("--max-length", type=int, help="tokens of a row; longer texts are cut")


def add_text_arguments(parser: argparse.ArgumentParser, what: str, column: str = "text") -> None:
    """The texts themselves, `--file` and `--column`."""
    parser.add_argument("text", nargs="*", help=f"{what}; without any, and without --file, stdin is read, a line a row")
    parser.add_argument("--file", help="txt (a line a row), csv, tsv or jsonl; - for stdin")
    parser.add_argument("--column", default=column, help=f"column or key of a csv, tsv or jsonl (default: {column})")


def task_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `pipeline` takes from the arguments of every verb."""
    return {
        "model": args.model,
        "model_options": {"dtype": args.dtype} if args.dtype else None,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "on_error": "record",
        "progress": sys.stderr.isatty() and not sys.stdin.isatty(),
    }


def read_rows(args: argparse.Namespace, columns: Sequence[str] = ()) -> Iterator[Any]:
    """The texts; with `columns`, rows of these columns of a file as dictionaries.

    Raises:
        InputError: a file that cannot be read, a column that it does not have, a line that is no JSON.
    """
    if args.text and args.file:
        raise InputError("give texts or --file, and not both")
    if args.text:
        yield from args.text
        return
    if args.file in (None, "-"):
        if sys.stdin.isatty():
            raise InputError("no text: give texts, --file, or text on stdin")
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        try:
            yield from (line.rstrip("\r\n") for line in sys.stdin)
        except UnicodeDecodeError as error:
            raise InputError(f"stdin: is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
        return
    path = Path(args.file)
    with _opened(path) as file:
        if path.suffix.lower() in TABLES:
            yield from _table(path, file, columns or (args.column,), bool(columns))
        elif path.suffix.lower() in JSON_LINES:
            yield from _json_lines(path, file, columns or (args.column,), bool(columns))
        elif columns:
            raise InputError(f"{path}: rows of {' and '.join(columns)} need a csv, tsv or jsonl file")
        else:
            yield from (line.rstrip("\r\n") for line in file)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _table(path: Path, file: TextIO, columns: Sequence[str], several: bool) -> Iterator[Any]:
    reader = csv.DictReader(file, delimiter=TABLES[path.suffix.lower()])
    for name in columns:
        if name not in (reader.fieldnames or ()):
            raise InputError(f"{path}: has no column {name!r}, only {', '.join(reader.fieldnames or ())}")
    for row in reader:
        yield {name: row[name] for name in columns} if several else row[columns[0]]


def _json_lines(path: Path, file: TextIO, columns: Sequence[str], several: bool) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error.msg})") from error
        if isinstance(row, str) and not several:
            yield row
            continue
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is no JSON object")
        for name in columns:
            if name not in row:
                raise InputError(f"{path}: line {number} has no key {name!r}")
        yield {name: row[name] for name in columns} if several else row[columns[0]]
