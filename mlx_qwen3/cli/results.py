"""Print the results of the verbs for texts as JSON lines or a table, or write them to a file."""

import argparse
import csv
import io
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import InputError, MlxQwen3Error
from ..files import open_atomically
from .interrupts import defer_interrupts
from .ranks import is_first_process, is_peer_loss, peer_loss_error
from .standard_streams import is_unicode

Cells = Callable[[Any], Sequence[Sequence[str]]]
"""A result → its lines in the table."""

OUTPUT_SUFFIXES = (".jsonl", ".csv", ".parquet", ".npy")


def add_output_arguments(parser: argparse.ArgumentParser, resume: bool = True) -> None:
    """Add `--format` and `--output`, and `--resume` for verbs that produce their results row by row."""
    parser.add_argument(
        "--format",
        choices=("json", "table"),
        help="JSON lines or a table (default: a table on a terminal, else JSON lines)",
    )
    parser.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        help="write all rows to a .jsonl, .csv or .parquet file, or .npy for embed, and replace an existing one",
    )
    if resume:
        parser.add_argument(
            "--resume", action="store_true", help="continue the --output of an interrupted run (.jsonl only)"
        )


def count_finished_rows(args: argparse.Namespace) -> int:
    """Return how many rows the output of the interrupted run holds; 0 without `--resume`.

    Raises:
        InputError: the output is not a .jsonl file, or cannot be read.
    """
    if not getattr(args, "resume", False):
        return 0
    if args.output is None or Path(args.output).suffix.lower() != ".jsonl":
        raise InputError("--resume continues a .jsonl file only. Give one with --output FILE.jsonl.")
    path = Path(os.path.expanduser(args.output))
    existing = next((file for file in (_partial_path(path), path) if file.is_file()), None)
    return 0 if existing is None else sum(line.endswith(b"\n") for line in _read_lines(existing))


def _partial_path(path: Path) -> Path:
    """Return the file that holds the rows of an incomplete output."""
    return path.with_name(f"{path.name}.partial")


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Check its permissions.") from None


def print_results(args: argparse.Namespace, results: Iterable[Any], columns: Sequence[str], cells: Cells) -> int:
    """Print results while they are computed, or write them to the file of `--output`.

    Args:
        args: the parsed command line.
        results: one result per row.
        columns: column headers of the table.
        cells: function that returns the table lines of a result.

    Returns:
        The exit status: 0, 1 if a row failed, or 130 after Ctrl-C.

    Raises:
        InputError: the file cannot be written.
    """
    if not is_first_process():
        deque(results, maxlen=0)  # the first process prints and writes
        return 0
    if args.output is not None:
        return _write_results(args, results)
    as_table = args.format == "table" or (args.format is None and sys.stdout.isatty())
    plain = not is_unicode(sys.stdout)  # then JSON escapes the characters that the stream cannot encode
    failed = done = 0
    lines: list[Sequence[str]] = []
    stopped = False
    try:
        for result in results:
            with defer_interrupts() as interrupt:  # do not interrupt the output of a row
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
            print(file=sys.stderr)  # end the line on which the terminal shows ^C
        print(f"mlx-qwen3: stopped by Ctrl-C after {done} rows", file=sys.stderr)
        return 130
    return 1 if failed else 0


def is_error(result: Any) -> bool:
    """Return whether a result is an error report of its row."""
    return isinstance(result, dict) and {"error", "row"} <= set(result) and not {"labels", "entities"} & set(result)


def output_path(args: argparse.Namespace) -> Path | None:
    """Return the file of `--output`; None without the flag.

    Raises:
        InputError: an unknown suffix, a folder, or the file that the rows are read from.
    """
    if args.output is None:
        return None
    path = Path(os.path.expanduser(args.output))
    kind = path.suffix.lower()
    if kind not in OUTPUT_SUFFIXES or (kind == ".npy" and args.verb != "embed"):
        known = ", ".join(OUTPUT_SUFFIXES if args.verb == "embed" else OUTPUT_SUFFIXES[:-1])
        raise InputError(
            f"--output is {args.output!r}, expected a name that ends in one of {known}. Choose another name."
        )
    if path.is_dir():
        raise InputError(f"--output {args.output} is a folder. Give the name of a file.")
    if args.file is not None and path.exists() and Path(args.file).exists() and path.samefile(args.file):
        raise InputError(f"--output {args.output} is the file that the rows are read from. Choose another name.")
    return path


