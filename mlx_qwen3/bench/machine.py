"""The machine that a figure was measured on: chip, GPU cores, memory, system, power state and versions."""

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass

import mlx.core as mx

from ..memory import gpu_info

BANDWIDTHS: dict[str, tuple[float, ...]] = {
    "Apple M1": (68,),
    "Apple M1 Pro": (200,),
    "Apple M1 Max": (400,),
    "Apple M1 Ultra": (800,),
    "Apple M2": (100,),
    "Apple M2 Pro": (200,),
    "Apple M2 Max": (400,),
    "Apple M2 Ultra": (800,),
    "Apple M3": (100,),
    "Apple M3 Pro": (150,),
    "Apple M3 Max": (300, 400),
    "Apple M3 Ultra": (819,),
    "Apple M4": (120,),
    "Apple M4 Pro": (273,),
    "Apple M4 Max": (410, 546),
    "Apple M5": (153,),
    "Apple M5 Pro": (307,),
    "Apple M5 Max": (614,),
    "NVIDIA H100 80GB HBM3": (3350,),
    "NVIDIA H200": (4800,),
}
"""Peak memory bandwidth in 1e9 bytes/s; two where a chip is sold with two. Sources: Apple's specification pages as
collected by llmcheck.net (M5 Pro and Max: news.ycombinator.com/item?id=47296378); NVIDIA's datasheets."""

LARGER_GPU = {"Apple M3 Max": 40, "Apple M4 Max": 40}
"""GPU cores of the variant with the larger bandwidth, for chips that are sold with two."""


@dataclass(frozen=True)
class Machine:
    """What a figure depends on.

    Args:
        chip: as the system names it. device: "Metal", "CUDA" or "CPU".
        bandwidths: peaks in 1e9 bytes/s, empty where they are not known.
        gpu_cores: of a Mac's GPU. memory, working_set: bytes of the machine, and what a GPU may use of them.
        power: "AC Power" or "Battery Power", and low power mode, as a Mac names them.
    """

    chip: str
    system: str
    device: str
    mlx_version: str
    mlx_lm_version: str | None
    python_version: str
    bandwidths: tuple[float, ...] = ()
    gpu_cores: int | None = None
    memory: int | None = None
    working_set: int | None = None
    power: str = ""

    def __str__(self) -> str:
        parts = [self.chip]
        parts += [f"{self.gpu_cores} GPU cores"] if self.gpu_cores else []
        parts += [f"{self.memory / 2**30:.0f} GiB"] if self.memory else []
        parts += [f"working set {self.working_set / 1e9:.1f} GB"] if self.working_set else []
        parts += [self.system, self.device]
        return ", ".join([*parts, *([self.power] if self.power else [])])


def this_machine(device: mx.Device) -> Machine:
    """Return what is known of this machine, seen from an MLX device."""
    on_gpu = device.type == mx.DeviceType.gpu
    chip, cores = _chip(device), gpu_cores()
    backend = "CPU"
    if on_gpu:
        backend = "Metal" if mx.metal.is_available() else "CUDA"
    info = gpu_info() if on_gpu else {}
    return Machine(
        chip=chip,
        system=_system(),
        device=backend,
        mlx_version=installed_version("mlx") or "",
        mlx_lm_version=installed_version("mlx-lm"),
        python_version=platform.python_version(),
        # a CPU shares the memory but does not reach the bandwidth that the vendor names
        bandwidths=bandwidths(chip, cores) if on_gpu else (),
        gpu_cores=cores,
        memory=_physical_memory(),
        working_set=info.get("max_recommended_working_set_size") or info.get("total_memory"),
        power=power_state(),
    )


def bandwidths(chip: str, cores: int | None) -> tuple[float, ...]:
    """Return the peak bandwidths that a chip may have: one where its GPU cores tell which variant it is."""
    known = BANDWIDTHS.get(chip, ())
    if len(known) == 2 and cores:
        return (max(known),) if cores >= LARGER_GPU[chip] else (min(known),)
    return known


def gpu_cores() -> int | None:
    """Return the number of cores of a Mac's GPU, or None."""
    if platform.system() != "Darwin":
        return None
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', _output("/usr/sbin/ioreg", "-rc", "IOAccelerator", "-d", "1"))
    if found is None:
        found = re.search(r"Total Number of Cores:\s*(\d+)", _output("/usr/sbin/system_profiler", "SPDisplaysDataType"))
    return int(found[1]) if found else None


def power_state() -> str:
    """Return what a Mac draws power from, and whether it is in low power mode; "" elsewhere."""
    if platform.system() != "Darwin":
        return ""
    source = re.search(r"drawing from '([^']+)'", _output("/usr/bin/pmset", "-g", "batt"))
    low = re.search(r"lowpowermode\s+1", _output("/usr/bin/pmset", "-g"))
    return f"{source[1] if source else 'power source unknown'}{', low power mode' if low else ''}"


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _chip(device: mx.Device) -> str:
    if platform.system() == "Darwin":
        named = _output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string").strip()
        if named:
            return named
    return str(mx.device_info(device).get("device_name") or platform.processor() or platform.machine())


def _system() -> str:
    system = f"macOS {platform.mac_ver()[0]}" if platform.system() == "Darwin" else platform.system()
    return f"{system} {platform.machine()}"


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
