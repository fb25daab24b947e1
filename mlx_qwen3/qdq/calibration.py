"""Find a model's fake quantizers by name, enable or disable them, and calibrate their ranges from data.

A quantizer's name is its name on disk: the path of its layer and the reference's attribute,
`encoder.layer.0.attention.self.query._input_quantizer`. Source of the recipe: pytorch-quantization 2.2.1
(quantization off and calibration on; run batches; load the ranges; calibration off and quantization on).
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError, QuantizationError
from ..layers.calibrators import CALIBRATION_METHODS, TINY_AMAX
from .fake_quantizer import TensorQuantizer

logger = logging.getLogger(__name__)


def named_quantizers(model: nn.Module) -> list[tuple[str, TensorQuantizer]]:
    """Return every fake quantizer of a model with its name on disk, in the order of the layers."""
    found = []
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, TensorQuantizer):
                found.append((f"{path}.{attribute}" if path else attribute, value))
    return sorted(
        found,
        key=lambda item: [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in item[0].split(".")],
    )


def switch_quantizers(model: nn.Module, pattern: str, enabled: bool) -> list[str]:
    """Enable or disable the quantizers whose name contains a match of the regular expression; return their names.

    Raises:
        InputError: `pattern` is not a regular expression.
    """
    try:
        expression = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(f"pattern is not a regular expression: {pattern!r} ({error}). Correct it.") from None
    names = []
    for name, quantizer in named_quantizers(model):
        if expression.search(name):
            quantizer.enabled = enabled
            names.append(name)
    if not names:
        logger.warning("no quantizer's name matches %r: named_quantizers() lists them", pattern)
    return names


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: str = "max",
    *,
    percentile: float = 99.99,
    stride: int = 1,
    start_bin: int = 128,
) -> None:
    """Set the range of every enabled quantizer from the values it receives while the model runs over `batches`.

    Weights, and activations with a range per index, always use their maximum.

    Args:
        batches: mappings of the model's arguments (the result of a tokenizer), or arrays of token ids (B, L).
        method: 'max', or from a histogram of |x|: 'percentile', 'mse' or 'entropy'.
        percentile: share of the values that the method 'percentile' keeps, from 0 to 100.
        stride, start_bin: the candidate ranges of 'mse' and 'entropy', in bins of 2048.

    Raises:
        QuantizationError: no batches; no quantizer is enabled; a quantizer received no data (named); the method is
            unknown. The ranges are unchanged then.
    """
    if method not in CALIBRATION_METHODS:
        raise QuantizationError(f"calibration method is {method!r}, expected one of {', '.join(CALIBRATION_METHODS)}.")
    if not isinstance(batches, Iterable):
        raise InputError(f"batches is {batches!r}, expected an iterable of mappings or of arrays of token ids.")
    quantizers = [(name, quantizer) for name, quantizer in named_quantizers(model) if quantizer.enabled]
    if not quantizers:
        raise QuantizationError(
            "there is no enabled fake quantizer to calibrate. Enable them with enable_quantizers('')."
        )
    before = [quantizer.amax for _, quantizer in quantizers]
    by_histogram = set()
    for name, quantizer in quantizers:
        quantizer.name = name
        if method != "max" and quantizer.axis is None and not name.endswith("_weight_quantizer"):
            by_histogram.add(name)
        quantizer.start_calibration("histogram" if name in by_histogram else "max")
    training = model.training
    model.eval()
    try:
        seen = 0
        for batch in batches:
            output = model(**batch) if isinstance(batch, Mapping) else model(batch)
            mx.eval(list(_arrays(output)))
            seen += 1
        if not seen:
            raise QuantizationError("batches is empty. Pass at least one batch.")
        options = {"percentile": percentile} if method == "percentile" else {"stride": stride, "start_bin": start_bin}
        for name, quantizer in quantizers:
            if name in by_histogram:
                quantizer.finish_calibration(method, **options)
            else:
                quantizer.finish_calibration("max")
    except BaseException:
        for (_, quantizer), amax in zip(quantizers, before, strict=True):
            quantizer.stop_calibration()
            quantizer.amax = amax
        raise
    finally:
        model.train(training)
    zero = [name for name, quantizer in quantizers if _is_zero(quantizer.amax)]
    if zero:
        logger.warning("%s received only zeros: its output will be 0", ", ".join(zero))


def _is_zero(amax: mx.array | None) -> bool:
    return amax is not None and bool((amax <= TINY_AMAX).all().item())


def _arrays(output: Any) -> Iterable[mx.array]:
    if isinstance(output, mx.array):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _arrays(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _arrays(value)
