"""Comparisons of what the default device computes with what it must give, and families of them.

A comparison fails when the norm of its error, over the norm of what is expected, exceeds the limit of its dtype, or
when it is not a number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import MlxQwen3Error
from .machine import FAILED, OK, Check

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
LIMITS = {"float32": 5e-4, "float16": 1e-2, "bfloat16": 4e-2, "exact": 0.0}
"""Largest relative error of each dtype: some units in the last place, times the few products behind a value. Float32
leaves room for devices that multiply in more than one precision."""


@dataclass(frozen=True)
class Comparison:
    """What was computed and what is expected; `dtype` names a limit."""

    label: str
    dtype: str
    got: Any
    want: Any

    @property
    def error(self) -> float:
        """The norm of the difference over the norm of what is expected; infinite for NaN."""
        got, want = as_numpy(self.got), as_numpy(self.want)
        if got.shape != want.shape:
            return float("inf")
        norm = float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-30))
        return norm if np.isfinite(norm) else float("inf")


Family = Callable[[], Iterator[Comparison]]


def as_numpy(array: Any) -> np.ndarray[Any, Any]:
    """Return an array as float64."""
    if isinstance(array, mx.array):
        array = np.array(array.astype(mx.float32))
    return np.asarray(array, dtype=np.float64)


def draw(seed: int, *shape: int, dtype: str = "float32") -> tuple[mx.array, np.ndarray[Any, Any]]:
    """Return random numbers in a dtype, and what they are exactly."""
    array = mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).astype(DTYPES[dtype])
    return array, as_numpy(array)


def run_family(name: str, family: Family) -> Check:
    """Run one family: ok with its largest errors, or failed with the first comparison that is off."""
    worst: dict[str, float] = {}
    count = 0
    try:
        for one in family():
            count += 1
            error = one.error
            if not error <= LIMITS[one.dtype]:
                found = f"{one.label}, {one.dtype}: error {error:.1e}, at most {LIMITS[one.dtype]:.0e} allowed"
                return Check(name, FAILED, found, "Please report this with the whole output.")
            worst[one.dtype] = max(worst.get(one.dtype, 0.0), error)
    except (RuntimeError, ValueError, TypeError, MlxQwen3Error) as error:
        found = f"after {count} comparisons: {' '.join(str(error).split())}"
        return Check(name, FAILED, found, "Please report this with the whole output.")
    errors = ", ".join(f"{dtype} {error:.0e}" for dtype, error in worst.items() if dtype != "exact")
    return Check(name, OK, f"{count} comparisons{f', largest error {errors}' if errors else ''}")


def on_cpu(function: Callable[[], Any]) -> Any:
    """Return what a function gives with the CPU as the default device."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu, 0))
    try:
        result = function()
        mx.eval(result)
        return result
    finally:
        mx.set_default_device(before)
