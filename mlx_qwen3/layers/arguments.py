"""Conversion and validation of the arguments of a model call: lists, NumPy or MLX arrays."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError

ArrayLike = mx.array | np.ndarray | Sequence[Any]
"""An array argument: an MLX or NumPy array, or (nested) lists of numbers."""


FLASH_ATTENTION_ARGUMENTS = {
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "num_items_in_batch",
}
"""Arguments in the reference's signature that its eager attention ignores."""


MOST = 2**31 - 1


def as_array(value: Any, name: str) -> mx.array | None:
    """Convert an argument to an MLX array; None stays None."""
    if value is None or isinstance(value, mx.array):
        return value
    if hasattr(value, "detach"):
        raise InputError(f"{name} is a torch tensor. Pass an mx.array, a NumPy array or a list.")
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype == object or array.dtype.kind in "USO":
        raise InputError(f"{name} is ragged or holds something other than numbers. Pad the rows to one length.")
    if array.dtype == np.int64:
        for number in (array.min(), array.max()) if array.size else ():
            if not -MOST <= number <= MOST:
                raise InputError(f"{name} holds {number}, which does not fit in 32 bits. Pass smaller numbers.")
        array = array.astype(np.int32)
    return mx.array(array)


def check_range(array: mx.array, low: int, high: int, name: str, meaning: str, ignored: int | None = None) -> None:
    """Raise `InputError` unless every value of a whole-number array lies in low … high−1, or is `ignored`.

    While a function is traced (mx.compile, mx.vmap) values do not exist yet and are not checked.
    """
    if not mx.issubdtype(array.dtype, mx.integer):
        raise InputError(f"{name} holds {str(array.dtype).rpartition('.')[2]}, expected whole numbers.")
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
        raise InputError(f"{name} holds {least if least < low else most}, outside {meaning}.")


def check_ids(ids: mx.array, vocab_size: int) -> None:
    """Raise `InputError` unless ids is (B, L), whole numbers, and within the vocabulary."""
    if ids.ndim != 2:
        raise InputError(f"input_ids has shape {tuple(ids.shape)}, expected (batch, length).")
    if not ids.size:
        raise InputError("input_ids is empty. Pass at least one token.")
    check_range(ids, 0, vocab_size, "input_ids", f"the vocabulary of {vocab_size}")


def check_positions(position_ids: mx.array, batch: int, length: int) -> None:
    """Raise `InputError` unless position_ids is (L,), (1, L) or (B, L)."""
    shape = tuple(position_ids.shape)
    if shape not in ((length,), (1, length), (batch, length)):
        raise InputError(f"position_ids has shape {shape}, expected ({batch}, {length}).")


def refuse_unknown(kwargs: dict[str, Any], owner: str) -> None:
    """Raise `InputError` for an argument that the call of class `owner` does not accept; None is accepted."""
    unknown = [name for name, value in kwargs.items() if value is not None and name not in FLASH_ATTENTION_ARGUMENTS]
    if "cache" in unknown:
        raise InputError("unknown argument: 'cache'. Pass the result of model.make_cache() as past_key_values.")
    if unknown:
        raise InputError(f"unknown argument: {unknown[0]!r}. See help({owner}.__call__).")
