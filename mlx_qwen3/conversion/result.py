"""The result of `convert`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.gguf_checkpoint import Repacked


@dataclass(frozen=True)
class LayerError:
    """The error of requantizing a layer.

    Attributes:
        largest: largest absolute error of a weight.
        mean: mean absolute error of the weights.
    """

    largest: float
    mean: float


@dataclass
class Conversion:
    """The result of a conversion.

    Attributes:
        path: the folder or file that was written.
        bytes_in: size of the weights of the source.
        bytes_out: size of the written weights.
        parameters: number of parameters, counted before quantization.
        bits_per_weight: bits written per parameter, including scales and unpacked weights.
        kept: layers in full precision because the group size does not divide their rows.
        requantized: layer -> why its codes could not be reused (GPTQ, AWQ).
        requantize_errors: layer -> error of requantizing it.
        largest_error: largest absolute error of a weight from rounding scales and biases of reused codes; None if no
            codes were reused.
        repacked: layer -> GGUF type and largest error, for types whose only layout in MLX has 8 bits.
        not_finite: weights with NaN or infinite values, converted with `force`.
        mlx_lm_differences: settings that stock mlx-lm would ignore, because of which it refuses the folder.
        quality: the quality report, or None.
        seconds: time for converting the weights.
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
