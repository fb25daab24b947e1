"""Parse regular expressions and rewrite them so that the constraint engine interprets them correctly.

The engine's interpretation differs from Python's and from JSON Schema's (ECMA 262) for negated classes, `\\d` and
anchors. Therefore a pattern is parsed into a tree of explicit character sets. If the two languages define a class
differently, the set is the intersection, so that generated texts are valid in both.
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
    invert_ranges,
    is_single,
    merge_ranges,
    wide_class_of,
    with_property,
)

MAX_REPEAT = 100_000


@dataclass(frozen=True)
class Chars:
    """One character from a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    """A concatenation of parts; without parts, the empty text."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Choice:
    """One of several alternatives."""

    options: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """A part repeated `low` to `high` times; `high` is None for no limit."""

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
        return ConstraintError(f"{self.what} {problem}: {shown!r}. Change the regular expression.")

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def parse(self) -> Node:
        node = self.parse_choice()
        if self.at < len(self.text):
            raise self.fail(f"has an unmatched closing parenthesis at character {self.at}")
        return node

    def parse_choice(self) -> Node:
        options = [self.parse_sequence()]
        while self.take("|"):
            options.append(self.parse_sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def parse_sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and not self.peek("|") and not self.peek(")"):
            part = self.parse_atom()
            if part is not None:
                parts.append(self.parse_quantifiers(part))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def parse_quantifiers(self, part: Node) -> Node:
        while True:
            bounds = self.parse_bounds()
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
            self.take("?")  # a lazy quantifier matches the same texts
            if self.peek("*") or self.peek("+") or self.peek("?"):
                raise self.fail("repeats a quantifier")
            part = Repeat(part, low, high)

    def parse_bounds(self) -> tuple[int, int | None] | None:
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

    def parse_atom(self) -> Node | None:
        char = self.text[self.at]
        self.at += 1
        if char == "(":
            return self.parse_group()
        if char == "[":
            return Chars(self.fold_case(self.parse_bracket()))
        if char == ".":
            return Chars(ANY if self.dot_all else invert_ranges(LINE_END))
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
            return Chars(self.fold_case(self.parse_escape(False)))
        return Chars(self.fold_case(merge_ranges([(ord(char), ord(char))])))

    def parse_group(self) -> Node | None:
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
                    raise self.fail("has a comment that is never closed")
                self.at = end + 1
                return None
            if self.take("P<") or self.take("<"):
                end = self.text.find(">", self.at)
                if end < 0 or not self.text[self.at : end].isidentifier():
                    raise self.fail("has a group without a valid name")
                self.at = end + 1
            elif self.parse_flags():
                return None
        node = self.parse_choice()
        if not self.take(")"):
            raise self.fail("has a parenthesis that is never closed")
        self.ignore_case, self.dot_all = before
        return node if not isinstance(node, Anchor) else Sequence((node,))

    def parse_flags(self) -> bool:
        """Parse (?flags) or (?flags:; return true for the former, which applies to the rest of the group."""
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

    def fold_case(self, ranges: Ranges) -> Ranges:
        if not self.ignore_case or sum(high - low for low, high in ranges) > 5000:
            return ranges
        found = list(ranges)
        for low, high in ranges:
            for code in range(low, high + 1):
                for other in (chr(code).lower(), chr(code).upper()):
                    if len(other) == 1:
                        found.append((ord(other), ord(other)))
        return merge_ranges(found)

    def parse_bracket(self) -> Ranges:
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
            low = self.parse_member(negated)
            if self.peek("-") and self.text[self.at + 1 : self.at + 2] not in ("]", "") and is_single(low):
                self.at += 1
                high = self.parse_member(negated)
                if not is_single(high) or high[0][0] < low[0][0]:
                    raise self.fail("has an invalid range in brackets")
                low = merge_ranges([(low[0][0], high[0][0])])
            found += low
        ranges = self.fold_case(merge_ranges(found))
        return invert_ranges(ranges) if negated else ranges

    def parse_member(self, negated: bool) -> Ranges:
        char = self.text[self.at]
        self.at += 1
        return self.parse_escape(True, negated) if char == "\\" else merge_ranges([(ord(char), ord(char))])

    def parse_escape(self, in_bracket: bool, negated: bool = False) -> Ranges:
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
            return with_property(name) if char == "p" else invert_ranges(with_property(name))
        if char in "xuU":
            return self.parse_code_point(char)
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
        return merge_ranges([(code, code)])

    def parse_code_point(self, letter: str) -> Ranges:
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
        found = merge_ranges([(code, code)]) if code <= LAST else ()
        if not found:
            raise self.fail(f"names a character that does not exist (\\{letter}{digits})")
        return found


def _has_anchor(node: Node) -> bool:
    if isinstance(node, Anchor):
        return True
    if isinstance(node, Repeat):
        return _has_anchor(node.part)
    parts = node.parts if isinstance(node, Sequence) else node.options if isinstance(node, Choice) else ()
    return any(map(_has_anchor, parts))


def _split_alternatives(node: Node) -> list[list[Node]]:
    """Expand a tree into alternatives, as lists of parts, as far as needed for anchors to be parts themselves."""
    if isinstance(node, Choice):
        return [line for option in node.options for line in _split_alternatives(option)]
    if not isinstance(node, Sequence):
        return [[node]]
    lines: list[list[Node]] = [[]]
    for part in node.parts:
        inner = _split_alternatives(part) if _has_anchor(part) and not isinstance(part, Anchor | Repeat) else [[part]]
        lines = [[*line, *tail] for line in lines for tail in inner]
        if len(lines) > 1000:
            raise ConstraintError("the regular expression has too many anchors. Anchor it as a whole.")
    return lines


def remove_anchors(node: Node, search: bool) -> Node:
    """Convert a tree to one without anchors that matches whole texts.

    Args:
        search: whether the pattern may match anywhere in the text, as in JSON Schema, instead of the whole text.

    Raises:
        ConstraintError: an anchor is in the middle of the pattern, or there are too many anchors.
    """
    if not search and not _has_anchor(node):
        return node
    options: list[Node] = []
    for line in _split_alternatives(node) if _has_anchor(node) else [[node]]:
        starts, ends = not search, not search
        while line and line[0] == Anchor(False):
            line, starts = line[1:], True
        while line and line[-1] == Anchor(True):
            line, ends = line[:-1], True
        if any(map(_has_anchor, line)):
            raise ConstraintError("the regular expression has an anchor in the middle. Anchor it as a whole.")
        free: Node = Repeat(Chars(ANY), 0, None)
        options.append(Sequence((*(() if starts else (free,)), *line, *(() if ends else (free,)))))
    return options[0] if len(options) == 1 else Choice(tuple(options))


def matches_nothing(node: Node) -> bool:
    """Return whether no text matches."""
    if isinstance(node, Chars):
        return not node.ranges
    if isinstance(node, Sequence):
        return any(map(matches_nothing, node.parts))
    if isinstance(node, Choice):
        return all(map(matches_nothing, node.options))
    return isinstance(node, Repeat) and node.low > 0 and matches_nothing(node.part)


def few_texts(node: Node, most: int) -> list[str] | None:
    """Return all matching texts, or None if there are more than `most`."""
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


def write_pattern(node: Node) -> str:
    """Return a tree without anchors as a regular expression with explicit character sets.

    NUL is removed from sets of several characters: if a set contains all control characters, the engine also allows
    quotes and backslashes.

    Raises:
        ConstraintError: a set is empty.
    """
    if isinstance(node, Chars):
        if len(node.ranges) > 1 or not is_single(node.ranges):
            node = Chars(tuple((max(low, 1), high) for low, high in node.ranges if high > 0))
        if not node.ranges:
            raise ConstraintError("the regular expression has an empty set of characters. Change it.")
        if is_single(node.ranges):
            return f"\\x{{{node.ranges[0][0]:X}}}"
        return "[" + "".join(f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in node.ranges) + "]"
    if isinstance(node, Sequence):
        return "(?:" + "".join(map(write_pattern, node.parts)) + ")"
    if isinstance(node, Choice):
        return "(?:" + "|".join(write_pattern(option) for option in node.options if not matches_nothing(option)) + ")"
    assert isinstance(node, Repeat)
    if matches_nothing(node.part):
        return "(?:)"
    bounds = f"{{{node.low}}}" if node.low == node.high else f"{{{node.low},{'' if node.high is None else node.high}}}"
    return f"(?:{write_pattern(node.part)}){bounds}"


def parse(pattern: str, *, search: bool, what: str = "the regex") -> Node:
    """Parse a pattern into a tree without anchors that matches whole texts.

    Args:
        search: as in `remove_anchors`.
        what: name of the pattern, for error messages.

    Raises:
        ConstraintError: the pattern is not a regular expression, has features that are not supported, or matches no
            text.
    """
    try:
        node = remove_anchors(_Parser(pattern, what).parse(), search)
        nothing = matches_nothing(node)
    except RecursionError:
        raise ConstraintError(f"{what} is nested too deeply: {pattern[:60]!r}. Simplify it.") from None
    if nothing:
        raise ConstraintError(f"{what} matches no text at all: {pattern[:60]!r}. Change the regular expression.")
    return node


def rewrite_pattern(pattern: str, *, search: bool, what: str = "the regex") -> str:
    """Rewrite a pattern for whole texts, without anchors and with explicit character sets; arguments as in `parse`."""
    return write_pattern(parse(pattern, search=search, what=what))
