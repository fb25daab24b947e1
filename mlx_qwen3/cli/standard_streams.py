"""The standard streams: what stands for one that is closed (`0<&-`, `>&-`; Python leaves None), and UTF-8."""

import io
import os
import sys
from typing import NoReturn, TextIO

from ..errors import InputError


class ClosedInput(io.StringIO):
    """Stands for a closed standard input: no terminal, and an `InputError` for whoever reads."""

    def read(self, size: int | None = -1, /) -> NoReturn:
        raise InputError("the standard input is closed: give the text on the command line, or in a file with < FILE")

    readline = read


def fill_closed_streams() -> None:
    """Put something in the place of closed streams; a verb that does not read runs without a standard input.

    The numbers 0 to 2 are taken, because a file that gets one is in danger: MLX refuses to read from number 0.

    Raises:
        InputError: the standard output is closed, so that nobody would see the result.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
        sys.stdin = ClosedInput()
    if sys.stdout is None:
        raise InputError("the standard output is closed: leave it open, or send it somewhere with > FILE")
    for stream in (sys.stdout, sys.stderr):  # a Latin-1 or ASCII terminal shows a question mark for what it lacks
        if isinstance(stream, io.TextIOWrapper) and not is_unicode(stream):
            stream.reconfigure(errors="replace")
    if sys.stderr is None:  # `print(file=None)` would mix messages into the results
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it stays open until the end


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream can write every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf-")


def utf8_input() -> TextIO:
    """Return the standard input before its first read: UTF-8 whatever the locale, with an error for other bytes.

    A byte order mark in front is no text.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    return sys.stdin


def not_utf8() -> InputError:
    """Return what to say when the standard input holds other bytes."""
    return InputError("stdin: is not UTF-8 text; convert it to UTF-8")
