"""A hash over every byte of a model's weights."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np


def weights_fingerprint(weights: Mapping[str, mx.array]) -> str:
    """Return a SHA-256 over the names, shapes, dtypes and bytes of weights, in the order of the names.

    The tensors are hashed in parallel, each as one SHA-256 that enters the result. Lazy weights are read.
    """

    def digest(raw: np.ndarray) -> bytes:
        return hashlib.sha256(raw.data).digest()

    result = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pending = []
        for name, array in sorted(weights.items()):
            result.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode("utf-8", "replace"))
            raw = mx.contiguous(array).reshape(-1).view(mx.uint8)
            mx.eval(raw)
            pending.append(pool.submit(digest, np.asarray(raw)))
        for future in pending:
            result.update(future.result())
    return result.hexdigest()
