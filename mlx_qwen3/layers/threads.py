"""Release the MLX streams of a thread when it ends.

MLX creates streams per thread, each with a worker thread on a CPU. A thread that ends without `mx.clear_streams()`
leaves them running, and the process aborts at exit ("terminate called without an active exception", code 134).
"""

import threading

import mlx.core as mx

_thread = threading.local()


class _Streams:
    """Clear the streams of the thread that drops this object, which is the one that created it."""

    def __init__(self) -> None:
        self._clear = mx.clear_streams

    def __del__(self) -> None:
        self._clear()


def release_streams_at_thread_end() -> None:
    """Make the calling thread clear its MLX streams when it ends; the main thread keeps its own."""
    if getattr(_thread, "streams", None) is None and threading.current_thread() is not threading.main_thread():
        _thread.streams = _Streams()
