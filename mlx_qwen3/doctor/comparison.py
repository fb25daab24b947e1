"""Compare results of the default device with reference results, and run families of comparisons.

A comparison fails if its relative error (norm of the difference over norm of the expected array) is NaN or exceeds the
limit of its dtype.
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
"""Largest allowed relative error per dtype: a few units in the last place, accumulated over the products of a value.

The limit of float32 leaves room for devices that multiply float32 with reduced precision.
"""


@dataclass(frozen=True)
class Comparison:
    """One computed result with its expected value.

    Args:
        label: what was computed, for the report.
        dtype: a key of `LIMITS`.
        got, want: arrays of equal shape.
    """

    label: str
    dtype: str
    got: Any
    want: Any

    @property
    def error(self) -> float:
        """Norm of the difference over norm of the expected array; infinite for NaN or different shapes."""
        got, want = as_numpy(self.got), as_numpy(self.want)
        if got.shape != want.shape:
            return float("inf")
        norm = float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-30))
        return norm if np.isfinite(norm) else float("inf")


Family = Callable[[], Iterator[Comparison]]


def as_numpy(array: Any) -> np.ndarray[Any, Any]:
    """Return an array as a float64 NumPy array."""
    if isinstance(array, mx.array):
        array = np.array(array.astype(mx.float32))
    return np.asarray(array, dtype=np.float64)


def draw(seed: int, *shape: int, dtype: str = "float32") -> tuple[mx.array, np.ndarray[Any, Any]]:
    """Return normally distributed numbers in a dtype, and the same rounded values as float64."""
    array = mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).astype(DTYPES[dtype])
    return array, as_numpy(array)


def run_family(name: str, family: Family) -> Check:
    """Run one family. The result is "ok" with the largest errors, or "failed" with the first failed comparison."""
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
    """Call a function with the CPU as the default device, and return its evaluated result."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu, 0))
    try:
        result = function()
        mx.eval(result)
        return result
    finally:
        mx.set_default_device(before)
