"""The arrays of a module by their dotted names."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten


def flatten(tree: Any) -> dict[str, mx.array]:
    """Flatten a tree of arrays, such as `module.parameters()`, to {dotted name: array}."""
    return dict(tree_flatten(tree))  # type: ignore[arg-type]  # the stub allows for a mapping, which is not asked for
