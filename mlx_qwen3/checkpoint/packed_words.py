"""Shared code of GPTQ and AWQ: codes in 32-bit words, in tensors whose columns are the rows of the weight."""

import mlx.core as mx

from .reader import Checkpoint

_MLX_GROUP_SIZES = (128, 64, 32)


def unpack_words(words: mx.array, bits: int) -> mx.array:
    """Unpack 32-bit words (..., n) to codes (..., n * 32 / bits) uint32, lowest bits first."""
    shifts = mx.arange(0, 32, bits, dtype=mx.uint32)
    codes = (words.view(mx.uint32)[..., None] >> shifts) & mx.array(2**bits - 1, dtype=mx.uint32)
    return codes.reshape(*words.shape[:-1], -1)


def mlx_group_size(group_size: int, columns: int) -> int | None:
    """Return an MLX group size that divides another tool's group size, so that scales can be repeated, or None."""
    for size in _MLX_GROUP_SIZES:
        if group_size % size == 0 and columns % size == 0:
            return size
    return None


class PackedWords:
    """The stored tensors of the weight of one layer, read on demand."""

    def __init__(self, checkpoint: Checkpoint, path: str) -> None:
        self.path = path
        self._checkpoint = checkpoint
        self._held: dict[str, mx.array] = {}

    def _tensor(self, part: str) -> mx.array:
        # Rows of the weight are columns of these tensors, so each tensor is read completely and kept until `release`.
        array = self._held.get(part)
        if array is None:
            array = self._held[part] = self._checkpoint.read_now(f"{self.path}.{part}")
        return array

    def release(self) -> None:
        """Release the tensors that were read."""
        self._held = {}

    @property
    def stored_dtype(self) -> mx.Dtype:
        return self._checkpoint.dtype(f"{self.path}.scales")
