"""Stop strings in streamed text: what may become one is held back until it is one, or cannot become one any more."""

from collections.abc import Sequence

from .criteria import checked_stop_strings


class StopStrings:
    """Watch a text that comes in pieces for strings that end it.

    Args:
        strings: the strings, one or several; with none nothing is held back.
        before: the text in front of the first piece, in which a stop string may begin.
    """

    def __init__(self, strings: str | Sequence[str] | None, before: str = ""):
        self.strings = checked_stop_strings(strings)
        self._before = before[len(before) - max((_overlap(before, stop) for stop in self.strings), default=0) :]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return what can be shown now, and whether a stop string was found (it is not shown)."""
        if not self.strings:
            return text, False
        text, given = self._before + self._held + text, len(self._before)
        found = [at for stop in self.strings if (at := text.find(stop)) >= 0]
        if found:
            self._held = self._before = ""
            return text[given : max(given, min(found))], True
        keep = max((_overlap(text, stop) for stop in self.strings), default=0)
        shown = max(given, len(text) - keep)
        self._held = text[shown:]
        self._before = text[min(given, len(text) - keep) : given]
        return text[given:shown], False

    def flush(self) -> str:
        """Return what was still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
