"""Checks of arguments; every error message has the argument's name, its value and the expected values."""

import math
from typing import Any

from ..errors import InputError

LARGEST_NUMBER = 1e300
"""Larger numbers count as infinite, because nothing is computed in more than float32."""


def plain(value: Any) -> Any:
    """Convert an array or a NumPy scalar to Python numbers; return other values unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def type_name(value: Any) -> str:
    """Return the name of a value's type with an article, for messages about values that are too long to show."""
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def check_callable(name: str, value: Any, expected: str) -> None:
    """Raise `InputError` unless `value` is None or callable."""
    if value is not None and not callable(value):
        raise InputError(f"{name} is {type_name(value)}, expected {expected}.")


def refuse_torch(processor: Any, name: str) -> None:
    """Raise `InputError` for an object of transformers, which computes with torch."""
    if type(processor).__module__.startswith("transformers."):
        raise InputError(
            f"{name} contains {type(processor).__name__} of transformers, which computes with torch. Pass the option "
            "itself, or a function of MLX arrays."
        )


def check_list(name: str, value: Any, expected: str) -> None:
    """Raise `InputError` unless `value` is a list or a tuple."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {type_name(value)}, expected {expected}.")


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
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = number and abs(value) <= LARGEST_NUMBER  # false for NaN
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
    raise InputError(f"{name} is {value!r}, expected {expected}{f' ({hint})' if hint else ''}.")


def check_whole_number(name: str, value: Any, *, least: int = 0, hint: str = "") -> None:
    """Raise `InputError` unless `value` is a whole number of at least `least`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return
    expected = f"a whole number of at least {least}" if least else "a whole number"
    raise InputError(f"{name} is {value!r}, expected {expected}{f' ({hint})' if hint else ''}.")


def check_seed(seed: Any) -> None:
    """Raise `InputError` unless `seed` is None or an unsigned 64-bit integer."""
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 1 << 64):
        return
    raise InputError(f"seed is {seed!r}, expected a whole number from 0 to 2^64 - 1.")
