"""The fake quantizer: rounds a tensor to a few bits and back, so that a float model sees its deployment precision.

Source of the formulas and states: pytorch-quantization 2.2.1, `tensor_quant.py` (`_tensor_quant`, the CPU path)
and `nn/modules/tensor_quantizer.py`. A quantizer is not an `nn.Module` and its range not a parameter: optimizers
must not update it, and MLX treats every public array of a module as a parameter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self, cast

import mlx.core as mx
import numpy as np

from ..errors import QuantizationError
from ..layers.calibrators import CALIBRATION_METHODS, TINY_AMAX, HistogramCalibrator, MaxCalibrator, reduce_amax

CALIB_METHODS = ("max", "histogram")


@dataclass(frozen=True)
class QuantDescriptor:
    """The quantization settings of a tensor.

    Args:
        num_bits: number of bits, including the sign.
        axis: the axis (or axes) with one range per index; None for one range per tensor.
        unsigned: use levels from 0; the tensor must not contain negative values.
        narrow_range: omit the lowest level (−128 of 8 bits).
        calib_method: statistics that `start_calibration` collects: 'max' or 'histogram'.
        amax: the initial range.

    Raises:
        QuantizationError: an invalid value; the message names the field.
    """

    num_bits: int = 8
    axis: int | tuple[int, ...] | None = None
    unsigned: bool = False
    narrow_range: bool = False
    calib_method: str = "max"
    amax: Any = None

    def __post_init__(self):
        least = 1 if self.unsigned else 2
        if not isinstance(self.num_bits, int) or isinstance(self.num_bits, bool) or not least <= self.num_bits <= 24:
            raise QuantizationError(
                f"quantization descriptor: num_bits is {self.num_bits!r}, expected a whole number from {least} to 24."
            )
        if isinstance(self.axis, list):
            object.__setattr__(self, "axis", tuple(self.axis))
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if self.axis is not None and not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
            raise QuantizationError(f"quantization descriptor: axis is {self.axis!r}, expected null or an axis number.")
        if self.calib_method not in CALIB_METHODS:
            raise QuantizationError(
                f"quantization descriptor: calib_method is {self.calib_method!r}, expected "
                f"{' or '.join(CALIB_METHODS)}."
            )
        if self.calib_method == "histogram" and self.axis is not None:
            raise QuantizationError(
                "quantization descriptor: a histogram requires one range per tensor. Set axis to null."
            )

    @classmethod
    def merged(cls, changes: "Mapping[str, Any] | QuantDescriptor | None", field: str, **defaults: Any) -> Self:
        """Return `defaults` updated by `changes`; `field` is the name used in errors.

        Raises:
            QuantizationError: `changes` is not a mapping or has an unknown key.
        """
        if isinstance(changes, cls):
            return changes
        if not isinstance(changes, Mapping | None):
            raise QuantizationError(f"{field} is {changes!r}, expected a mapping such as {{'num_bits': 8}}.")
        names = [f.name for f in fields(cls)]
        for key in changes or {}:
            if key not in names:
                raise QuantizationError(f"{field} has an unknown key: {key!r}. Use {', '.join(names)}.")
        return cls(**{**defaults, **(changes or {})})

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        high = 2.0 ** (self.num_bits - 1 + int(self.unsigned)) - 1
        if self.unsigned:
            return 0.0, high
        return (-high if self.narrow_range else -high - 1), high


def fake_quantize(
    x: mx.array, amax: mx.array, low: float, high: float, factors: "tuple[mx.array, mx.array] | None" = None
) -> mx.array:
    """Round `x` to the levels `low`…`high` of the step `amax/high`; return floats of `x`'s dtype.

    The product with `high/amax` is rounded half to even and divided by the same factor again: any other order of these
    operations flips ties. An `amax` up to 2⁻²⁴ gives zeros. Computed in float32. The gradient passes straight through
    where |x| ≤ amax and is zero elsewhere; `amax` gets none.

    Args:
        x: any shape.
        amax: the range, float32, broadcast against `x`.
        factors: `scale_factors(amax, high)`, if already computed.
    """
    up, down = factors or scale_factors(amax, high)
    fused = mx.default_device().type == mx.DeviceType.gpu
    quantize = _with_straight_through(low, high, fused)
    return quantize(x.astype(mx.float32), amax, up, down).astype(x.dtype)


def scale_factors(amax: mx.array, high: float) -> tuple[mx.array, mx.array]:
    """Return the factor from values to levels and the divisor back: high/amax, but 0 and 1 if the range counts as
    zero.
    """
    zero = amax <= TINY_AMAX
    scale = mx.where(zero, 1.0, high / amax)
    return mx.where(zero, 0.0, scale), scale


Quantize = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]


@cache
def _with_straight_through(low: float, high: float, fused: bool) -> Quantize:
    def levels(x: mx.array, up: mx.array, down: mx.array) -> mx.array:
        return mx.clip(mx.round(x * up), low, high) / down

    # one kernel instead of four; on a CPU compilation costs a second and saves little
    run = mx.compile(levels, shapeless=True) if fused else levels

    @mx.custom_function
    def quantize(x: mx.array, amax: mx.array, up: mx.array, down: mx.array) -> mx.array:
        return run(x, up, down)

    @quantize.vjp
    def straight_through(primals, cotangent, _output):
        x, amax, *factors = primals
        return mx.where(mx.abs(x) <= amax, cotangent, 0), mx.zeros_like(amax), *map(mx.zeros_like, factors)

    return cast(Quantize, quantize)


class TensorQuantizer:
    """Fake-quantize arrays; without a range, use the largest magnitude of each input.

    States: disabled (returns the input), calibrating (observes and returns the input), else quantizing.

    Args:
        **descriptor: the fields of `QuantDescriptor`.

    Raises:
        QuantizationError: an invalid descriptor or range; a negative input if `unsigned`.
    """

    def __init__(self, descriptor: QuantDescriptor | None = None, *, name: str = "", **fields: Any):
        self.descriptor = descriptor or QuantDescriptor.merged(fields, "TensorQuantizer")
        self.name = name
        self.shape: tuple[int, ...] | None = None
        """The required shape of the range, if the owner of the quantizer knows it."""
        self.enabled = True
        self.calibrating = False
        self._amax: mx.array | None = None
        self._factors: tuple[mx.array, mx.array] | None = None
        self._calibrator: MaxCalibrator | HistogramCalibrator | None = None
        if self.descriptor.amax is not None:
            self.amax = self.descriptor.amax

    def __repr__(self) -> str:
        d = self.descriptor
        state = "disabled" if not self.enabled else "calibrating" if self.calibrating else "enabled"
        span = "dynamic" if self._amax is None else f"amax {self._amax.shape}"
        kind = f"{'unsigned ' if d.unsigned else ''}{d.num_bits} bits{', narrow' if d.narrow_range else ''}"
        return f"TensorQuantizer({kind}, axis {d.axis}, {span}, {state})"

    @property
    def num_bits(self) -> int:
        return self.descriptor.num_bits

    @property
    def axis(self) -> int | tuple[int, ...] | None:
        return self.descriptor.axis

    @property
    def unsigned(self) -> bool:
        return self.descriptor.unsigned

    @property
    def narrow_range(self) -> bool:
        return self.descriptor.narrow_range

    @property
    def amax(self) -> mx.array | None:
        """The range: float32, a scalar or one number per index of `axis`; None to derive it from every input."""
        return self._amax

    @amax.setter
    def amax(self, value: Any) -> None:
        if value is None:
            self._amax = self._factors = None
            return
        where = f"{self.name or 'quantizer'}: amax"
        try:
            amax = mx.array(value).astype(mx.float32)
        except (TypeError, ValueError):
            raise QuantizationError(f"{where} is {value!r}, expected a number or an array of numbers.") from None
        expected = self.shape if self._amax is None else self._amax.shape
        if expected is not None and amax.shape != expected:
            # a file may hold a scalar as (1,) and a column as a vector; anything else belongs to another model
            if not (amax.size == 1 == int(np.prod(expected)) or (*amax.shape, 1) == expected):
                raise QuantizationError(f"{where} has the shape {amax.shape}, expected {expected}.")
            amax = amax.reshape(expected)
        numbers = np.array(amax)
        if not numbers.size or not np.isfinite(numbers).all():
            raise QuantizationError(f"{where} is empty or contains NaN or infinity. Calibrate again.")
        if numbers.min() < 0:
            raise QuantizationError(f"{where} is negative: {numbers.min():g}. A range is a magnitude.")
        self._amax, self._factors = amax, scale_factors(amax, self.descriptor.bounds[1])
        mx.eval(self._amax, self._factors)

    @property
    def step_size(self) -> mx.array | None:
        """The distance between two levels, amax/(2^(bits−1) − 1); None without a range."""
        return None if self._amax is None else self._amax / self.descriptor.bounds[1]

    def enable(self) -> None:
        """Quantize again."""
        self.enabled = True

    def disable(self) -> None:
        """Return the input unchanged, also during calibration."""
        self.enabled = False

    def start_calibration(self, calib_method: str | None = None) -> None:
        """Observe inputs without quantizing them, until `finish_calibration`.

        Args:
            calib_method: 'max' or 'histogram'; the descriptor's by default.

        Raises:
            QuantizationError: a histogram for a quantizer with one range per index.
        """
        method = calib_method or self.descriptor.calib_method
        if method == "histogram" and self.axis is not None:
            raise QuantizationError(
                f"{self.name or 'quantizer'}: a histogram requires one range per tensor, not axis {self.axis}."
            )
        if method == "histogram":
            self._calibrator = HistogramCalibrator(self.num_bits, self.unsigned)
        elif method == "max":
            self._calibrator = MaxCalibrator(self.axis)
        else:
            raise QuantizationError(f"calib_method is {method!r}, expected {' or '.join(CALIB_METHODS)}.")
        self.calibrating = True

    def finish_calibration(self, method: str | None = None, **options: Any) -> None:
        """Set the range from the observed inputs and start quantizing.

        Args:
            method: 'max' after a max calibration; 'percentile' (the default), 'entropy' or 'mse' after a histogram.
            **options: `percentile`, or `stride` and `start_bin`, for the histogram methods.

        Raises:
            QuantizationError: nothing was observed, or the method does not fit the collected statistics.
        """
        where = self.name or "quantizer"
        calibrator = self._calibrator
        if calibrator is None:
            raise QuantizationError(f"{where}: no calibration was started. Call start_calibration() and run inputs.")
        if method is not None and method not in CALIBRATION_METHODS:
            raise QuantizationError(
                f"calibration method is {method!r}, expected one of {', '.join(CALIBRATION_METHODS)}."
            )
        if isinstance(calibrator, HistogramCalibrator):
            amax = calibrator.compute_amax(method or "percentile", **options)
        elif method in (None, "max"):
            amax = calibrator.compute_amax()
        else:
            raise QuantizationError(f"{where}: method {method!r} needs a histogram. Set calib_method to 'histogram'.")
        if amax is None:
            raise QuantizationError(
                f"{where}: it received no data during calibration. Pass inputs that use it, or disable it first."
            )
        self.stop_calibration()
        self.amax = amax

    def stop_calibration(self) -> None:
        """Discard the observed inputs and quantize again with the previous range."""
        self._calibrator, self.calibrating = None, False

    def __call__(self, x: mx.array) -> mx.array:
        """Return `x` fake-quantized, with its shape and dtype."""
        if not self.enabled:
            return x
        if self.calibrating and self._calibrator is not None:
            self._calibrator.collect(x)
            return x
        if self.unsigned and (x < 0).any().item():
            raise QuantizationError(
                f"{self.name or 'quantizer'}: it is unsigned but the input contains negative values. Use signed levels."
            )
        amax = self._amax
        if amax is None:
            amax = mx.stop_gradient(reduce_amax(x, self.axis).astype(mx.float32))
        return fake_quantize(x, amax, *self.descriptor.bounds, self._factors)
