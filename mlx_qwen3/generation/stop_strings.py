"""Stop strings in streamed text: text that may be the beginning of a stop string is held back until that is known."""

from collections.abc import Iterator, Sequence

from .criteria import list_stop_strings


class StopStrings:
    """Find stop strings in a text that arrives in pieces.

    Args:
        strings: None, one string or several; without any, no text is held back.
        before: text before the first piece, in which a stop string may begin.
    """

    def __init__(self, strings: str | Sequence[str] | None, before: str = ""):
        self.strings = list_stop_strings(strings)
        self._by_first: dict[str, list[str]] = {}
        for stop in self.strings:
            self._by_first.setdefault(stop[0], []).append(stop)
        self._before = before[len(before) - self._overlap(before) :]
        self._held = ""

    def _candidates(self, text: str) -> Iterator[str]:
        """Yield the stop strings of which `text` may have a part: those whose first character it has."""
        for character in set(text) & self._by_first.keys():
            yield from self._by_first[character]

    def _overlap(self, text: str) -> int:
        """Return the length of the longest suffix of `text` that is a proper prefix of a stop string."""
        return max((_measure_overlap(text, stop) for stop in self._candidates(text)), default=0)

    def feed(self, text: str) -> tuple[str, bool]:
        """Add the next piece; return the text that is final, without any stop string, and whether one was found."""
        if not self.strings:
            return text, False
        text, given = self._before + self._held + text, len(self._before)
        found = [at for stop in self._candidates(text) if (at := text.find(stop)) >= 0]
        if found:
            self._held = self._before = ""
            return text[given : max(given, min(found))], True
        keep = self._overlap(text)
        shown = max(given, len(text) - keep)
        self._held = text[shown:]
        self._before = text[min(given, len(text) - keep) : given]
        return text[given:shown], False

    def flush(self) -> str:
        """Return the text that is still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _measure_overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
