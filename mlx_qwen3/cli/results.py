"""How the verbs for texts give their results: JSON lines for programs, a table for people, or a file."""

import argparse
import csv
import io
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import InputError, MlxQwen3Error
from ..files import open_atomically
from .interrupts import defer_interrupts
from .ranks import is_first_process, is_peer_loss, peer_loss
from .standard_streams import is_unicode

Cells = Callable[[Any], Sequence[Sequence[str]]]
"""A result → the lines of a table that show it."""

OUTPUTS = (".jsonl", ".csv", ".parquet", ".npy")


def add_output_arguments(parser: argparse.ArgumentParser, resume: bool = True) -> None:
    """Add `--format`, `--output`, and `--resume` for verbs whose results come row by row."""
    parser.add_argument(
        "--format", choices=("json", "table"), help="JSON lines or a table (default: a table on a terminal)"
    )
    parser.add_argument(
        "--output", "-o", metavar="FILE", help="write all rows to a .jsonl, .csv or .parquet file (embed also: .npy)"
    )
    if resume:
        parser.add_argument(
            "--resume", action="store_true", help="continue the --output of a run that was cut short (.jsonl only)"
        )


def rows_done(args: argparse.Namespace) -> int:
    """Return how many rows the output of an earlier run holds, if it is to be continued.

    Raises:
        InputError: an output that cannot be continued.
    """
    if not getattr(args, "resume", False):
        return 0
    if args.output is None or Path(args.output).suffix.lower() != ".jsonl":
        raise InputError("--resume continues a .jsonl file. Name it with --output FILE.jsonl")
    path = Path(os.path.expanduser(args.output))
    held = next((file for file in (_partial(path), path) if file.is_file()), None)
    return 0 if held is None else sum(line.endswith(b"\n") for line in _lines(held))


def _partial(path: Path) -> Path:
    """Return the file that holds the rows of an output that is not complete."""
    return path.with_name(f"{path.name}.partial")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Check its permissions") from None


def print_results(args: argparse.Namespace, results: Iterable[Any], columns: Sequence[str], cells: Cells) -> int:
    """Print results as they come, or write them to a file.

    The status is 1 when a row could not be used, 130 after Ctrl-C.

    Args:
        columns: the heads of the table.
        cells: the lines of the table for a result.
    """
    if not is_first_process():
        deque(results, maxlen=0)  # the first process prints and writes
        return 0
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


def output_path(args: argparse.Namespace) -> Path | None:
    """Return the file of `--output`, if there is one.

    Raises:
        InputError: an ending that names no format, a folder, or the file that the rows are read from.
    """
    if args.output is None:
        return None
    path = Path(os.path.expanduser(args.output))
    kind = path.suffix.lower()
    if kind not in OUTPUTS or (kind == ".npy" and args.verb != "embed"):
        known = ", ".join(OUTPUTS if args.verb == "embed" else OUTPUTS[:-1])
        raise InputError(f"--output is {args.output!r}, expected a name that ends in one of {known}")
    if path.is_dir():
        raise InputError(f"--output {args.output} is a folder. Give the name of a file")
    if args.file is not None and path.exists() and Path(args.file).exists() and path.samefile(args.file):
        raise InputError(f"--output {args.output} is the file that the rows are read from. Choose another name")
    return path


def _write_results(args: argparse.Namespace, results: Iterable[Any]) -> int:
    """Write results to `args.output`; after Ctrl-C what is done stays, in a file whose name marks it as partial."""
    path = output_path(args)
    assert path is not None
    if path.suffix.lower() == ".jsonl":
        return _write_lines(args, path, results)
    failed = done = 0
    rows: list[Any] = []
    stopped = False
    with open_atomically(path, error=InputError) as file:
        try:
            for result in results:
                with defer_interrupts() as interrupt:
                    failed += _tell(result, done)
                    rows.append(result)
                    done += 1
                interrupt.check()
        except KeyboardInterrupt:
            stopped = True
        _finish(path, file, rows)
    if stopped:
        print(f"mlx-qwen3: stopped by Ctrl-C; {path} holds the first {done} rows", file=sys.stderr)
        return 130
    print(f"{path}: {done} {'row' if done == 1 else 'rows'}", file=sys.stderr)
    return 1 if failed else 0


def _write_lines(args: argparse.Namespace, path: Path, results: Iterable[Any]) -> int:
    """Write a line per result to FILE.partial, which gets its name at the end; `--resume` continues after its rows."""
    partial, before = _partial(path), rows_done(args)
    failed, done, stopped = 0, before, False
    try:
        if before and not partial.is_file():
            shutil.copyfile(path, partial)
        with partial.open("r+b" if before else "wb") as file:
            for _ in range(before):
                file.readline()
            file.truncate(file.tell())
            file.seek(0, os.SEEK_END)
            try:
                for result in results:
                    with defer_interrupts() as interrupt:
                        failed += _tell(result, done)
                        if is_error(result):
                            result["row"] = done
                        _put(file, json.dumps(result, ensure_ascii=False) + "\n")
                        file.flush()
                        done += 1
                    interrupt.check()
            except KeyboardInterrupt:
                stopped = True
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}. Check the folder and its permissions") from None
    except (MlxQwen3Error, RuntimeError) as error:
        if done == before:
            if not before:
                partial.unlink(missing_ok=True)
            raise
        if isinstance(error, RuntimeError) and not is_peer_loss(error):
            raise
        found = error if isinstance(error, MlxQwen3Error) else peer_loss(error)
        raise type(found)(f"{found}; {partial} holds the first {done} rows, which --resume continues") from None
    if stopped:
        print(f"mlx-qwen3: stopped by Ctrl-C; {path} holds the first {done} rows", file=sys.stderr)
        return 130
    print(f"{path}: {done} rows", file=sys.stderr)
    return 1 if failed else 0


def _tell(result: Any, number: int) -> int:
    """Report a row that could not be used; how many there were."""
    if not is_error(result):
        return 0
    print(f"row {number}: {result['error']}", file=sys.stderr)
    return 1


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