def _write_results(args: argparse.Namespace, results: Iterable[Any]) -> int:
    """Write results to the file of `--output`; after Ctrl-C, write the rows that are finished."""
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
                    failed += _report_error(result, done)
                    rows.append(result)
                    done += 1
                interrupt.check()
        except KeyboardInterrupt:
            if not done:
                _report_unchanged(path)
                raise  # keeps an existing file
            stopped = True
        _write_table(path, file, rows)
    if stopped:
        print(f"mlx-qwen3: stopped by Ctrl-C; {path} holds the first {done} rows", file=sys.stderr)
        return 130
    print(f"{path}: {done} {'row' if done == 1 else 'rows'}", file=sys.stderr)
    return 1 if failed else 0


def _write_lines(args: argparse.Namespace, path: Path, results: Iterable[Any]) -> int:
    """Write one line per result to FILE.partial and rename it at the end. `--resume` continues after its rows."""
    partial, before = _partial_path(path), count_finished_rows(args)
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
                        failed += _report_error(result, done)
                        if is_error(result):
                            result["row"] = done
                        _write_text(file, json.dumps(result, ensure_ascii=False) + "\n")
                        file.flush()
                        done += 1
                    interrupt.check()
            except KeyboardInterrupt:
                stopped = True
            os.fsync(file.fileno())
        if stopped and not done:
            partial.unlink()
            _report_unchanged(path)
            raise KeyboardInterrupt
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}. Check the folder and its permissions.") from None
    except (MlxQwen3Error, RuntimeError) as error:
        if done == before:
            if not before:
                partial.unlink(missing_ok=True)
            raise
        if isinstance(error, RuntimeError) and not is_peer_loss(error):
            raise
        failure = error if isinstance(error, MlxQwen3Error) else peer_loss_error(error)
        raise type(failure)(f"{failure} {partial} holds the first {done} rows. Continue them with --resume.") from None
    if stopped:
        print(f"mlx-qwen3: stopped by Ctrl-C; {path} holds the first {done} rows", file=sys.stderr)
        return 130
    print(f"{path}: {done} row{'s' * (done != 1)}", file=sys.stderr)
    return 1 if failed else 0


def _report_unchanged(path: Path) -> None:
    print(f"mlx-qwen3: stopped by Ctrl-C before the first row; {path} is not written", file=sys.stderr, end="")


def _report_error(result: Any, number: int) -> int:
    """Print the error of a failed row; return 1 for a failed row, else 0."""
    if not is_error(result):
        return 0
    print(f"row {number}: {result['error']}", file=sys.stderr)
    return 1


def _write_text(file: IO[bytes], text: str) -> None:
    file.write(text.encode("utf-8", errors="replace"))


def _write_table(path: Path, file: IO[bytes], rows: list[Any]) -> None:
    """Write a .npy, .csv or .parquet file, which needs all rows at once."""
    kind = path.suffix.lower()
    if kind == ".npy":
        import numpy as np

        bad = next((index for index, row in enumerate(rows) if is_error(row)), None)
        if bad is not None:
            raise InputError(f"row {bad} has no vector: {rows[bad]['error']}. Correct the row, or write a .jsonl file.")
        np.save(file, np.array([row["embedding"] for row in rows], np.float32))
    elif kind in (".csv", ".parquet"):
        columns = {name for row in rows for name in row}
        flat_rows = [_flatten(row, columns) for row in rows]
        names = list(dict.fromkeys(name for row in flat_rows for name in row))
        if kind == ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(flat_rows)
            _write_text(file, text.getvalue())
            return
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise InputError(
                "a .parquet file needs pyarrow. Run pip install pyarrow, or write a .jsonl file."
            ) from None
        table = pyarrow.table({name: [row.get(name) for row in flat_rows] for name in names})
        parquet.write_table(table, file)


def _flatten(row: Any, columns: Collection[str]) -> dict[str, Any]:
    """Return a row of scalar cells: a single label becomes the columns label and score, other lists become JSON.

    Args:
        columns: names of all columns; the prefix "predicted_" keeps label and score apart from columns of the input.
    """
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "labels" and isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            cells |= {f"predicted_{key}" if key in columns else key: cell for key, cell in value[0].items()}
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
