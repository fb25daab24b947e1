"""Rotary position embeddings: frequencies by type, with cosines and sines equal to the reference's at every position.

Angles are float32 products of a position and a frequency, as in the reference; an error of one unit in
the last place of a frequency would be 0.01 rad at position 131,072. `mx.fast.rope` inverts the given frequencies. In
float32 it is therefore used only for single positions (decoding), where it receives the angle itself. In float16 and
bfloat16 it also rotates consecutive positions: it is closer to the exact rotation than cosines and sines rounded to
those dtypes (4e-3 in bfloat16). On CUDA single positions in these dtypes are rotated like consecutive ones, because
angles that the host has just computed reach the GPU by a page fault (0.1 ms per token, H100).

Source: transformers 5.23 `modeling_rope_utils.py`; YaRN arXiv 2309.00071, LongRoPE arXiv 2402.13753, Llama 3.1.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from .devices import variants


@dataclass(frozen=True)
class Rotation:
    """The rotation applied to the queries and keys of one call.

    cos, sin: (L, D) or (B, 1, L, D), multiplied by the attention factor, sin negated in its first half. Computed in
    float32 and stored in the dtype of the activations, as in the reference.
    """

    cos: mx.array
    sin: mx.array
    compiled: bool = False

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate x (B, H, L, D); in x's dtype."""
        half = x.shape[-1] // 2
        swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        if self.compiled:
            return _blended(x, swapped, self.cos, self.sin)
        return x * self.cos + swapped * self.sin


_blended = mx.compile(lambda x, swapped, cos, sin: x * cos + swapped * sin, shapeless=True)


@dataclass(frozen=True)
class ConsecutivePositions:
    """The rotation of positions `start`, `start` + 1, … by `mx.fast.rope`, in one kernel.

    periods: 1 / frequency (D/2,), chosen so that the kernel's inversion is closest to the frequencies. start: for all
    rows (), or for each (B,). factor: the attention factor.
    """

    periods: mx.array
    dims: int
    start: mx.array
    factor: float = 1.0

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate x (B, H, L, D); in x's dtype."""
        rotated = mx.fast.rope(
            x, self.dims, traditional=False, base=None, scale=1.0, offset=self.start, freqs=self.periods
        )
        return rotated if self.factor == 1.0 else rotated * self.factor


def periods_of(frequencies: np.ndarray) -> np.ndarray:
    """Return float32 periods whose float32 inverses are nearest to the frequencies; most of them are equal."""
    nearest = (1.0 / frequencies.astype(np.float64)).astype(np.float32)
    neighbours = [np.nextafter(nearest, np.float32(bound), dtype=np.float32) for bound in (0, np.inf)]
    candidates = np.stack([nearest, *neighbours])
    errors = np.abs((np.float32(1) / candidates).astype(np.float64) - frequencies)
    return np.take_along_axis(candidates, errors.argmin(axis=0)[None], axis=0)[0]


@lru_cache(maxsize=32)
def _device_periods(frequencies: bytes) -> mx.array:
    """Return `periods_of` float32 frequencies, given as bytes, on the device."""
    return mx.array(periods_of(np.frombuffer(frequencies, dtype=np.float32)))


