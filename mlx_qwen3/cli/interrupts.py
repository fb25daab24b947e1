"""Deferred Ctrl-C: the first stops at the next safe point, the second immediately."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .ranks import is_launched


class InterruptFlag:
    """Record whether Ctrl-C was pressed.

    made: True after the first Ctrl-C.
    """

    def __init__(self) -> None:
        self.made = False

    def check(self, *_: object) -> None:
        """Raise `KeyboardInterrupt` if Ctrl-C was pressed. Call it, or pass it as a callback, at safe points."""
        if self.made:
            raise KeyboardInterrupt


@contextmanager
def defer_interrupts() -> Iterator[InterruptFlag]:
    """Record the first Ctrl-C instead of raising; the second raises as usual.

    Nothing is recorded outside the main thread, where signals cannot be handled, and in a process started by
    `mlx.launch`, where all processes agree on when to stop.
    """
    interrupt = InterruptFlag()
    if is_launched() or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if interrupt.made:
            raise KeyboardInterrupt
        interrupt.made = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
