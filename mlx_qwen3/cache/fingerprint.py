"""A hash of a model's weights, in which every byte counts."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np


def weights_fingerprint(weights: Mapping[str, mx.array]) -> str:
    """Return a sha256 over the names, shapes, types and all bytes of weights, in the order of the names.

    The tensors are hashed side by side on all cores, each as one sha256 that goes into the result. Weights that were
    not read yet are read.
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
