"""Parse a regular expression and write it again in a form that the constraint engine reads as written.

The engine's own reading differs from Python's and from JSON Schema's (ECMA 262) in places: negated classes, `\\d`,
anchors. Here a pattern becomes a tree of explicit character sets. Where the two languages disagree on a class, the set
is what both allow, so that every text made under it is valid in either.
"""

from dataclasses import dataclass

from ..errors import ConstraintError
from .character_sets import (
    ANY,
    CATEGORIES,
    LAST,
    LINE_END,
    Ranges,
    class_of,
    inverted,
    is_single,
    normalized,
    wide_class_of,
    with_property,
)

MAX_REPEAT = 100_000


@dataclass(frozen=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    """One part after the other; empty for the empty text."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Choice:
    """One of several alternatives."""

    options: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """A part `low` to `high` times; `high` is None for no limit."""

    part: "Node"
    low: int
    high: int | None


@dataclass(frozen=True)
class Anchor:
    """The start or the end of the text."""

    at_end: bool


Node = Chars | Sequence | Choice | Repeat | Anchor


_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "a": 7, "0": 0}


class _Parser:
    def __init__(self, text: str, what: str):
        self.text, self.what, self.at = text, what, 0
        self.ignore_case = self.dot_all = False

    def fail(self, problem: str) -> ConstraintError:
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return ConstraintError(f"{self.what} {problem}: {shown!r}. Change the regular expression")

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def whole(self) -> Node:
        node = self.choice()
        if self.at < len(self.text):
            raise self.fail(f"has a closing parenthesis too many at character {self.at}")
        return node

    def choice(self) -> Node:
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and not self.peek("|") and not self.peek(")"):
            part = self.atom()
            if part is not None:
                parts.append(self.repeated(part))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def repeated(self, part: Node) -> Node:
        while True:
            bounds = self.bounds()
            if bounds is None:
                return part
            if isinstance(part, Anchor):
                raise self.fail("repeats an anchor, which is not supported")
            low, high = bounds
            if high is not None and low > high:
                raise self.fail(f"repeats from {low} to {high} times")
            if max(low, high or 0) > MAX_REPEAT:
                raise self.fail(f"repeats more than {MAX_REPEAT} times, which is not supported")
            if self.take("+"):
                raise self.fail("has a possessive quantifier, which is not supported")
            self.take("?")  # a lazy quantifier describes the same texts
            if self.peek("*") or self.peek("+") or self.peek("?"):
                raise self.fail("repeats a quantifier")
            part = Repeat(part, low, high)

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, found in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return found
        if not self.peek("{"):
            return None
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : max(end, self.at + 1)].partition(",")
        if not all(number == "" or (number.isascii() and number.isdigit()) for number in (low, high)):
            return None
        if end < 0 or not (low or high):
            return None
        self.at = end + 1
        return int(low or 0), (int(high) if high else None) if comma else int(low)

    def atom(self) -> Node | None:
        char = self.text[self.at]
        self.at += 1
        if char == "(":
            return self.group()
        if char == "[":
            return Chars(self.folded(self.bracket()))
        if char == ".":
            return Chars(ANY if self.dot_all else inverted(LINE_END))
        if char in "^$":
            return Anchor(char == "$")
        if char in "*+?":
            raise self.fail(f"has nothing to repeat before {char!r} at character {self.at - 1}")
        if char == "{" and self.text[self.at : self.at + 1].isdigit():
            raise self.fail("has nothing to repeat before '{'")
        if char == "\\":
            if self.text[self.at : self.at + 1] in ("A", "Z", "z"):
                self.at += 1
                return Anchor(self.text[self.at - 1] != "A")
            return Chars(self.folded(self.escape(False)))
        return Chars(self.folded(normalized([(ord(char), ord(char))])))

    def group(self) -> Node | None:
        before = self.ignore_case, self.dot_all
        if self.take("?"):
            for sign, name in (
                ("=", "a lookahead"),
                ("!", "a lookahead"),
                ("<=", "a lookbehind"),
                ("<!", "a lookbehind"),
                ("P=", "a backreference"),
                ("(", "a condition"),
                (">", "an atomic group"),
            ):
                if self.peek(sign):
                    raise self.fail(f"has {name}, which is not supported")
            if self.take("#"):
                end = self.text.find(")", self.at)
                if end < 0:
                    raise self.fail("has a comment without an end")
                self.at = end + 1
                return None
            if self.take("P<") or self.take("<"):
                end = self.text.find(">", self.at)
                if end < 0 or not self.text[self.at : end].isidentifier():
                    raise self.fail("has a group with no proper name")
                self.at = end + 1
            elif self.flags():
                return None
        node = self.choice()
        if not self.take(")"):
            raise self.fail("has a parenthesis that is never closed")
        self.ignore_case, self.dot_all = before
        return node if not isinstance(node, Anchor) else Sequence((node,))

    def flags(self) -> bool:
        """Read (?flags) or (?flags:; whether it was the former, which holds for the rest."""
        on = True
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char in ":)":
                return char == ")"
            if char == "-":
                on = False
            elif char == "i":
                self.ignore_case = on
            elif char == "s":
                self.dot_all = on
            elif char not in "au":
                raise self.fail(f"has the flag {char!r}, which is not supported")
        raise self.fail("has a parenthesis that is never closed")

    def folded(self, ranges: Ranges) -> Ranges:
        if not self.ignore_case or sum(high - low for low, high in ranges) > 5000:
            return ranges
        found = list(ranges)
        for low, high in ranges:
            for code in range(low, high + 1):
                for other in (chr(code).lower(), chr(code).upper()):
                    if len(other) == 1:
                        found.append((ord(other), ord(other)))
        return normalized(found)

    def bracket(self) -> Ranges:
        negated, start = self.take("^"), self.at
        found: list[tuple[int, int]] = []
        while True:
            if self.at >= len(self.text):
                raise self.fail("has a bracket that is never closed")
            if self.peek("]") and (self.at > start):
                self.at += 1
                break
            if self.peek("[:") or self.peek("&&") or self.peek("--"):
                raise self.fail("has set operations in brackets, which are not supported")
            low = self.member(negated)
            if self.peek("-") and self.text[self.at + 1 : self.at + 2] not in ("]", "") and is_single(low):
                self.at += 1
                high = self.member(negated)
                if not is_single(high) or high[0][0] < low[0][0]:
                    raise self.fail("has a bad range in brackets")
                low = normalized([(low[0][0], high[0][0])])
            found += low
        ranges = self.folded(normalized(found))
        return inverted(ranges) if negated else ranges

    def member(self, negated: bool) -> Ranges:
        char = self.text[self.at]
        self.at += 1
        return self.escape(True, negated) if char == "\\" else normalized([(ord(char), ord(char))])

    def escape(self, in_bracket: bool, negated: bool = False) -> Ranges:
        if self.at >= len(self.text):
            raise self.fail("ends with a backslash")
        char = self.text[self.at]
        self.at += 1
        named = wide_class_of(char) if negated else class_of(char)
        if named is not None:
            return named
        if char in "pP":
            end = self.text.find("}", self.at)
            name = self.text[self.at + 1 : end].removeprefix("gc=").removeprefix("General_Category=")
            if not self.peek("{") or name not in CATEGORIES:
                raise self.fail(f"has a Unicode property that is not supported ({name or char})")
            self.at = end + 1
            return with_property(name) if char == "p" else inverted(with_property(name))
        if char in "xuU":
            return self.code_point(char)
        if char == "c" and self.text[self.at : self.at + 1].isalpha():
            self.at += 1
            code = ord(self.text[self.at - 1]) & 31
        elif char == "b" and in_bracket:
            code = 8
        elif char in "bB":
            raise self.fail("has a word boundary, which is not supported")
        elif char in "123456789k":
            raise self.fail("has a backreference, which is not supported")
        elif char in _CONTROLS:
            code = _CONTROLS[char]
        elif char.isalnum():
            raise self.fail(f"has an unknown escape \\{char}")
        else:
            code = ord(char)
        return normalized([(code, code)])

    def code_point(self, letter: str) -> Ranges:
        size = {"x": 2, "u": 4, "U": 8}[letter]
        if self.take("{"):
            end = self.text.find("}", self.at)
            digits, self.at = self.text[self.at : max(end, self.at)], end + 1
        else:
            digits = self.text[self.at : self.at + size]
            self.at += size
            if len(digits) < size:
                digits = ""
        try:
            code = int(digits, 16)
        except ValueError:
            raise self.fail(f"has an incomplete escape \\{letter}") from None
        found = normalized([(code, code)]) if code <= LAST else ()
        if not found:
            raise self.fail(f"names a character that does not exist (\\{letter}{digits})")
        return found


def _anchored(node: Node) -> bool:
    if isinstance(node, Anchor):
        return True
    if isinstance(node, Repeat):
        return _anchored(node.part)
    parts = node.parts if isinstance(node, Sequence) else node.options if isinstance(node, Choice) else ()
    return any(map(_anchored, parts))


def _lines(node: Node) -> list[list[Node]]:
    """Return the alternatives of a tree as sequences, so far that anchors stand among their parts."""
    if isinstance(node, Choice):
        return [line for option in node.options for line in _lines(option)]
    if not isinstance(node, Sequence):
        return [[node]]
    lines: list[list[Node]] = [[]]
    for part in node.parts:
        inner = _lines(part) if _anchored(part) and not isinstance(part, Anchor | Repeat) else [[part]]
        lines = [[*line, *tail] for line in lines for tail in inner]
        if len(lines) > 1000:
            raise ConstraintError("the regular expression has too many anchors. Anchor it as a whole")
    return lines


def without_anchors(node: Node, search: bool) -> Node:
    """Return a tree for whole texts that has no anchors.

    search: the pattern may occur anywhere in the text, as JSON Schema reads it; else it is the whole text.
    """
    if not search and not _anchored(node):
        return node
    options: list[Node] = []
    for line in _lines(node) if _anchored(node) else [[node]]:
        starts, ends = not search, not search
        while line and line[0] == Anchor(False):
            line, starts = line[1:], True
        while line and line[-1] == Anchor(True):
            line, ends = line[:-1], True
        if any(map(_anchored, line)):
            raise ConstraintError("the regular expression has an anchor in the middle. Anchor it as a whole")
        free: Node = Repeat(Chars(ANY), 0, None)
        options.append(Sequence((*(() if starts else (free,)), *line, *(() if ends else (free,)))))
    return options[0] if len(options) == 1 else Choice(tuple(options))


def matches_nothing(node: Node) -> bool:
    """Tell whether no text at all matches."""
    if isinstance(node, Chars):
        return not node.ranges
    if isinstance(node, Sequence):
        return any(map(matches_nothing, node.parts))
    if isinstance(node, Choice):
        return all(map(matches_nothing, node.options))
    return isinstance(node, Repeat) and node.low > 0 and matches_nothing(node.part)


def few_texts(node: Node, most: int) -> list[str] | None:
    """Return every text that matches, or None where there are more than `most`."""
    if isinstance(node, Chars):
        count = sum(high - low + 1 for low, high in node.ranges)
        return None if count > most else [chr(code) for low, high in node.ranges for code in range(low, high + 1)]
    if isinstance(node, Choice):
        parts = [few_texts(option, most) for option in node.options]
        found = {text for part in parts for text in part or ()}
        return None if None in parts or len(found) > most else sorted(found)
    if isinstance(node, Repeat):
        if node.high is None or node.high > most:
            return None
        node = Choice(tuple(Sequence((node.part,) * count) for count in range(node.low, node.high + 1)))
        return few_texts(node, most)
    assert isinstance(node, Sequence)
    found = {""}
    for part in node.parts:
        ends = few_texts(part, most)
        if ends is None or len(found) * len(ends) > most * most:
            return None
        found = {text + end for text in found for end in ends}
        if len(found) > most:
            return None
    return sorted(found)


def written(node: Node) -> str:
    """Write a tree without anchors as a regular expression of explicit sets, none of which holds NUL and others.

    The engine reads a set of all control characters as one that holds quotes and backslashes, which NUL completes.
    """
    if isinstance(node, Chars):
        if len(node.ranges) > 1 or not is_single(node.ranges):
            node = Chars(tuple((max(low, 1), high) for low, high in node.ranges if high > 0))
        if not node.ranges:
            raise ConstraintError("the regular expression has an empty set of characters. Change it")
        if is_single(node.ranges):
            return f"\\x{{{node.ranges[0][0]:X}}}"
        return "[" + "".join(f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in node.ranges) + "]"
    if isinstance(node, Sequence):
        return "(?:" + "".join(map(written, node.parts)) + ")"
    if isinstance(node, Choice):
        return "(?:" + "|".join(written(option) for option in node.options if not matches_nothing(option)) + ")"
    assert isinstance(node, Repeat)
    if matches_nothing(node.part):
        return "(?:)"
    bounds = f"{{{node.low}}}" if node.low == node.high else f"{{{node.low},{'' if node.high is None else node.high}}}"
    return f"(?:{written(node.part)}){bounds}"


def parse(pattern: str, *, search: bool, what: str = "the regex") -> Node:
    """Parse a pattern into a tree for whole texts; `search` as in `without_anchors`, `what` for messages.

    Raises:
        ConstraintError: it is no regular expression, uses what is not supported, or matches no text.
    """
    try:
        node = without_anchors(_Parser(pattern, what).whole(), search)
        nothing = matches_nothing(node)
    except RecursionError:
        raise ConstraintError(f"{what} is nested too deeply: {pattern[:60]!r}. Simplify it") from None
    if nothing:
        raise ConstraintError(f"{what} matches no text at all: {pattern[:60]!r}. Change the regular expression")
    return node


def canonical(pattern: str, *, search: bool, what: str = "the regex") -> str:
    """Return a pattern for whole texts, without anchors, with explicit character sets; arguments as in `parse`."""
    return written(parse(pattern, search=search, what=what))
