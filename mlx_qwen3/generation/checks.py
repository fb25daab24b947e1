"""Checks of numbers that users give; every message names the argument, the value and what is expected."""

import math
from typing import Any

from ..errors import InputError


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float = -math.inf,
    most: float = math.inf,
    hint: str = "",
) -> None:
    """Raise `InputError` unless `value` is a finite number within the limits."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if good and (above is None or value > above) and least <= value <= most:
        return
    if above is not None:
        expected = f"a number above {above}"
    elif least == -math.inf:
        expected = "a finite number"
    elif most == math.inf:
        expected = f"a number of at least {least}"
    else:
        expected = f"a number from {least} to {most}"
    raise InputError(f"{name} is {value!r}, expected {expected}{f' ({hint})' if hint else ''}")


def check_whole_number(name: str, value: Any, *, least: int = 0, hint: str = "") -> None:
    """Raise `InputError` unless `value` is a whole number of at least `least`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return
    expected = f"a whole number of at least {least}" if least else "a whole number"
    raise InputError(f"{name} is {value!r}, expected {expected}{f' ({hint})' if hint else ''}")


def check_seed(seed: Any) -> None:
    """Raise `InputError` unless `seed` is None or a whole number of 64 bits."""
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 1 << 64):
        return
    raise InputError(f"seed is {seed!r}, expected a whole number from 0 to 2^64 - 1")
