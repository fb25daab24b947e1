"""AWQ in the GEMM layout: 4-bit codes packed along the outputs, eight per word in interleaved order.

`w[o, i] = scales[g, o] * (code[i, o] - zero[g, o])` with `g = i // group_size`. From the lowest bits, a word holds the
codes of outputs 0, 2, 4, 6, 1, 3, 5, 7. Source: AutoAWQ `utils/packing_utils.py`, `modules/linear/gemm.py`.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, QuantizationError
from .packed_words import PackedWords, mlx_group_size, unpack_words
from .reader import Checkpoint

_POSITION_IN_WORD = (0, 4, 1, 5, 2, 6, 3, 7)
"""Index of an output within a word -> position of its code, counted from the lowest bits."""


def _unpack_interleaved(words: mx.array) -> mx.array:
    """Unpack words (n, w) to codes (n, 8 w) in the order of the outputs."""
    codes = unpack_words(words, 4).reshape(words.shape[0], -1, 8)
    return mx.take(codes, mx.array(_POSITION_IN_WORD), axis=2).reshape(words.shape[0], -1)


class AwqWeight(PackedWords):
    """One AWQ weight (rows, columns), stored as `qweight` (columns, rows / 8)."""

    bits = 4

    def __init__(self, checkpoint: Checkpoint, path: str, group_size: int) -> None:
        super().__init__(checkpoint, path)
        columns, words = checkpoint.shape(f"{path}.qweight")
        self.shape = (words * 8, columns)
        self.group_size = columns if group_size == -1 else group_size
        self.names = tuple(
            f"{path}.{part}" for part in ("qweight", "qzeros", "scales") if f"{path}.{part}" in checkpoint
        )

    @classmethod
    def find(cls, checkpoint: Checkpoint, path: str, settings: Mapping[str, Any]) -> "AwqWeight":
        """Return the weight at `path` after checking its tensors.

        Args:
            settings: `quantization_config` of the checkpoint.

        Raises:
            QuantizationError: the layout is not GEMM, or the codes do not have 4 bits.
            CheckpointError: tensors are missing or do not fit together.
        """
        bits = settings.get("bits", settings.get("w_bit", 4))
        group_size = settings.get("group_size", settings.get("q_group_size", 128))
        version = str(settings.get("version", "gemm")).lower()
        if bits != 4 or isinstance(bits, bool) or version != "gemm":
            raise QuantizationError(
                f"AWQ with {bits!r} bits in layout {version[:60]!r} is not supported, only 4-bit gemm. "
                "Convert the unquantized model instead."
            )
        if not isinstance(group_size, int) or isinstance(group_size, bool) or (group_size < 1 and group_size != -1):
            raise QuantizationError(f"AWQ group_size is {group_size!r}, expected a positive number or -1.")
        for part in ("qweight", "scales", "qzeros"):
            name = f"{path}.{part}"
            if name not in checkpoint and not (part == "qzeros" and settings.get("zero_point") is False):
                raise CheckpointError(f"{checkpoint.folder} lacks {name}. Download the checkpoint again.")
            if name in checkpoint and len(checkpoint.shape(name)) != 2:
                raise CheckpointError(f"{name} has shape {checkpoint.shape(name)}, expected two dimensions.")
            if name in checkpoint and part != "scales" and checkpoint.entry(name).dtype not in ("I32", "U32"):
                raise CheckpointError(f"{name} is stored as {checkpoint.entry(name).dtype}, expected 32-bit words.")
        columns, words = checkpoint.shape(f"{path}.qweight")
        groups = -(-columns // (columns if group_size == -1 else group_size))
        for name, expected in ((f"{path}.scales", (groups, words * 8)), (f"{path}.qzeros", (groups, words))):
            if name in checkpoint and checkpoint.shape(name) != expected:
                raise CheckpointError(f"{name} has shape {checkpoint.shape(name)}, expected {expected}.")
        if not mx.issubdtype(checkpoint.dtype(f"{path}.scales"), mx.floating):
            raise CheckpointError(f"{path}.scales is not stored as floating point. Download the checkpoint again.")
        return cls(checkpoint, path, group_size)

    @property
    def affine_format(self) -> tuple[int, int] | None:
        size = mlx_group_size(self.group_size, self.shape[1])
        return None if size is None else (4, size)

    @property
    def kept_apart(self) -> str | None:
        return f"MLX does not support groups of {self.group_size}" if self.affine_format is None else None

    def _codes(self, start: int, stop: int) -> tuple[mx.array, mx.array, mx.array]:
        """Return codes (rows, columns) uint32, scales (rows, groups) as stored, zeros (rows, groups) float32."""
        first, last = start // 8, -(-stop // 8)
        inside = slice(start - 8 * first, stop - 8 * first)
        codes = _unpack_interleaved(self._tensor("qweight")[:, first:last])
        scales = self._tensor("scales")[:, start:stop].T
        if f"{self.path}.qzeros" in self._checkpoint:
            zeros = _unpack_interleaved(self._tensor("qzeros")[:, first:last])
            zeros = zeros[:, inside].T.astype(mx.float32)
        else:
            zeros = mx.full(scales.shape, 8.0, dtype=mx.float32)
        return codes[:, inside].T, scales, zeros

    def decode_rows(self, start: int, stop: int) -> mx.array:
        """Return rows (stop - start, columns) in float32. Only the product with the scale is rounded."""
        codes, scales, zeros = self._codes(start, stop)
        group = mx.arange(self.shape[1], dtype=mx.int32) // self.group_size
        scales = mx.take(scales.astype(mx.float32), group, axis=1)
        return scales * (codes.astype(mx.float32) - mx.take(zeros, group, axis=1))

    def codes(self, start: int, stop: int) -> tuple[mx.array, mx.array, mx.array]:
        """Return packed codes (rows, words), scales and zeros (rows, groups) in MLX's layout and group size.

        Raises:
            QuantizationError: MLX does not support the group size.
        """
        if self.affine_format is None:
            raise QuantizationError(f"{self.path}: {self.kept_apart}.")
        codes, scales, zeros = self._codes(start, stop)
        shifts = mx.arange(0, 32, 4, dtype=mx.uint32)
        packed = mx.sum(mx.contiguous(codes).reshape(codes.shape[0], -1, 8) << shifts, axis=-1).astype(mx.uint32)
        repeats = self.group_size // self.affine_format[1]
        return packed, mx.repeat(scales, repeats, 1), mx.repeat(zeros, repeats, 1)
