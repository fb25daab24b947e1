"""Ctrl-C as a wish: the first one ends what is running at the next good moment, the second one at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .ranks import launched


class StopWish:
    """Whether Ctrl-C was pressed since."""

    def __init__(self) -> None:
        self.made = False

    def check(self, *_: object) -> None:
        """Raise `KeyboardInterrupt` if it was: for callbacks at moments when stopping does no harm."""
        if self.made:
            raise KeyboardInterrupt


@contextmanager
def stop_wishes() -> Iterator[StopWish]:
    """Record Ctrl-C instead of raising; a second one raises as usual. Nothing is noted outside the main thread, nor
    where several processes work together and agree on stopping.
    """
    wish = StopWish()
    if launched() or threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if wish.made:
            raise KeyboardInterrupt
        wish.made = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield wish
    finally:
        signal.signal(signal.SIGINT, before)
