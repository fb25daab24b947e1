"""Where MLX computes: its CUDA backend has its own costs and its own gaps."""

import mlx.core as mx


def on_cuda() -> bool:
    """Return whether the default device is an NVIDIA GPU."""
    return mx.cuda.is_available() and mx.default_device().type == mx.DeviceType.gpu
