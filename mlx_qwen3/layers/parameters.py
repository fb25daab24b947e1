"""The arrays of a module."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def flatten(tree: Any) -> dict[str, mx.array]:
    """Flatten a tree of arrays, such as `module.parameters()`, to {dotted name: array}."""
    return dict(tree_flatten(tree))  # type: ignore[arg-type]  # the stub allows for a mapping, which is not asked for


def evaluate_arrays(model: nn.Module) -> None:
    """Evaluate every array of a model, one at a time, so that any thread may use them.

    Peak memory exceeds the size of the model by at most the largest stored tensor.
    """
    for module in model.modules():
        for value in [*module.values(), *vars(module).values()]:
            if isinstance(value, mx.array):
                mx.eval(value)
    mx.clear_cache()


class Identity:
    """Tells whether an array is the given one; in a copy of the module that holds both, whether it is its copy."""

    def __init__(self, array: mx.array):
        self.array = array

    def __call__(self, array: object) -> bool:
        return array is self.array
