"""Stop strings in streamed text: what might become one is held back until it is, or cannot be any more."""

from collections.abc import Sequence

from ..errors import InputError


class StopStrings:
    """Watches a text that comes in pieces for strings that end it.

    Args:
        strings: the strings, one or several; none watches for nothing and holds nothing back.
    """

    def __init__(self, strings: str | Sequence[str] | None):
        self.strings = [strings] if isinstance(strings, str) else list(strings or ())
        if any(not isinstance(text, str) or not text for text in self.strings):
            raise InputError(f"stop strings are {self.strings!r}, expected texts that are not empty")
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The next piece → what can be shown now, and whether a stop string was found (it is not shown)."""
        if not self.strings:
            return text, False
        text = self._held + text
        found = [at for stop in self.strings if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self.strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text has ended: what was still held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
