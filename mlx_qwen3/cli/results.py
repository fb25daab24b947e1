"""How the verbs for texts print results: JSON lines for programs, a table for people."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .interrupts import stop_wishes

Cells = Callable[[Any], Sequence[Sequence[str]]]
"""A result → the lines of a table that show it."""


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """`--format`."""
    parser.add_argument(
        "--format", choices=("json", "table"), help="JSON lines or a table; by default a table on a terminal"
    )


def print_results(args: argparse.Namespace, results: Iterable[Any], columns: Sequence[str], cells: Cells) -> int:
    """Prints results as they come; the exit status is 1 when a row could not be used, 130 after Ctrl-C.

    Args:
        columns: the heads of the table.
        cells: the lines of the table for a result.
    """
    as_table = args.format == "table" or (args.format is None and sys.stdout.isatty())
    failed = 0
    lines: list[Sequence[str]] = []
    done = 0
    stopped = False
    try:
        for result in results:
            with stop_wishes() as wish:  # a row is printed whole
                wrong = isinstance(result, dict) and "error" in result
                if wrong:
                    failed += 1
                    print(f"row {done}: {result['error']}", file=sys.stderr)
                if not as_table:
                    print(json.dumps(result, ensure_ascii=False), flush=True)
                elif not wrong:
                    lines += [(str(done), *line) for line in cells(result)]
                done += 1
            wish.check()
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


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)
