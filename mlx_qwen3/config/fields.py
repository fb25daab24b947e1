"""What a configuration field may hold. Each check returns the value to keep, or says what is expected."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Check = Callable[[Any], str | None]
"""Value -> what was expected, or None when the value is good."""


@dataclass(frozen=True)
class Field:
    """A field's default and its check."""

    default: Any
    check: Check


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def positive_int(value: Any) -> str | None:
    return None if _is_int(value) and value > 0 else "a whole number above 0"


def natural_int(value: Any) -> str | None:
    return None if _is_int(value) and value >= 0 else "a whole number, 0 or more"


def positive_number(value: Any) -> str | None:
    good = (_is_int(value) or isinstance(value, float)) and value > 0
    return None if good else "a number above 0"


def natural_number(value: Any) -> str | None:
    good = (_is_int(value) or isinstance(value, float)) and value >= 0
    return None if good else "a number, 0 or more"


def probability(value: Any) -> str | None:
    good = (_is_int(value) or isinstance(value, float)) and 0 <= value <= 1
    return None if good else "a number from 0 to 1"


def boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def token_id(value: Any) -> str | None:
    return None if _is_int(value) else "a token id"


def token_ids(value: Any) -> str | None:
    good = _is_int(value) or (isinstance(value, list | tuple) and all(_is_int(v) for v in value))
    return None if good else "a token id or a list of them"


def anything(value: Any) -> str | None:
    return None


def one_of(*names: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in names else "one of " + ", ".join(names)

    return check


def optional(check: Check) -> Check:
    """The same check, with null allowed."""

    def maybe(value: Any) -> str | None:
        expected = None if value is None else check(value)
        return f"{expected}, or null" if expected else None

    return maybe
