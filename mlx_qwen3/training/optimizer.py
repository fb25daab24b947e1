"""AdamW on a flat dictionary of parameters, gradient clipping, and the learning-rate schedule.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (https://arxiv.org/abs/1711.05101), as in torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import mlx.core as mx

Parameters = dict[str, mx.array]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass
class AdamW:
    """The AdamW optimizer, with float32 moments.

    Attributes:
        weight_decay: weight decay of matrices; not applied to biases, norms and magnitudes.
        max_norm: the gradient's norm is clipped to this value; 0 for no clipping.
        first, second: moments of every parameter.
    """

    weight_decay: float = 0.01
    max_norm: float = 1.0
    first: Parameters = field(default_factory=dict)
    second: Parameters = field(default_factory=dict)

    def prepare(self, parameters: Parameters) -> None:
        """Initialize all moments with zeros."""
        self.first = {name: mx.zeros(array.shape, dtype=mx.float32) for name, array in parameters.items()}
        self.second = {name: mx.zeros(array.shape, dtype=mx.float32) for name, array in parameters.items()}

    def update(
        self,
        parameters: Parameters,
        first: Parameters,
        second: Parameters,
        gradients: Parameters,
        scale: mx.array,
        rate: mx.array,
        step: mx.array,
    ) -> tuple[Parameters, Parameters, Parameters, mx.array]:
        """Return the next parameters and moments, and the norm of the scaled gradient before clipping.

        A pure function of its arguments, so that it can be compiled.

        Args:
            scale: factor of the summed gradients: 1 / sum of the weights.
            rate: learning rate.
            step: number of the step, from 1.
        """
        squares = [mx.sum(mx.square(g.astype(mx.float32))) for g in gradients.values()]
        norm = mx.sqrt(sum(squares, start=mx.array(0.0))) * scale
        if self.max_norm:
            scale = scale * mx.minimum(1.0, self.max_norm / (norm + 1e-6))
        first_correction, second_correction = 1 - mx.power(BETA1, step), 1 - mx.power(BETA2, step)
        new, new_first, new_second = {}, {}, {}
        for name, value in parameters.items():
            gradient = gradients[name].astype(mx.float32) * scale
            m = BETA1 * first[name] + (1 - BETA1) * gradient
            v = BETA2 * second[name] + (1 - BETA2) * mx.square(gradient)
            change = (m / first_correction) / (mx.sqrt(v / second_correction) + EPSILON)
            decayed = value.astype(mx.float32)
            if self.weight_decay and value.ndim > 1:
                decayed = decayed * (1 - rate * self.weight_decay)
            new[name] = (decayed - rate * change).astype(value.dtype)
            new_first[name], new_second[name] = m, v
        return new, new_first, new_second, norm


def learning_rate(step: int, total: int, peak: float, warmup: int, schedule: str = "cosine") -> float:
    """Return the learning rate of a step, counted from 1: a linear warm-up, then the schedule.

    Args:
        total: number of steps.
        peak: learning rate after the warm-up.
        warmup: number of warm-up steps.
        schedule: "cosine" and "linear" decay to zero; "constant" stays at the peak.
    """
    if step <= warmup:
        return peak * step / max(warmup, 1)
    share = (step - warmup) / max(total - warmup, 1)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - share)
    return peak * 0.5 * (1 + math.cos(math.pi * share))
