"""Deferred Ctrl-C: the first stops at the next safe point, the second immediately."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .ranks import launched


class InterruptFlag:
    """Whether Ctrl-C was pressed since."""

    def __init__(self) -> None:
        self.made = False

    def check(self, *_: object) -> None:
        """Raise `KeyboardInterrupt` if it was: for callbacks at moments when stopping does no harm."""
        if self.made:
            raise KeyboardInterrupt


@contextmanager
def defer_interrupts() -> Iterator[InterruptFlag]:
    """Record Ctrl-C instead of raising; a second one raises as usual. Nothing is noted outside the main thread, nor
    where several processes work together and agree on stopping.
    """
    interrupt = InterruptFlag()
    if launched() or threading.current_thread() is not threading.main_thread():
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
