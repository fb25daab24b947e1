"""AdamW over a flat dictionary of parameters, gradient clipping, and the learning-rate schedule.

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
    """The moments of every parameter, in float32.

    Attributes:
        weight_decay: of matrices; biases, norms and magnitudes do not decay.
        max_norm: the gradient's norm is clipped to this; 0 for no limit.
    """

    weight_decay: float = 0.01
    max_norm: float = 1.0
    first: Parameters = field(default_factory=dict)
    second: Parameters = field(default_factory=dict)

    def prepare(self, parameters: Parameters) -> None:
        """Start all moments at zero."""
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
            scale: what summed gradients are multiplied with: one over what counts.
            rate: the learning rate. step: from 1 on.
        """
        squares = [mx.sum(mx.square(g.astype(mx.float32))) for g in gradients.values()]
        norm = mx.sqrt(sum(squares, start=mx.array(0.0))) * scale
        if self.max_norm:
            scale = scale * mx.minimum(1.0, self.max_norm / (norm + 1e-6))
        correction1, correction2 = 1 - mx.power(BETA1, step), 1 - mx.power(BETA2, step)
        new, new_first, new_second = {}, {}, {}
        for name, value in parameters.items():
            gradient = gradients[name].astype(mx.float32) * scale
            m = BETA1 * first[name] + (1 - BETA1) * gradient
            v = BETA2 * second[name] + (1 - BETA2) * mx.square(gradient)
            change = (m / correction1) / (mx.sqrt(v / correction2) + EPSILON)
            held = value.astype(mx.float32)
            if self.weight_decay and value.ndim > 1:
                held = held * (1 - rate * self.weight_decay)
            new[name] = (held - rate * change).astype(value.dtype)
            new_first[name], new_second[name] = m, v
        return new, new_first, new_second, norm


def learning_rate(step: int, total: int, peak: float, warmup: int, schedule: str = "cosine") -> float:
    """Return the rate of a step from 1 on: it rises linearly for `warmup` steps, then follows half a cosine to zero.

    Args:
        schedule: "cosine", "linear" or "constant".
    """
    if step <= warmup:
        return peak * step / max(warmup, 1)
    share = (step - warmup) / max(total - warmup, 1)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - share)
    return peak * 0.5 * (1 + math.cos(math.pi * share))
