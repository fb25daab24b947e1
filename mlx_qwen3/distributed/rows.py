"""Distribute rows of data over the ranks, and gather their results."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError, MlxQwen3Error
from .group import Group, gather_bytes, send_bytes

ROWS_AT_ONCE = 512
"""Rows per broadcast."""


def rows_of_first(rows: Iterable[Any], group: Group) -> Iterator[Any]:
    """Yield rank 0's rows on every rank, so that the others need no copy of the file.

    Args:
        rows: JSON-serializable rows; read lazily, and only on rank 0.

    Raises:
        MlxQwen3Error: on every rank, if reading fails on rank 0.
    """
    own = iter(rows)
    while True:
        chunk: list[Any] = []
        error: MlxQwen3Error | None = None
        if group.rank() == 0:
            try:
                chunk.extend(islice(own, ROWS_AT_ONCE))
            except MlxQwen3Error as caught:
                error = caught
        message = json.dumps({"rows": chunk, "error": None if error is None else str(error)}).encode()
        found = json.loads(send_bytes(message, group))
        yield from found["rows"]
        if found["error"] is not None:
            raise error or InputError(found["error"])
        if len(found["rows"]) < ROWS_AT_ONCE:
            return


def shared_rows(lengths: list[int], group: Group) -> list[int]:
    """Return the indices of this rank's rows. They are assigned by length, so that the ranks have equal work."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return sorted(order[group.rank() :: group.size()])


def gather_rows(own: Mapping[int, Any], count: int, group: Group) -> list[Any]:
    """Gather the results of all rows on every rank, and return them in row order.

    Args:
        own: row index → JSON-serializable result of this rank.
        count: number of rows of all ranks together.
    """
    packed = json.dumps(list(own.items())).encode()
    results: list[Any] = [None] * count
    for content in gather_bytes(packed, group):
        for index, result in json.loads(content):
            results[index] = result
    return results


def to_json(result: Any) -> Any:
    """Convert a result to JSON values; arrays become base64-encoded float32."""
    if isinstance(result, mx.array | np.ndarray):
        array = np.asarray(result, np.float32)
        kind = "mlx" if isinstance(result, mx.array) else "numpy"
        return {"__array__": base64.b64encode(array.tobytes()).decode(), "shape": array.shape, "kind": kind}
    return result


def from_json(result: Any) -> Any:
    """Restore a result from the return value of `to_json`."""
    if not (isinstance(result, dict) and "__array__" in result):
        return result
    array = np.frombuffer(base64.b64decode(result["__array__"]), np.float32).reshape(result["shape"])
    return mx.array(array) if result["kind"] == "mlx" else array.copy()