@dataclass(frozen=True)
class SinglePosition:
    """The rotation of one common position, as frequencies for `mx.fast.rope` at position 1."""

    inverse_angles: mx.array
    dims: int

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate x (B, H, 1, D)."""
        return mx.fast.rope(x, self.dims, traditional=False, base=None, scale=1.0, offset=1, freqs=self.inverse_angles)


class RotaryPositions:
    """Compute the rotations of a call from the rotary settings of the configuration.

    Args:
        settings: `config.rope_parameters`.
        head_dim: D.
        max_position_embeddings: the context length of the configuration.
        original_length: overrides the settings' `original_max_position_embeddings`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        head_dim: int,
        max_position_embeddings: int,
        original_length: int | None = None,
    ):
        self.kind = settings["rope_type"]
        self.head_dim = head_dim
        self._settings = settings
        self._base = float(settings["rope_theta"])
        self._max = max_position_embeddings
        self._original = original_length or settings.get("original_max_position_embeddings") or max_position_embeddings
        self._exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        self.attention_factor = 1.0
        self._long: np.ndarray | None = None
        self._fixed = self._frequencies()

    @property
    def moves_with_length(self) -> bool:
        """Whether the frequencies depend on the sequence length, so that caching changes the result."""
        return self.kind in ("dynamic", "longrope")

    def at(
        self, start: int, length: int, dtype: mx.Dtype = mx.float32
    ) -> Rotation | ConsecutivePositions | SinglePosition:
        """Return the rotation of positions start … start+length−1, the same for every row."""
        frequencies = self._for_length(start + length)
        if self._takes_positions(length, dtype):
            return self._consecutive(frequencies, mx.array(start))
        if length == 1 and self.attention_factor == 1.0:
            angles = np.float32(start) * frequencies
            turned = np.remainder(angles.astype(np.float64) + math.pi, 2 * math.pi) - math.pi
            with np.errstate(divide="ignore"):
                inverse = (1.0 / turned).astype(np.float32)
            return SinglePosition(mx.array(inverse), self.head_dim)
        positions = mx.arange(start, start + length, dtype=mx.float32)
        return self._rotation(positions[:, None] * mx.array(frequencies), dtype)

    def at_positions(self, position_ids: mx.array, dtype: mx.Dtype = mx.float32) -> Rotation | ConsecutivePositions:
        """Return the rotation of given positions, (L,), (1, L) or (B, L), lazily."""
        one_each = position_ids.ndim == 2 and position_ids.shape[1] == 1
        if one_each and dtype != mx.float32 and not self.moves_with_length and variants().prefill_rope == "fast":
            return self._consecutive(self._fixed, position_ids[:, 0])
        positions = position_ids.astype(mx.float32)
        frequencies: mx.array
        if self.kind == "longrope":
            assert self._long is not None
            past_original = mx.max(positions) + 1 > self._original
            frequencies = mx.where(past_original, mx.array(self._long), mx.array(self._fixed))
        elif self.kind == "dynamic":
            length = mx.maximum(mx.max(positions) + 1, self._max)
            factor = self._settings["factor"]
            power = self.head_dim / (self.head_dim - 2)
            base = self._base * ((factor * length / self._max) - (factor - 1)) ** power
            grown = 1.0 / base ** mx.array(self._exponents)
            frequencies = mx.where(length > self._max, grown, mx.array(self._fixed))
        else:
            frequencies = mx.array(self._fixed)
        angles = positions[..., None] * frequencies
        return self._rotation(angles[:, None] if angles.ndim == 3 else angles, dtype)

    @staticmethod
    def _takes_positions(length: int, dtype: mx.Dtype) -> bool:
        """Return whether `mx.fast.rope` gets positions instead of angles, cosines or sines."""
        if dtype == mx.float32:
            return False
        return variants().prefill_rope == "fast" if length > 1 else variants().decode_rope == "position"

    def _consecutive(self, frequencies: np.ndarray, start: mx.array) -> ConsecutivePositions:
        periods = _device_periods(np.asarray(frequencies, dtype=np.float32).tobytes())
        return ConsecutivePositions(periods, self.head_dim, start, float(self.attention_factor))

    def _rotation(self, angles: mx.array, dtype: mx.Dtype) -> Rotation:
        cos = (mx.cos(angles) * self.attention_factor).astype(dtype)
        sin = (mx.sin(angles) * self.attention_factor).astype(dtype)
        compiled = variants().prefill_rope == "compiled"
        return Rotation(mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1), compiled)

    # frequencies

    def _powers(self, base: float) -> np.ndarray:
        """Return base**e rounded to float32 once, within half a unit in the last place as in the reference."""
        return (np.float64(base) ** self._exponents.astype(np.float64)).astype(np.float32)

    def _for_length(self, length: int) -> np.ndarray:
        if self.kind == "longrope" and length > self._original:
            assert self._long is not None
            return self._long
        if self.kind == "dynamic" and length > self._max:
            factor = self._settings["factor"]
            stretch = (factor * length / self._max) - (factor - 1)
            return 1 / self._powers(self._base * stretch ** (self.head_dim / (self.head_dim - 2)))
        return self._fixed

    def _frequencies(self) -> np.ndarray:
        plain = np.float32(1) / self._powers(self._base)
        if self.kind == "linear":
            return plain / np.float32(self._settings["factor"])
        if self.kind == "yarn":
            return self._yarn()
        if self.kind == "longrope":
            return self._longrope()
        if self.kind == "llama3":
            return self._llama3(plain)
        return plain

    def _yarn(self) -> np.ndarray:
        s, d, base = self._settings, self.head_dim, self._base
        factor = s.get("factor") or self._max / self._original

        def scale(by: float, mscale: float = 1.0) -> float:
            return 1.0 if by <= 1 else 0.1 * mscale * math.log(by) + 1.0

        def dimension(rotations: float) -> float:
            return d * math.log(self._original / (rotations * 2 * math.pi)) / (2 * math.log(base))

        if s.get("attention_factor") is not None:
            self.attention_factor = float(s["attention_factor"])
        elif s.get("mscale") and s.get("mscale_all_dim"):
            self.attention_factor = scale(factor, s["mscale"]) / scale(factor, s["mscale_all_dim"])
        else:
            self.attention_factor = scale(factor)
        low, high = dimension(s.get("beta_fast") or 32), dimension(s.get("beta_slow") or 1)
        if s.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d - 1)
        if low == high:
            high += 0.001
        ramp = (np.arange(d // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = np.float32(1) - np.clip(ramp, 0, 1)
        powers = self._powers(base)
        stretched = np.float32(1) / (np.float32(factor) * powers)
        return stretched * (np.float32(1) - kept) + (np.float32(1) / powers) * kept

    def _longrope(self) -> np.ndarray:
        s, powers = self._settings, self._powers(self._base)
        factor = s.get("factor") or self._max / self._original
        if s.get("attention_factor") is not None:
            self.attention_factor = float(s["attention_factor"])
        elif factor > 1:
            self.attention_factor = math.sqrt(1 + math.log(factor) / math.log(self._original))
        self._long = np.float32(1) / (np.asarray(s["long_factor"], dtype=np.float32) * powers)
        return np.float32(1) / (np.asarray(s["short_factor"], dtype=np.float32) * powers)

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        s = self._settings
        low, high, factor = s["low_freq_factor"], s["high_freq_factor"], np.float32(s["factor"])
        wavelengths = np.float32(2 * math.pi) / plain
        slowed = np.where(wavelengths > np.float32(self._original / low), plain / factor, plain)
        smooth = (np.float32(self._original) / wavelengths - np.float32(low)) / np.float32(high - low)
        between = (np.float32(1) - smooth) * slowed / factor + smooth * slowed
        medium = (wavelengths >= np.float32(self._original / high)) & (wavelengths <= np.float32(self._original / low))
        return np.where(medium, between, slowed).astype(np.float32)
