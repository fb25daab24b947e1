"""Sets of characters as ranges of code points, and the character classes of regular expressions."""

import functools
import sys
import unicodedata

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, inclusive ranges of code points without surrogates."""

LAST = 0x10FFFF


def merge_ranges(ranges: list[tuple[int, int]]) -> Ranges:
    """Sort ranges, merge overlapping and adjacent ones, and remove surrogates."""
    pieces: list[tuple[int, int]] = []
    for low, high in ranges:
        for first, last in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):
            if first <= last:
                pieces.append((first, last))
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pieces):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def invert_ranges(ranges: Ranges) -> Ranges:
    """Return the complement of a set."""
    found, start = [], 0
    for low, high in ranges:
        found.append((start, low - 1))
        start = high + 1
    found.append((start, LAST))
    return merge_ranges([pair for pair in found if pair[0] <= pair[1]])


@functools.cache
def with_property(name: str) -> Ranges:
    """Return the characters with a Unicode property: a general category, its first letter, or "word"."""
    found = []
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if name == "word":
            holds = chr(code).isalnum() or chr(code) == "_" or category[0] == "M" or category == "Pc"
        else:
            holds = category.startswith(name)
        if holds:
            found.append((code, code))
    return merge_ranges(found)


ANY: Ranges = merge_ranges([(0, LAST)])
DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_WIDE_SPACE = merge_ranges(
    [
        *[(9, 13), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)],
        *[(0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)],
    ]
)
LINE_END = merge_ranges([(10, 10), (13, 13), (0x2028, 0x2029)])
CATEGORIES = frozenset(
    [
        "L",
        "Lu",
        "Ll",
        "Lt",
        "Lm",
        "Lo",
        "M",
        "Mn",
        "Mc",
        "Me",
        "N",
        "Nd",
        "Nl",
        "No",
        "P",
        "Pc",
        "Pd",
        "Ps",
        "Pe",
        "Pi",
        "Pf",
        "Po",
        "S",
        "Sm",
        "Sc",
        "Sk",
        "So",
        "Z",
        "Zs",
        "Zl",
        "Zp",
    ]
)


def wide_class_of(letter: str) -> Ranges | None:
    """Return the set of \\d, \\w, \\s or their complements: the union of the definitions in Python and ECMA 262.

    It is None for other letters.
    """
    opposite = class_of(letter.swapcase()) if letter in "dwsDWS" else None
    return None if opposite is None else invert_ranges(opposite)


def class_of(letter: str) -> Ranges | None:
    """Return the set of \\d, \\w, \\s or their complements: the intersection of the definitions in Python and ECMA 262.

    It is None for other letters.
    """
    if letter in "dws":
        return {"d": DIGIT, "w": WORD, "s": SPACE}[letter]
    if letter == "D":
        return invert_ranges(merge_ranges([*with_property("Nd"), *DIGIT]))
    if letter == "W":
        return invert_ranges(with_property("word"))
    return invert_ranges(_WIDE_SPACE) if letter == "S" else None


def is_single(ranges: Ranges) -> bool:
    """Return whether a set has exactly one character."""
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
