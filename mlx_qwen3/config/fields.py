"""Checks for configuration fields. Each returns what was expected, or None for a valid value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Check = Callable[[Any], str | None]
"""Value -> what was expected, or None for a valid value."""


@dataclass(frozen=True)
class Field:
    """The default value and the check of a field."""

    default: Any
    check: Check


MOST = 2**31 - 1
MOST_LAYERS = 10_000
MOST_LABELS = 1_000_000
"""Limits far above any real model, so that a malicious file is refused before memory is allocated."""


def shown(value: Any) -> str:
    """Return the repr of a value for a message, shortened to 120 characters."""
    text = repr(value)
    text = " ".join(text.split()) if "\n" in text else text  # arrays have several lines
    return text if len(text) <= 120 else f"{text[:117]}..."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) and abs(value) < 1e300) or (isinstance(value, float) and math.isfinite(value))


def positive_int(value: Any) -> str | None:
    return None if _is_int(value) and 0 < value <= MOST else f"a whole number from 1 to {MOST}"


def layer_count(value: Any) -> str | None:
    return None if _is_int(value) and 0 < value <= MOST_LAYERS else f"a whole number from 1 to {MOST_LAYERS}"


def natural_int(value: Any) -> str | None:
    return None if _is_int(value) and 0 <= value <= MOST else f"a whole number from 0 to {MOST}"


def positive_number(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else "a number above 0"


def natural_number(value: Any) -> str | None:
    return None if _is_number(value) and value >= 0 else "a number of at least 0"


def probability(value: Any) -> str | None:
    return None if _is_number(value) and 0 <= value <= 1 else "a number from 0 to 1"


def boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def token_id(value: Any) -> str | None:
    return None if _is_int(value) and abs(value) <= MOST else "a token id"


def token_ids(value: Any) -> str | None:
    values = value if isinstance(value, list | tuple) else [value]
    valid = all(token_id(v) is None for v in values)
    return None if valid else "a token id or a list of them"


def names(value: Any) -> str | None:
    valid = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    return None if valid else "a list of names"


def anything(value: Any) -> str | None:
    return None


def one_of(*names: str) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and value in names else "one of " + ", ".join(names)

    return check


def optional(check: Check) -> Check:
    """Return a check that also allows null."""

    def maybe(value: Any) -> str | None:
        expected = None if value is None else check(value)
        return f"{expected}, or null" if expected else None

    return maybe
