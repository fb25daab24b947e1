"""Open a checkpoint that another tool quantized as if its weights were plain."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from .float8 import FLOAT8
from .foreign import ForeignWeight, foreign_weights, quantization_settings
from .header import TensorEntry
from .opening import open_checkpoint
from .reader import Checkpoint

_ROWS_AT_ONCE = 1024


class DecodedCheckpoint(Checkpoint):
    """A checkpoint with FP8, GPTQ or AWQ weights, which appear with plain names and shapes and are decoded on reading.

    Args:
        packed: the checkpoint as it is stored.
        weights: layer path -> quantized weight.
        dtype: dtype of the decoded weights that `read` returns.
    """

    decoded = True

    def __init__(self, packed: Checkpoint, weights: Mapping[str, ForeignWeight], dtype: mx.Dtype = mx.float32) -> None:
        used = {name for weight in weights.values() for name in weight.names}
        entries = {name: packed.entry(name) for name in packed.names if name not in used}
        for path, weight in weights.items():
            if f"{path}.weight" in entries:
                raise CheckpointError(
                    f"{packed.folder} has the same weight twice: {path}.weight, and quantized as {weight.names[0]}. "
                    "Remove the outdated one."
                )
            first = packed.entry(weight.names[0])
            size = 4 * math.prod(weight.shape)
            entries[f"{path}.weight"] = TensorEntry(first.file, "F32", weight.shape, first.offset, size)
        super().__init__(packed.folder, entries, packed.metadata, packed.files)
        self._packed = packed
        self._weights = {f"{path}.weight": weight for path, weight in weights.items()}
        self._dtype = dtype

    def is_decoded(self, name: str) -> bool:
        return name in self._weights

    @property
    def stored(self) -> Checkpoint:
        return self._packed

    def foreign(self, name: str) -> ForeignWeight | None:
        """Return the quantized weight that a tensor is decoded from, or None for a plain tensor."""
        return self._weights.get(name)

    def read(self, name: str) -> mx.array:
        """Return one tensor. A quantized one is decoded in float32, a block of rows at a time, and cast to `dtype`."""
        weight = self._weights.get(name)
        if weight is None:
            return self._packed.read(name)
        blocks = []
        for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, weight.shape[0])
            blocks.append(weight.decode_rows(start, stop).astype(self._dtype))
            mx.eval(blocks[-1])
        weight.release()
        return mx.concatenate(blocks) if len(blocks) > 1 else blocks[0]

    def read_now(self, name: str) -> mx.array:
        return self.read(name) if name in self._weights else self._packed.read_now(name)

    def read_rows(self, name: str, start: int, stop: int) -> mx.array:
        weight = self._weights.get(name)
        return weight.decode_rows(start, stop) if weight else self._packed.read_rows(name, start, stop)

    def release(self, name: str) -> None:
        weight = self._weights.get(name)
        if weight is not None:
            weight.release()

    def read_all(self, names: Iterable[str] | None = None) -> dict[str, mx.array]:
        """Return the named tensors (default: all)."""
        return {name: self.read(name) for name in (self.names if names is None else names)}


def open_decoded_checkpoint(folder: str | Path, config: Mapping[str, Any], dtype: mx.Dtype = mx.float32) -> Checkpoint:
    """Open the checkpoint in a folder, decoding FP8, GPTQ and AWQ weights.

    Without quantization settings, 8-bit floats are read as their values, as in transformers.

    Args:
        folder: a folder with safetensors, or a GGUF file.
        config: content of its config.json.
        dtype: dtype of decoded weights.

    Raises:
        CheckpointError: files are damaged or missing.
        QuantizationError: the quantization method is not supported.
    """
    checkpoint = open_checkpoint(folder)
    settings = quantization_settings(Path(folder), config)
    if settings is None:
        floats = any(checkpoint.entry(name).dtype in FLOAT8 for name in checkpoint.names)
        return checkpoint.with_float8_values() if floats else checkpoint
    return DecodedCheckpoint(checkpoint, foreign_weights(checkpoint, settings), dtype)
