"""Whether a model and its cache fit into this machine, said before anything is loaded. Wiring memory is opt-in."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .cache import cache_bytes
from .checkpoint import open_checkpoint
from .errors import InputError, MemoryFitError

logger = logging.getLogger(__name__)

TIGHT = 0.9
"""The share of the memory above which a fit is called tight."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class MemoryFit:
    """Bytes that a model needs and bytes that there are.

    weights: in the computing dtype; packed ones as they are.
    cache: of `tokens` tokens.
    memory: what the device or the machine has.
    """

    weights: int
    cache: int
    tokens: int
    memory: int

    @property
    def needed(self) -> int:
        """Weights and cache."""
        return self.weights + self.cache

    @property
    def fits(self) -> bool:
        """Whether all of it fits."""
        return self.needed <= self.memory

    @property
    def tight(self) -> bool:
        """Whether little or nothing would be left."""
        return self.needed > TIGHT * self.memory

    def __str__(self) -> str:
        return (
            f"weights {self.weights / 1e9:.2f} GB + cache for {self.tokens:,} tokens {self.cache / 1e9:.2f} GB "
            f"= {self.needed / 1e9:.2f} GB of {self.memory / 1e9:.1f} GB"
        )


def machine_memory() -> int:
    """Bytes that a model may use here: a GPU's working set, or the machine's memory within the container's limit."""
    if mx.default_device().type == mx.DeviceType.gpu:
        info: dict[str, Any] = mx.device_info()
        for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
            if info.get(name):
                return int(info[name])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CGROUP_LIMIT.is_file():
        limit = CGROUP_LIMIT.read_text().strip()
        if limit.isdigit():
            memory = min(memory, int(limit))
    return memory


def estimate_fit(
    folder: str | Path, config: Any, tokens: int, *, dtype: mx.Dtype | str | None = None, **cache_options: Any
) -> MemoryFit:
    """What a checkpoint needs with a cache of `tokens` tokens; only headers are read.

    Args:
        dtype: what it will be computed in; by default what `from_pretrained` takes on this device.
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
        # packed codes stay as they are; numbers are brought to the computing dtype
        weights += count * (computed.size if mx.issubdtype(stored, mx.floating) else stored.size)
    name = str(computed).rpartition(".")[2]
    return MemoryFit(weights, cache_bytes(config, tokens, dtype=name, **cache_options), tokens, machine_memory())


def check_fit(fit: MemoryFit, source: str) -> None:
    """Logs a warning for a tight fit.

    Raises:
        MemoryFitError: it does not fit; the message has the numbers and says what would.
    """
    if fit.weights > fit.memory:
        raise MemoryFitError(f"{source} does not fit: {fit}; take a smaller model, or convert it to 4 bits")
    if not fit.fits:
        per_token = fit.cache / max(fit.tokens, 1)
        room = int((TIGHT * fit.memory - fit.weights) / per_token)
        hint = f"--max-kv-size {room}" if room >= 256 else "a smaller model"
        raise MemoryFitError(f"{source} does not fit: {fit}; try {hint}, or --kv-bits 8")
    if fit.tight:
        logger.warning("%s barely fits: %s", source, fit)


def wire_memory(gigabytes: float) -> None:
    """Lets MLX keep up to this much memory wired, so that macOS does not page it out. Nothing does so by itself.

    Raises:
        InputError: no Metal device, or more than the device recommends.
    """
    if not mx.metal.is_available():
        raise InputError("wired memory is a matter of Metal, and there is no Metal device here; leave it out")
    limit = int(mx.device_info()["max_recommended_working_set_size"])
    wanted = int(gigabytes * 1e9)
    if not 0 < wanted <= limit:
        raise InputError(f"cannot wire {gigabytes} GB: expected more than 0 and at most {limit / 1e9:.1f} GB")
    mx.set_wired_limit(wanted)
