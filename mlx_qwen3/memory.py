"""Estimate whether a model and its cache fit into memory before loading; wire memory on request."""

import contextlib
import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .cache import cache_bytes
from .checkpoint import open_checkpoint
from .errors import InputError, MemoryFitError
from .layers.devices import variants
from .layers.packed_products import unpacks_first
from .layers.pipelining import layers_per_step

logger = logging.getLogger(__name__)

TIGHT = 0.9
"""Share of the memory above which a fit is reported as tight."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

OUT_OF_MEMORY = ("alloc", "insufficient memory", "outofmemory", "out of memory")
"""Words of MLX's RuntimeError when memory runs out: the CPU and CUDA allocators', and Metal's command buffers'."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory; MLX raises RuntimeError then, never MemoryError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


@dataclass(frozen=True)
class MemoryFit:
    """Bytes required by a model and available on this machine.

    Args:
        weights: bytes in the computing dtype; packed weights as stored.
        cache: bytes for `tokens` tokens.
        memory: bytes of the device or the machine.
        working: bytes of the intermediates of the largest pass over a prompt.
    """

    weights: int
    cache: int
    tokens: int
    memory: int
    working: int = 0

    @property
    def needed(self) -> int:
        """Weights, cache and intermediates."""
        return self.weights + self.cache + self.working

    @property
    def fits(self) -> bool:
        """Whether all of it fits."""
        return self.needed <= self.memory

    @property
    def tight(self) -> bool:
        """Whether more than 90 % of the memory would be in use."""
        return self.needed > TIGHT * self.memory

    def __str__(self) -> str:
        working = f" + intermediates {self.working / 1e9:.2f} GB" if self.working else ""
        return (
            f"weights {self.weights / 1e9:.2f} GB"
            f" + cache for {self.tokens:,} tokens {self.cache / 1e9:.2f} GB{working}"
            f" = {self.needed / 1e9:.2f} GB of {self.memory / 1e9:.1f} GB"
        )


def gpu_info() -> dict[str, Any]:
    """Return MLX's information about the GPU, whatever the default device is; empty without a GPU."""
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        return {}
    return dict(mx.device_info(mx.Device(mx.gpu, 0)))


def machine_memory() -> int:
    """Return the bytes available to a model: a GPU's working set, or the memory of the machine or container."""
    if mx.default_device().type == mx.DeviceType.gpu:
        info = gpu_info()
        for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
            if info.get(name):
                return int(info[name])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CGROUP_LIMIT.is_file():
        limit = CGROUP_LIMIT.read_text().strip()
        if limit.isdigit():
            memory = min(memory, int(limit))
    return memory


def working_bytes(config: Any, tokens: int, itemsize: int, *, step: int | None = None, packed: bool = False) -> int:
    """Estimate the bytes of intermediates alive at once during a pass over a prompt.

    For every layer in flight: the projections of gate and up and their product, the queries, keys and values, the
    output of attention, and packed weights if they are dequantized first. Two steps of layers are in flight, or as
    many as MLX runs ahead if unbounded.

    Args:
        config: the configuration of a decoder. tokens: length of the prompt. itemsize: bytes per number of the
            computing dtype.
        step: tokens per pass; by default that of this device. packed: whether the weights are packed.
    """
    passed = min(tokens, step or variants().prefill_step_size)
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    per_token = 3 * config.intermediate_size + 3 * heads * config.head_dim + 4 * config.hidden_size
    layers = 2 * layers_per_step(passed, config.hidden_size) or UNBOUNDED_LAYERS
    numbers = passed * per_token
    computed = mx.float16 if itemsize < 4 else mx.float32
    if packed and unpacks_first(passed, config.hidden_size, computed):
        projected = (heads + config.num_attention_heads) * config.head_dim + 3 * config.intermediate_size
        numbers += projected * config.hidden_size
    return int(min(layers, config.num_hidden_layers) * numbers * itemsize)


UNBOUNDED_LAYERS = 2
"""Layers whose intermediates are alive if a pass is one graph: on a CPU, MLX keeps ten operations in flight."""


def estimate_fit(
    folder: str | Path,
    config: Any,
    tokens: int,
    *,
    dtype: mx.Dtype | str | None = None,
    processes: int = 1,
    **cache_options: Any,
) -> MemoryFit:
    """Estimate the memory of a checkpoint with a cache of `tokens` tokens; only headers are read.

    Args:
        dtype: the computing dtype; by default that of `from_pretrained` on this device.
        processes: how many divide the model; the result is what one of them needs.
        cache_options: `max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`.
    """
    from .models.pretrained import computing_dtype

    computed = computing_dtype(dtype, config.dtype)
    checkpoint = open_checkpoint(folder)
    weights = 0
    for name in checkpoint.names:
        count = 1
        for size in checkpoint.shape(name):
            count *= size
        stored = checkpoint.dtype(name)
        # packed codes are kept; floats are cast to the computing dtype
        size = count * (computed.size if mx.issubdtype(stored, mx.floating) else stored.size)
        weights += size // processes if len(checkpoint.shape(name)) > 1 else size
    name = str(computed).rpartition(".")[2]
    cache = cache_bytes(config, tokens, dtype=name, **cache_options)
    packed = any(checkpoint.dtype(name) == mx.uint32 for name in checkpoint.names)
    working = working_bytes(config, tokens, computed.size, packed=packed)
    return MemoryFit(
        weights, cache // min(processes, config.num_key_value_heads), tokens, machine_memory(), working // processes
    )


def check_fit(fit: MemoryFit, source: str, *, force: bool = False) -> None:
    """Log a warning for a fit above 90 % of the memory, and raise if the model does not fit.

    Args:
        source: name of the model in messages.
        force: warn instead of raising.

    Raises:
        MemoryFitError: the model does not fit; the message has the numbers and the next step.
    """
    if fit.fits:
        if fit.tight:
            logger.warning("%s barely fits: %s", source, fit)
        return
    if force:
        logger.warning("%s does not fit and may end the process or make the machine slow: %s", source, fit)
        return
    if fit.weights > fit.memory:
        advice = "Take a smaller model, or convert it to 4 bits"
    else:
        per_token = fit.cache / max(fit.tokens, 1)
        room = int((TIGHT * fit.memory - fit.weights - fit.working) / per_token) if per_token else 0
        advice = f"Try {f'--max-kv-size {room}' if room >= 256 else 'a smaller model'}, or --kv-bits 8"
    raise MemoryFitError(f"{source} does not fit: {fit}. {advice}; --force loads it anyway.")


def wire_memory(gigabytes: float | None) -> None:
    """Let MLX keep up to this much memory wired, so that macOS does not page it out. Nothing is wired by default.

    Args:
        gigabytes: limit; None for the device's recommendation.

    Raises:
        InputError: no Metal device, or more than the device recommends.
    """
    if not mx.metal.is_available():
        raise InputError("--wired-limit requires a Metal device. Omit it on this machine.")
    limit = int(gpu_info()["max_recommended_working_set_size"])
    wanted = limit if gigabytes is None else int(gigabytes * 1e9)
    if not 0 < wanted <= limit:
        raise InputError(f"cannot wire {gigabytes} GB. Give more than 0 and at most {limit / 1e9:.1f} GB.")
    mx.set_wired_limit(wanted)


def release_memory() -> None:
    """Return freed memory to the system: MLX's cached buffers and, with glibc, the free blocks of the heap.

    glibc keeps the blocks of all threads; without this a server on a CPU grew from 138 to 283 MB in 500 requests.
    """
    mx.clear_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
