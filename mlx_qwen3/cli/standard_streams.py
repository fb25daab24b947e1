"""Replace closed standard streams (`0<&-`, `>&-`), which are None in Python, and set UTF-8."""

import io
import os
import sys
from typing import NoReturn, TextIO

from ..errors import InputError


class ClosedInput(io.StringIO):
    """Replacement for a closed standard input: not a terminal, and reading raises `InputError`."""

    def read(self, size: int | None = -1, /) -> NoReturn:
        raise InputError("the standard input is closed. Give the text on the command line, or in a file with < FILE.")

    readline = read


def replace_closed_streams() -> None:
    """Replace closed standard streams, so that a verb that reads nothing runs without a standard input.

    Their descriptors are filled by opening the null device, because MLX cannot read a file that gets descriptor 0.

    Raises:
        InputError: the standard output is closed, so the result would be lost.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
        sys.stdin = ClosedInput()
    if sys.stdout is None:
        raise InputError("the standard output is closed. Leave it open, or redirect it with > FILE.")
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # print a question mark for characters that a Latin-1 or ASCII terminal lacks
        if isinstance(stream, io.TextIOWrapper) and not is_unicode(stream):
            stream.reconfigure(errors="replace")
    if sys.stderr is None:  # print(file=None) would print messages among the results
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open until the process exits


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream can encode every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf-")


def open_utf8_input() -> TextIO:
    """Set the standard input to strict UTF-8, whatever the locale, and return it. Call it before the first read.

    A leading byte order mark is skipped.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    return sys.stdin


def utf8_error() -> InputError:
    """Return the error for a standard input that is not UTF-8."""
    return InputError("stdin: is not UTF-8 text. Convert it to UTF-8.")
