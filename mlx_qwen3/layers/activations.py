"""The activations named by `hidden_act`, with the reference's formulas.

Source: transformers 5.23 `activations.py` (ACT2FN).
"""

import math
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError

Activation = Callable[[mx.array], mx.array]


def gelu_tanh(x: mx.array) -> mx.array:
    """Return the tanh approximation of GELU: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_clipped(x: mx.array) -> mx.array:
    """Return GELU clipped to [-10, 10]."""
    return mx.clip(nn.gelu(x), -10, 10)


def laplace(x: mx.array, mu: float = 0.707107, sigma: float = 0.282095) -> mx.array:
    """Return Mega's Laplace attention function, 0.5·(1 + erf((x − μ)/(σ√2)))."""
    return 0.5 * (1 + mx.erf((x - mu) / (sigma * math.sqrt(2.0))))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": nn.gelu,
    "gelu_10": gelu_clipped,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": nn.gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": lambda x: x * mx.clip(x + 3, 0, 6) / 6,
    "laplace": laplace,
    "leaky_relu": lambda x: mx.maximum(x, 0.01 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * mx.tanh(mx.logaddexp(x, mx.zeros_like(x))),
    "quick_gelu": lambda x: x * mx.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu2": lambda x: mx.square(nn.relu(x)),
    "relu6": lambda x: mx.clip(x, 0, 6),
    "sigmoid": mx.sigmoid,
    "silu": nn.silu,
    "sqrtsoftplus": lambda x: mx.sqrt(mx.logaddexp(x, mx.zeros_like(x))),
    "swish": nn.silu,
    "tanh": mx.tanh,
}


def activation(name_or_function: Any) -> Activation:
    """Return the function that `hidden_act` names; a function is returned unchanged.

    Raises:
        ConfigError: an unknown name, or one with trained parameters (prelu, xielu).
    """
    if not isinstance(name_or_function, str) and callable(name_or_function):
        return cast(Activation, name_or_function)
    if name_or_function not in ACTIVATIONS:
        raise ConfigError(
            f"config field 'hidden_act' is {name_or_function!r}, expected a function or one of "
            f"{', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name_or_function]
