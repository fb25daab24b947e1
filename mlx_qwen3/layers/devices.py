"""The default device: its kind, the fastest variants of each computation on it, and the streams of threads.

Variants are implementations of the same computation with the same results up to rounding. The defaults are the fastest
measured ones; for devices without measurements they follow from MLX's sources. `mlx-qwen3 bench --variants` times them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from ..errors import InputError


@dataclass(frozen=True)
class Variants:
    """The choice of implementation per computation.

    Args:
        prefill_rope: how consecutive positions, and positions of their own per row, are rotated in float16 and
            bfloat16: "fast" by `mx.fast.rope`, "table" by cosines and sines, "compiled" by the same in one compiled
            function. float32 always uses the table.
        decode_rope: how a single position of all rows is rotated in float16 and bfloat16: by `mx.fast.rope` with an
            "angle" per frequency, which the host computes for each token, or with the "position" and the frequencies.
            With an attention factor, "angle" uses cosines and sines.
        head_norms: "joined" normalizes queries and keys in one kernel, "separate" in two with their own rope each;
            "mixed" is "joined" for one token per row and "separate" for more.
        packed_values: rows of the product with packed values: "group" for the query heads of one key head together,
            "single" for each query head alone, "auto" for "single" where the group has 4 heads or more.
        unpacked_work: rows of activations times width from which packed weights are dequantized before a product in
            float16 or bfloat16; 0 for never. Single rows, float32, plain models (tasks, adapters) and output heads
            always read the packed weights.
        layers_per_step: layers of a prompt evaluated together, 0.5 for the attention and the MLP of each one after
            the other, 0 for all at the end; None to choose by tokens and width.
        decode_parts: parts of a decoded token's pass that wait for the same part of the previous pass; 1 for none.
        longest_draft: maximum tokens that prompt lookup proposes at once.
        prefill_step_size: tokens of a prompt per pass.
    """

    prefill_rope: str = "fast"
    decode_rope: str = "angle"
    head_norms: str = "mixed"
    packed_values: str = "group"
    unpacked_work: int = 0
    layers_per_step: float | None = None
    decode_parts: int = 1
    longest_draft: int = 16
    prefill_step_size: int = 2048

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}. Choose one of {', '.join(map(repr, allowed))}.")


CHOICES: dict[str, tuple[Any, ...]] = {
    "prefill_rope": ("fast", "table", "compiled"),
    "decode_rope": ("angle", "position"),
    "head_norms": ("joined", "separate", "mixed"),
    "packed_values": ("group", "single", "auto"),
}

DEFAULTS = {
    "metal": Variants(packed_values="auto", decode_parts=2),
    "cuda": Variants(decode_rope="position", unpacked_work=1 << 20, prefill_step_size=4096, decode_parts=2),
    "cpu": Variants(unpacked_work=1, layers_per_step=0, longest_draft=6),
}
"""The variants per device.

metal: not measured. Its vector kernels support up to 4 rows, and its command buffers hold the cache, as on CUDA.
cuda: measured on an H100 (RESULTS.md and NOTES.md in benchmarks/). cpu: MLX keeps few operations in flight, so
pipelining saves no memory; the time of a pass grows with its tokens, which makes long drafts expensive. Its packed
products in 16-bit dtypes take 4 to 20 times as long as dequantizing the weights and multiplying (2 to 128 rows).
"""

_override: Variants | None = None


def on_cuda() -> bool:
    """Return whether the default device is an NVIDIA GPU."""
    return mx.cuda.is_available() and mx.default_device().type == mx.DeviceType.gpu


def device_kind() -> str:
    """Return "metal", "cuda" or "cpu": the backend of the default device."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "cuda" if on_cuda() else "metal"


def variants() -> Variants:
    """Return the variants in use: the device's defaults, unless overridden by `using`."""
    return _override or DEFAULTS[device_kind()]


@contextmanager
def using(**changes: Any) -> Iterator[Variants]:
    """Override some variants within a block of code, in all threads.

    Raises:
        InputError: an invalid value.
    """
    global _override
    before = _override
    _override = replace(variants(), **changes)
    try:
        yield _override
    finally:
        _override = before


_thread = threading.local()


class _Streams:
    """Clear the streams of the thread that drops this object, which is the one that created it.

    MLX creates streams per thread, each with a worker thread on a CPU. A thread that ends without `mx.clear_streams()`
    leaves them running, and the process aborts at exit ("terminate called without an active exception", code 134).
    """

    def __init__(self) -> None:
        self._clear = mx.clear_streams

    def __del__(self) -> None:
        self._clear()


def release_streams_at_thread_end() -> None:
    """Make the calling thread clear its MLX streams when it ends; the main thread keeps its own."""
    if getattr(_thread, "streams", None) is None and threading.current_thread() is not threading.main_thread():
        _thread.streams = _Streams()
