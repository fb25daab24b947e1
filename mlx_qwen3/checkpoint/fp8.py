"""Block-wise FP8: `weight` in e4m3 with one scale per block, as in the official Qwen3 FP8 checkpoints.

`w[i, j] = e4m3(weight[i, j]) * weight_scale_inv[i // rows, j // columns]` for blocks of (rows, columns). The last
blocks may be partial. Without a block size, the scales are a single number or a grid that divides the weight evenly.
Scales may be stored as exponents (e8m0). Scales of activations are ignored, because activations are not quantized here.
Source: transformers `integrations/finegrained_fp8.py`.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, QuantizationError
from .float8 import float8_exponents, float8_values
from .reader import Checkpoint


class Fp8Weight:
    """One FP8 weight (rows, columns) with its block scales."""

    affine_format = None
    kept_apart = "8-bit floats have no integer codes"
    stored_dtype = mx.bfloat16

    def __init__(self, checkpoint: Checkpoint, path: str, block: tuple[int, int]) -> None:
        self.path = path
        activations = (f"{path}.activation_scale", f"{path}.input_scale")
        self.names: tuple[str, ...] = (f"{path}.weight", f"{path}.weight_scale_inv")
        self.names += tuple(name for name in activations if name in checkpoint)
        self.block = block
        self._checkpoint = checkpoint
        rows, columns = checkpoint.shape(self.names[0])
        self.shape = (rows, columns)

    @classmethod
    def find(cls, checkpoint: Checkpoint, path: str, settings: Mapping[str, Any]) -> "Fp8Weight":
        """Return the weight at `path` after checking its tensors.

        Args:
            settings: `quantization_config` of the checkpoint.

        Raises:
            QuantizationError: the format is not e4m3 in blocks.
            CheckpointError: tensors are missing or do not fit together.
        """
        if settings.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
            raise QuantizationError(
                f"FP8 format {settings['fmt']!r} is not supported, only e4m3. Convert the unquantized model instead."
            )
        block = settings.get("weight_block_size", (128, 128))
        if block is None:
            block = _infer_block(checkpoint, path)
        valid = isinstance(block, list | tuple) and len(block) == 2
        if not valid or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in block):
            raise QuantizationError(f"weight_block_size is {block!r}, expected two positive numbers.")
        weight, scale = f"{path}.weight", f"{path}.weight_scale_inv"
        if weight not in checkpoint or checkpoint.entry(weight).dtype != "F8_E4M3":
            raise CheckpointError(f"{scale} exists, but {weight} is not stored as e4m3. Download the checkpoint again.")
        shape = checkpoint.shape(weight)
        if len(shape) != 2:
            raise CheckpointError(f"{weight} has shape {shape}, expected rows and columns.")
        expected = tuple(-(-n // size) for n, size in zip(shape, block, strict=True))
        if checkpoint.shape(scale) != expected and not (expected == (1, 1) and checkpoint.shape(scale) in ((), (1,))):
            raise CheckpointError(
                f"{scale} has shape {checkpoint.shape(scale)}, expected {expected} for {weight} {shape} in blocks "
                f"of {tuple(block)}. Use the config.json of these weights."
            )
        if not mx.issubdtype(checkpoint.dtype(scale), mx.floating) and checkpoint.entry(scale).dtype != "F8_E8M0":
            raise CheckpointError(f"{scale} is stored as {checkpoint.entry(scale).dtype}, expected floating point.")
        return cls(checkpoint, path, (block[0], block[1]))

    def decode_rows(self, start: int, stop: int) -> mx.array:
        """Return rows (stop - start, columns) in float32. Only the product with the scale is rounded."""
        height, width = self.block
        codes = self._checkpoint.read_rows(self.names[0], start, stop)
        first, last = start // height, -(-stop // height)
        if len(self._checkpoint.shape(self.names[1])) < 2:
            scale = self._checkpoint.read_now(self.names[1]).reshape(1, 1)
        else:
            scale = self._checkpoint.read_rows(self.names[1], first, last)
        stored = self._checkpoint.entry(self.names[1]).dtype
        scale = float8_exponents()[scale] if stored == "F8_E8M0" else scale.astype(mx.float32)
        scale = mx.repeat(mx.repeat(scale, height, axis=0), width, axis=1)
        scale = scale[start - first * height : stop - first * height, : self.shape[1]]
        return float8_values("F8_E4M3")[codes] * scale

    def release(self) -> None:
        """Do nothing: no tensors are kept between calls."""

    def codes(self, start: int, stop: int) -> tuple[mx.array, mx.array, mx.array]:
        """Raise, because FP8 has no integer codes.

        Raises:
            QuantizationError: always.
        """
        raise QuantizationError(f"{self.path}: {self.kept_apart}.")


def _infer_block(checkpoint: Checkpoint, path: str) -> tuple[int, int]:
    """Return the block size (rows, columns) from the shapes of a weight and its scales.

    Raises:
        CheckpointError: tensors are missing, or the grid does not divide the weight.
    """
    weight, scale = checkpoint.shape(f"{path}.weight"), checkpoint.shape(f"{path}.weight_scale_inv")
    grid = (1, 1) if scale in ((), (1,)) else scale
    if len(weight) != 2 or len(grid) != 2 or any(not m or n % m for n, m in zip(weight, grid, strict=True)):
        raise CheckpointError(
            f"{path}.weight_scale_inv has shape {scale}, which does not divide the weight {weight}. "
            "Download the checkpoint again."
        )
    return weight[0] // grid[0], weight[1] // grid[1]
