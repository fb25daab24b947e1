"""Arguments of a call, as people give them: lists, NumPy or MLX arrays, checked before anything is computed."""

from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError


def as_array(value: Any, name: str) -> mx.array | None:
    """An argument given as an MLX array, a NumPy array or a list, as an MLX array."""
    if value is None or isinstance(value, mx.array):
        return value
    if hasattr(value, "detach"):
        raise InputError(f"{name} is a torch tensor; pass an mx.array, a NumPy array or a list")
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype == object or array.dtype.kind in "USO":
        raise InputError(f"{name} is ragged or holds something other than numbers; pad the rows to one length")
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    return mx.array(array)


def check_range(array: mx.array, low: int, high: int, name: str, meaning: str, ignored: int | None = None) -> None:
    """Raises `InputError` unless every value of a whole-number array lies in low … high−1, or is `ignored`.

    While a function is being traced (mx.compile, mx.vmap) values do not exist yet and are not looked at.
    """
    if not mx.issubdtype(array.dtype, mx.integer):
        raise InputError(f"{name} holds {str(array.dtype).rpartition('.')[2]}, expected whole numbers")
    if not array.size:
        return
    looked_at = array if ignored is None else mx.where(array == ignored, low, array)
    smallest, largest = mx.min(looked_at), mx.max(looked_at)
    try:
        mx.eval(smallest, largest)
    except (RuntimeError, ValueError):
        return
    least, most = int(np.array(smallest)), int(np.array(largest))
    if least < low or most >= high:
        raise InputError(f"{name} holds {least if least < low else most}, outside {meaning}")
