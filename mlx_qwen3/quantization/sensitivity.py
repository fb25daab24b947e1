"""Measure the sensitivity of each layer to fewer bits, and allocate a budget of bits at the least divergence.

The sensitivity of a layer is the divergence of the model's outputs when only that layer is packed in 4 bits. For other
formats it is scaled by the weights' squared error, since the divergence grows with the square of a small change.
Layers are assumed to be independent. The idea of measured sensitivities is that of mlx-lm's dynamic_quant; measure and
search are our own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import QuantizationError
from .formats import PackedFormat
from .quality import Divergence, Sample, answers, predicts_next

logger = logging.getLogger(__name__)

PROBE = PackedFormat(4, 64)
CANDIDATES = tuple(PackedFormat(bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (128, 64, 32))


@dataclass(frozen=True)
class LayerCost:
    """A layer's number of weights, and the expected divergence per format that fits it."""

    size: int
    divergence: Mapping[PackedFormat, float]


def _divergence(expected: Sequence[Sequence[mx.array]], model: Any, samples: Sequence[Sample]) -> float:
    """Return the mean divergence of a model's outputs, or the mean squared difference of its vectors or scores."""
    divergence, squares = Divergence(), []
    vectors = type(model).__name__.endswith("Model") and not predicts_next(model)
    for references, sample in zip(expected, samples, strict=True):
        for reference, found in zip(references, answers(model, sample), strict=True):
            if vectors or reference.shape[-1] == 1:
                squares.append(float(np.array(mx.mean(mx.square((reference - found).astype(mx.float32))))))
            else:
                divergence.add(reference, found)
    return float(np.mean(squares)) if squares else divergence.mean()


def measure_layers(
    model: Any,
    samples: Sequence[Sample],
    paths: Sequence[str],
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, LayerCost]:
    """Return path -> cost of each format, for a model with plain weights.

    One forward pass over the samples for each layer.

    Args:
        model: called as a Hugging Face model; unchanged afterwards.
        samples: the rows to measure on.
        paths: the layers to measure.
        progress: called with layers done and their number.
    """
    modules = dict(model.named_modules())
    expected = []
    for sample in samples:
        expected.append(answers(model, sample))
        mx.eval(expected[-1])
    costs = {}
    for number, path in enumerate(paths):
        if progress is not None:
            progress(number, len(paths))
        layer: nn.Module = modules[path]
        weight = layer["weight"]
        fitting = [fmt for fmt in CANDIDATES if fmt.divides(tuple(weight.shape))]
        if not fitting:
            costs[path] = LayerCost(weight.size, {})
            continue
        probe = PROBE if PROBE in fitting else PackedFormat(4, fitting[-1].group_size)
        errors = {fmt: _squared_error(weight, fmt) for fmt in fitting}
        layer.weight = probe.dequantize(probe.quantize(weight), weight.dtype)
        try:
            measured = _divergence(expected, model, samples)
        finally:
            layer.weight = weight
        scale = measured / max(errors[probe], 1e-30)
        costs[path] = LayerCost(weight.size, {fmt: scale * error for fmt, error in errors.items()})
        logger.info("%s: %.3g at %d bits", path, measured, probe.bits)
    if progress is not None:
        progress(len(paths), len(paths))
    return costs


def _squared_error(weight: mx.array, fmt: PackedFormat) -> float:
    found = fmt.dequantize(fmt.quantize(weight), mx.float32)
    return float(np.array(mx.mean(mx.square(found - weight.astype(mx.float32)))))


def allocate(costs: Mapping[str, LayerCost], budget_bits: float) -> dict[str, PackedFormat | None]:
    """Return the formats with the least total divergence that take at most `budget_bits` together.

    For a given price per bit each layer picks the format with the least divergence plus price; the price is found by
    bisection, and the rest of the budget goes to the changes with the largest gain per bit.

    Raises:
        QuantizationError: the smallest formats take more.
    """
    unpacked = [path for path, cost in costs.items() if not cost.divergence]
    budget = budget_bits - 16 * sum(costs[path].size for path in unpacked)
    packed = {path: cost for path, cost in costs.items() if cost.divergence}
    smallest = {path: min(cost.divergence, key=PackedFormat.bits_per_weight) for path, cost in packed.items()}
    if _bits(packed, smallest) > budget:
        size = max(sum(cost.size for cost in packed.values()), 1)
        least, left = _bits(packed, smallest) / size, max(budget, 0) / size
        raise QuantizationError(
            f"the fixed formats leave {left:.2f} bits per weight for the other layers, whose smallest formats take "
            f"{least:.2f}. Raise target_bpw."
        )
    low, high = -40.0, 40.0
    chosen = smallest
    for _ in range(60):
        middle = (low + high) / 2
        tried = {path: _cheapest(cost, 2.0**middle) for path, cost in packed.items()}
        if _bits(packed, tried) <= budget:
            chosen, high = tried, middle
        else:
            low = middle
    chosen = _spend_rest(packed, dict(chosen), budget)
    return {**chosen, **dict.fromkeys(unpacked)}


def _bits(costs: Mapping[str, LayerCost], formats: Mapping[str, PackedFormat]) -> float:
    return sum(costs[path].size * fmt.bits_per_weight() for path, fmt in formats.items())


def _cheapest(cost: LayerCost, price: float) -> PackedFormat:
    # Prices are per bit of a million weights, so that the search range suits small and large models.
    return min(cost.divergence, key=lambda f: cost.divergence[f] + price * 1e-6 * cost.size * f.bits_per_weight())


def _spend_rest(
    costs: Mapping[str, LayerCost], chosen: dict[str, PackedFormat], budget: float
) -> dict[str, PackedFormat]:
    left = budget - _bits(costs, chosen)
    while True:
        best: tuple[float, str, PackedFormat, float] | None = None
        for path, fmt in chosen.items():
            cost = costs[path]
            for other, divergence in cost.divergence.items():
                extra = cost.size * (other.bits_per_weight() - fmt.bits_per_weight())
                gain = cost.divergence[fmt] - divergence
                if 0 < extra <= left and gain > 0 and (best is None or gain / extra > best[0]):
                    best = (gain / extra, path, other, extra)
        if best is None:
            return chosen
        _, path, fmt, extra = best
        chosen[path] = fmt
        left -= extra
