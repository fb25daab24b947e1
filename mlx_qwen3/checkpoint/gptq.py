"""GPTQ as stored by AutoGPTQ and GPTQModel: codes packed along the inputs, zero points along the outputs.

`w[o, i] = scales[g, o] * (code[i, o] - zero[g, o])` with `g = g_idx[i]`. The first format stores the zero point minus
one (modulo 2^bits); `checkpoint_format: gptq_v2` stores the zero point itself. Sources: AutoGPTQ
`nn_modules/qlinear/qlinear_cuda_old.py`, GPTQModel `utils/model.py` (convert_gptq_v1_to_v2_format).
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, QuantizationError
from .packed_words import PackedWords, mlx_group_size, unpack_words
from .reader import Checkpoint

BITS = (2, 4, 8)


class GptqWeight(PackedWords):
    """One GPTQ weight (rows, columns), stored as `qweight` (columns / codes per word, rows).

    Attributes:
        mislabelled: whether the zero points have another format than the settings say.
    """

    mislabelled = False

    def __init__(self, checkpoint: Checkpoint, path: str, bits: int, group_size: int, zero_offset: int) -> None:
        super().__init__(checkpoint, path)
        self.bits = bits
        self._find_zero_offset = zero_offset
        qweight, qzeros, scales = f"{path}.qweight", f"{path}.qzeros", f"{path}.scales"
        self.names: tuple[str, ...] = (qweight, qzeros, scales)
        words, rows = checkpoint.shape(qweight)
        columns = words * 32 // bits
        self.shape = (rows, columns)
        self.group_size = columns if group_size == -1 else group_size
        self._groups = checkpoint.shape(scales)[0]
        self._group_of_column: mx.array | None = None
        if f"{path}.g_idx" in checkpoint:
            self.names += (f"{path}.g_idx",)
            index = checkpoint.read_now(f"{path}.g_idx").astype(mx.int32)
            in_order = mx.arange(columns, dtype=mx.int32) // self.group_size
            if not mx.array_equal(index, in_order).item():
                span: list[int] = mx.stack([mx.min(index), mx.max(index)]).tolist()  # type: ignore[assignment]
                lowest, highest = span
                if lowest < 0 or highest >= self._groups:
                    raise CheckpointError(
                        f"{path}.g_idx has groups from {lowest} to {highest}, "
                        f"but there are {self._groups}. Download the checkpoint again."
                    )
                self._group_of_column = index

    @classmethod
    def find(cls, checkpoint: Checkpoint, path: str, settings: Mapping[str, Any]) -> "GptqWeight":
        """Return the weight at `path` after checking its tensors.

        If the settings have a format per module (`dynamic`), bits and group size are inferred from the shapes of the
        tensors.

        Args:
            settings: `quantization_config` of the checkpoint.

        Raises:
            QuantizationError: the number of bits or the format is not supported.
            CheckpointError: tensors are missing or do not fit together.
        """
        bits, group_size = settings.get("bits", 4), settings.get("group_size", 128)
        version = settings.get("checkpoint_format") or "gptq"
        if version not in ("gptq", "gptq_v2"):
            raise QuantizationError(
                f"GPTQ checkpoint_format {version!r} is not supported. Convert the unquantized model instead."
            )
        _check_packed(checkpoint, path)
        if settings.get("dynamic"):
            bits, group_size = _infer_format(checkpoint, path)
        if bits not in BITS or isinstance(bits, bool):
            raise QuantizationError(
                f"{path}: GPTQ with {bits!r} bits is not supported, only {BITS}. Convert the unquantized model instead."
            )
        if not _is_integer(group_size) or (group_size < 1 and group_size != -1):
            raise QuantizationError(f"GPTQ group_size is {group_size!r}, expected a positive number or -1.")
        words, rows = checkpoint.shape(f"{path}.qweight")
        columns = words * 32 // bits
        groups = -(-columns // (columns if group_size == -1 else group_size))
        _check_scales(checkpoint, path, bits, groups, rows)
        if f"{path}.g_idx" in checkpoint:
            if checkpoint.shape(f"{path}.g_idx") != (columns,):
                shape = checkpoint.shape(f"{path}.g_idx")
                raise CheckpointError(f"{path}.g_idx has shape {shape}, expected {(columns,)}.")
            stored = checkpoint.entry(f"{path}.g_idx").dtype
            if stored not in ("I32", "U32", "I64"):
                raise CheckpointError(f"{path}.g_idx is stored as {stored}, expected whole numbers.")
        offset = _find_zero_offset(checkpoint, path, bits, version, settings.get("sym", True) is not False)
        weight = cls(checkpoint, path, bits, group_size, offset)
        weight.mislabelled = offset != (1 if version == "gptq" else 0)
        return weight

    @property
    def affine_format(self) -> tuple[int, int] | None:
        if self._group_of_column is not None:
            return None
        size = mlx_group_size(self.group_size, self.shape[1])
        return None if size is None else (self.bits, size)

    @property
    def kept_apart(self) -> str | None:
        if self._group_of_column is not None:
            return "its columns are reordered (g_idx)"
        if self.affine_format is None:
            return f"MLX does not support groups of {self.group_size}"
        return None

    def _scales_and_zeros(self, start: int, stop: int) -> tuple[mx.array, mx.array]:
        """Return scales in their stored dtype and zeros in float32, (rows, groups) each."""
        scales = self._tensor("scales")[:, start:stop].T
        zeros = unpack_words(self._tensor("qzeros"), self.bits)[:, start:stop].T
        zeros = (zeros + self._find_zero_offset) & mx.array(2**self.bits - 1, dtype=mx.uint32)
        return scales, zeros.astype(mx.float32)

    def _packed_rows(self, start: int, stop: int) -> mx.array:
        # Transposing column-packed words gives row-packed words; the order within a word is the same in MLX.
        return mx.contiguous(self._tensor("qweight")[:, start:stop].T).view(mx.uint32)

    def decode_rows(self, start: int, stop: int) -> mx.array:
        """Return rows (stop - start, columns) in float32. Only the product with the scale is rounded."""
        scales, zeros = self._scales_and_zeros(start, stop)
        codes = unpack_words(self._packed_rows(start, stop), self.bits).astype(mx.float32)
        index = self._group_of_column
        if index is None:
            index = mx.arange(self.shape[1], dtype=mx.int32) // self.group_size
        return mx.take(scales.astype(mx.float32), index, axis=1) * (codes - mx.take(zeros, index, axis=1))

    def codes(self, start: int, stop: int) -> tuple[mx.array, mx.array, mx.array]:
        """Return packed codes (rows, words), scales and zeros (rows, groups) in MLX's layout and group size.

        Raises:
            QuantizationError: the columns are reordered, or MLX does not support the group size.
        """
        if self.affine_format is None:
            raise QuantizationError(f"{self.path}: {self.kept_apart}.")
        scales, zeros = self._scales_and_zeros(start, stop)
        repeats = self.group_size // self.affine_format[1]
        return self._packed_rows(start, stop), mx.repeat(scales, repeats, 1), mx.repeat(zeros, repeats, 1)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _infer_format(checkpoint: Checkpoint, path: str) -> tuple[int, int]:
    """Return bits and group size of a layer from the shapes of its codes and zeros."""
    words, rows = checkpoint.shape(f"{path}.qweight")
    groups, zero_words = checkpoint.shape(f"{path}.qzeros")
    bits = zero_words * 32 // max(rows, 1)
    columns = words * 32 // max(bits, 1)
    return bits, -(-columns // max(groups, 1))


def _find_zero_offset(checkpoint: Checkpoint, path: str, bits: int, version: str, symmetric: bool) -> int:
    """Return the number to add to a stored zero point: 1 in the first format, 0 in the second.

    `checkpoint_format` may be wrong. Symmetric quantization reveals it: all zero points are the middle of the codes,
    which the first format stores minus one.
    """
    labelled = 1 if version == "gptq" else 0
    if not symmetric:
        return labelled
    middle = 1 << (bits - 1)
    zeros = unpack_words(checkpoint.read_now(f"{path}.qzeros").view(mx.uint32), bits)
    for offset in (0, 1):
        if mx.all(zeros == middle - offset).item():
            return offset
    return labelled


def _check_packed(checkpoint: Checkpoint, path: str) -> None:
    for name in (f"{path}.qweight", f"{path}.qzeros", f"{path}.scales"):
        if name not in checkpoint:
            raise CheckpointError(f"{checkpoint.folder} lacks {name}. Download the checkpoint again.")
        if len(checkpoint.shape(name)) != 2:
            raise CheckpointError(f"{name} has shape {checkpoint.shape(name)}, expected two dimensions.")
    for name in (f"{path}.qweight", f"{path}.qzeros"):
        if checkpoint.entry(name).dtype not in ("I32", "U32"):
            raise CheckpointError(f"{name} is stored as {checkpoint.entry(name).dtype}, expected 32-bit words.")


def _check_scales(checkpoint: Checkpoint, path: str, bits: int, groups: int, rows: int) -> None:
    for name, expected in (
        (f"{path}.scales", (groups, rows)),
        (f"{path}.qzeros", (groups, rows * bits // 32)),
    ):
        shape = checkpoint.shape(name)
        if shape != expected:
            raise CheckpointError(f"{name} has shape {shape}, expected {expected}.")
    if not mx.issubdtype(checkpoint.dtype(f"{path}.scales"), mx.floating):
        raise CheckpointError(f"{path}.scales is not stored as floating point. Download the checkpoint again.")
