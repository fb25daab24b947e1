"""Show the progress of long commands on standard error: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
"""Time between two lines of the same stage where standard error is not a terminal."""


class StageProgress:
    """Show the stages of a command, one after the other.

    On a terminal, every stage is a bar of tqdm. Otherwise a line is written every `SECONDS_BETWEEN_LINES` seconds, and
    at the end of a stage that has written a line, so that short commands write nothing.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._what = ""
        self._reported = False
        self._written = time.monotonic()

    def show(self, what: str, done: int, total: int, note: str = "", **units: Any) -> None:
        """Show that `done` of `total` steps of the stage `what` are done.

        Args:
            note: figures of the stage, such as the loss.
            **units: `unit` and `unit_scale` of tqdm.
        """
        if not sys.stderr.isatty():
            self._write(what, done, total, note, units.get("unit") == "B")
            return
        if what != self._what:
            from tqdm import tqdm

            self.close()
            self._bar, self._what = tqdm(total=total, desc=what, **units), what
        if note:
            self._bar.set_postfix_str(note)
        self._bar.update(done - self._bar.n)

    def write(self, line: str) -> None:
        """Write a line above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _write(self, what: str, done: int, total: int, note: str, in_bytes: bool) -> None:
        now = time.monotonic()
        self._reported = self._reported and what == self._what
        self._what = what
        ends = done >= total and self._reported
        if not ends and now - self._written < SECONDS_BETWEEN_LINES:
            return
        self._reported, self._written = not ends, now
        amount = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB" if in_bytes else f"{done:,} of {total:,}"
        print(f"{what}: {amount}{f', {note}' if note else ''}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._what = ""
