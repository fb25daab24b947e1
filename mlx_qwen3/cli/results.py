"""How the verbs for texts give their results: JSON lines for programs, a table for people, or a file."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import InputError
from ..files import open_atomically
from .interrupts import defer_interrupts
from .standard_streams import is_unicode

Cells = Callable[[Any], Sequence[Sequence[str]]]
"""A result → the lines of a table that show it."""

OUTPUTS = (".jsonl", ".csv", ".parquet", ".npy")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--format` and `--output`."""
    parser.add_argument(
        "--format", choices=("json", "table"), help="JSON lines or a table (default: a table on a terminal)"
    )
    parser.add_argument(
        "--output", "-o", metavar="FILE", help="write all rows to a .jsonl, .csv or .parquet file (embed also: .npy)"
    )


def print_results(args: argparse.Namespace, results: Iterable[Any], columns: Sequence[str], cells: Cells) -> int:
    """Print results as they come, or write them to a file.

    The status is 1 when a row could not be used, 130 after Ctrl-C.

    Args:
        columns: the heads of the table.
        cells: the lines of the table for a result.
    """
    if args.output is not None:
        return _write_results(args, results)
    as_table = args.format == "table" or (args.format is None and sys.stdout.isatty())
    plain = not is_unicode(sys.stdout)  # then JSON escapes what the stream cannot write
    failed = done = 0
    lines: list[Sequence[str]] = []
    stopped = False
    try:
        for result in results:
            with defer_interrupts() as interrupt:  # a row is printed whole
                wrong = is_error(result)
                if wrong:
                    failed += 1
                    print(f"row {done}: {result['error']}", file=sys.stderr)
                if not as_table:
                    print(json.dumps(result, ensure_ascii=plain), flush=True)
                elif not wrong:
                    lines += [(str(done), *line) for line in cells(result)]
                done += 1
            interrupt.check()
    except KeyboardInterrupt:
        stopped = True
    if as_table and (lines or not stopped):
        _print_table(("row", *columns), lines)
    if stopped:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has written ^C
        print(f"mlx-qwen3: stopped by Ctrl-C after {done} rows", file=sys.stderr)
        return 130
    return 1 if failed else 0


def is_error(result: Any) -> bool:
    """Return whether a result says what is wrong with its row."""
    return isinstance(result, dict) and {"error", "row"} <= set(result) and not {"labels", "entities"} & set(result)


def _write_results(args: argparse.Namespace, results: Iterable[Any]) -> int:
    """Write results to `args.output`; after Ctrl-C what is done stays, in a file whose name marks it as partial."""
    path = Path(args.output).expanduser()
    if path.suffix.lower() not in OUTPUTS or (path.suffix.lower() == ".npy" and args.verb != "embed"):
        known = ", ".join(OUTPUTS if args.verb == "embed" else OUTPUTS[:-1])
        raise InputError(f"--output {args.output}: the ending says the format. Give one of {known}")
    failed = done = 0
    rows: list[Any] = []
    stopped = False
    with open_atomically(path, error=InputError) as file:
        write = _writer(path, file)
        try:
            for result in results:
                with defer_interrupts() as interrupt:
                    if is_error(result):
                        failed += 1
                        print(f"row {done}: {result['error']}", file=sys.stderr)
                    write(result, rows)
                    done += 1
                interrupt.check()
        except KeyboardInterrupt:
            stopped = True
        _finish(path, file, rows)
    if stopped:
        print(f"mlx-qwen3: stopped by Ctrl-C; {path} holds the first {done} rows", file=sys.stderr)
        return 130
    print(f"{path}: {done} rows", file=sys.stderr)
    return 1 if failed else 0


def _writer(path: Path, file: IO[bytes]) -> Callable[[Any, list[Any]], None]:
    if path.suffix.lower() == ".jsonl":
        return lambda result, rows: _put(file, json.dumps(result, ensure_ascii=False) + "\n")
    return lambda result, rows: rows.append(result)


def _put(file: IO[bytes], text: str) -> None:
    file.write(text.encode("utf-8", errors="replace"))


def _finish(path: Path, file: IO[bytes], rows: list[Any]) -> None:
    """Write the formats whose columns are known only at the end."""
    kind = path.suffix.lower()
    if kind == ".npy":
        import numpy as np

        bad = next((index for index, row in enumerate(rows) if is_error(row)), None)
        if bad is not None:
            raise InputError(f"row {bad} has no vector: {rows[bad]['error']}. Write a .jsonl file, or correct the row")
        np.save(file, np.array([row["embedding"] for row in rows], np.float32))
    elif kind in (".csv", ".parquet"):
        flatten = [_flat(row) for row in rows]
        names = list(dict.fromkeys(name for row in flatten for name in row))
        if kind == ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(flatten)
            _put(file, text.getvalue())
            return
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise InputError("a .parquet file needs pyarrow. Run pip install pyarrow, or write a .jsonl file") from None
        table = pyarrow.table({name: [row.get(name) for row in flatten] for name in names})
        parquet.write_table(table, file)


def _flat(row: Any) -> dict[str, Any]:
    """Return a row of plain cells: the one label of a text becomes two columns, other lists stay JSON."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "labels" and isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            cells |= value[0]
        elif isinstance(value, list | dict):
            cells[name] = json.dumps(value, ensure_ascii=False)
        else:
            cells[name] = value
    return cells


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)
