"""What `convert` gives back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.gguf_checkpoint import Repacked


@dataclass(frozen=True)
class LayerError:
    """What quantizing a layer again cost: the largest and the mean absolute error of a weight."""

    largest: float
    mean: float


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        path: the folder that was written.
        bytes_in: bytes of the source's weights.
        bytes_out: bytes of the written weights.
        parameters: numbers that the weights stand for.
        bits_per_weight: bytes_out in bits over parameters, scales and unpacked weights included.
        kept: layers left in full precision because the group size does not divide their rows.
        requantized: layer -> why its codes could not be reused (GPTQ, AWQ).
        requantize_errors: layer -> what that cost.
        largest_error: largest absolute error of a weight from rounding scales and biases of reused codes; None
            if none were.
        repacked: layer -> GGUF type and largest error, for types that MLX has no layout for but 8 bits.
        not_finite: weights with NaN or infinite values, converted with `force`.
        mlx_lm_differences: what stock mlx-lm would compute otherwise, so that it refuses the folder.
        quality: the quality report, or None if none was made.
        seconds: time for the weights.
    """

    path: Path
    bytes_in: int
    bytes_out: int
    parameters: int
    bits_per_weight: float
    kept: list[str] = field(default_factory=list)
    requantized: dict[str, str] = field(default_factory=dict)
    requantize_errors: dict[str, LayerError] = field(default_factory=dict)
    largest_error: float | None = None
    repacked: dict[str, Repacked] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    mlx_lm_differences: list[str] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    seconds: float = 0.0
