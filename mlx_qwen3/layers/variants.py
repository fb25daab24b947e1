"""Variants of the same computation whose speed depends on the device; `mlx-qwen3 bench --variants` measures them.

Every variant gives the same results to within rounding. The defaults are those that were fastest where they could be
measured; on a device where nobody measured yet they follow from reading MLX's sources.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from ..errors import InputError


@dataclass(frozen=True)
class Variants:
    """What may be computed in more than one way.

    Args:
        prefill_rope: how consecutive positions are rotated in float16 and bfloat16: "fast" by `mx.fast.rope`, "table"
            by cosines and sines, "compiled" by the same in one compiled function. float32 always uses the table.
        head_norms: "joined" normalizes queries and keys in one kernel, "separate" in two with their own rope each;
            "mixed" is "joined" for one token per row and "separate" for more.
        packed_values: rows of the product with packed values: "group" for the query heads of one key head together,
            "single" for each query head alone, "auto" for "single" where the group has 4 heads or more.
        layers_per_step: layers of a prompt evaluated together, 0 for all at the end; None by tokens and width.
        decode_parts: parts of a decoded token's pass that wait for the same part of the pass before; 1 for none.
        longest_draft: tokens that prompt lookup proposes at once, at most.
        prefill_step_size: tokens of a prompt per pass.
    """

    prefill_rope: str = "fast"
    head_norms: str = "mixed"
    packed_values: str = "group"
    layers_per_step: int | None = None
    decode_parts: int = 1
    longest_draft: int = 16
    prefill_step_size: int = 2048

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}. Choose one of {', '.join(map(repr, allowed))}.")


CHOICES: dict[str, tuple[Any, ...]] = {
    "prefill_rope": ("fast", "table", "compiled"),
    "head_norms": ("joined", "separate", "mixed"),
    "packed_values": ("group", "single", "auto"),
}

DEFAULTS = {
    "metal": Variants(packed_values="auto", decode_parts=2),
    "cuda": Variants(prefill_step_size=4096, decode_parts=2),
    "cpu": Variants(layers_per_step=0, longest_draft=6),
}
"""Device -> what is used there.

metal: not measured. Its vector kernels end at 4 rows, and its command buffers keep the cache in use, as CUDA's do.
cuda: measured on an H100 (benchmarks/RESULTS.md). cpu: MLX keeps few operations in flight there, so that pipelining
saves no memory; the time of a pass grows with its tokens, so that long drafts cost.
"""

_override: Variants | None = None


def device_kind() -> str:
    """Return "metal", "cuda" or "cpu": the backend of the default device."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "cuda" if mx.cuda.is_available() else "metal"


def variants() -> Variants:
    """Return the variants in use: the default device's, unless `using` replaced them."""
    return _override or DEFAULTS[device_kind()]


@contextmanager
def using(**changes: Any) -> Iterator[Variants]:
    """Replace some variants for a block of code, in all threads.

    Raises:
        InputError: a value that no variant has.
    """
    global _override
    before = _override
    _override = replace(variants(), **changes)
    try:
        yield _override
    finally:
        _override = before
