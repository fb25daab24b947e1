"""A module's arrays by their dotted names."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten


def flat(tree: Any) -> dict[str, mx.array]:
    """Return a tree of arrays, such as `module.parameters()`, as {dotted name: array}."""
    return dict(tree_flatten(tree))  # type: ignore[arg-type]  # the stub allows for a mapping, which is not asked for
