"""What GPTQ and AWQ share: codes in 32-bit words, and tensors whose columns are the weight's rows."""

import mlx.core as mx

from .reader import Checkpoint

_MLX_GROUP_SIZES = (128, 64, 32)


def unpack_words(words: mx.array, bits: int) -> mx.array:
    """Return the codes in 32-bit words, lowest bits first: (..., n) -> (..., n * 32 / bits) uint32."""
    shifts = mx.arange(0, 32, bits, dtype=mx.uint32)
    codes = (words.view(mx.uint32)[..., None] >> shifts) & mx.array(2**bits - 1, dtype=mx.uint32)
    return codes.reshape(*words.shape[:-1], -1)


def mlx_group_size(group_size: int, columns: int) -> int | None:
    """Return a group size of MLX that divides another tool's group, so that scales can be repeated, or None."""
    for size in _MLX_GROUP_SIZES:
        if group_size % size == 0 and columns % size == 0:
            return size
    return None


class PackedWords:
    """The stored tensors of one layer's weight, read when they are needed."""

    def __init__(self, checkpoint: Checkpoint, path: str) -> None:
        self.path = path
        self._checkpoint = checkpoint
        self._held: dict[str, mx.array] = {}

    def _tensor(self, part: str) -> mx.array:
        # Rows of the weight are columns of these tensors, so each is read whole and held until `release`.
        array = self._held.get(part)
        if array is None:
            array = self._held[part] = self._checkpoint.read_now(f"{self.path}.{part}")
        return array

    def release(self) -> None:
        """Forget what was read."""
        self._held = {}

    @property
    def stored_dtype(self) -> mx.Dtype:
        return self._checkpoint.dtype(f"{self.path}.scales")
