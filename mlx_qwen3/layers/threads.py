"""Threads that compute with MLX: release their streams when they end.

MLX gives every thread streams of its own, with a worker thread behind each on a CPU. A thread that ends without
`mx.clear_streams()` leaves them running, and the process then aborts at its exit ("terminate called without an active
exception", code 134).
"""

import threading

import mlx.core as mx

_thread = threading.local()


class _Streams:
    """Clear the streams of the thread that drops this object, which is the thread that made it."""

    def __init__(self) -> None:
        self._clear = mx.clear_streams

    def __del__(self) -> None:
        self._clear()


def release_streams_at_thread_end() -> None:
    """Make the calling thread clear its MLX streams when it ends; the main thread keeps its own."""
    if getattr(_thread, "streams", None) is None and threading.current_thread() is not threading.main_thread():
        _thread.streams = _Streams()
