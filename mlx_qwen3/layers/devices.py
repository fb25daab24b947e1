"""Queries of the default device."""

import mlx.core as mx


def on_cuda() -> bool:
    """Return whether the default device is an NVIDIA GPU."""
    return mx.cuda.is_available() and mx.default_device().type == mx.DeviceType.gpu
