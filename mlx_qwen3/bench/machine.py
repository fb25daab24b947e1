"""Describe the machine of a benchmark: chip, GPU cores, memory, operating system, power state and versions."""

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
"""Peak memory bandwidth in 1e9 bytes/s; two values for chips that are sold in two variants.

Sources: Apple's specification pages as collected by llmcheck.net (M5 Pro and Max:
news.ycombinator.com/item?id=47296378); NVIDIA's datasheets.
"""

LARGER_GPU = {"Apple M3 Max": 40, "Apple M4 Max": 40}
"""Number of GPU cores of the variant with the larger bandwidth, for chips that are sold in two variants."""


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that affect speed.

    Args:
        chip: name reported by the operating system.
        device: "Metal", "CUDA" or "CPU".
        bandwidths: possible peak memory bandwidths in 1e9 bytes/s; empty if unknown.
        gpu_cores: number of GPU cores; None except on a Mac.
        memory: physical memory in bytes.
        working_set: bytes of it that the GPU may use.
        power: "AC Power" or "Battery Power", and "low power mode" if active; "" except on a Mac.
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
    """Return a description of this machine with `device` as the device that computes."""
    on_gpu = device.type == mx.DeviceType.gpu
    chip, cores = _get_chip_name(device), gpu_cores()
    backend = "CPU"
    if on_gpu:
        backend = "Metal" if mx.metal.is_available() else "CUDA"
    info = gpu_info() if on_gpu else {}
    return Machine(
        chip=chip,
        system=_describe_system(),
        device=backend,
        mlx_version=installed_version("mlx") or "",
        mlx_lm_version=installed_version("mlx-lm"),
        python_version=platform.python_version(),
        # the published bandwidth is that of the GPU; a CPU does not reach it
        bandwidths=bandwidths(chip, cores) if on_gpu else (),
        gpu_cores=cores,
        memory=_get_physical_memory(),
        working_set=info.get("max_recommended_working_set_size") or info.get("total_memory"),
        power=power_state(),
    )


def bandwidths(chip: str, cores: int | None) -> tuple[float, ...]:
    """Return the possible peak bandwidths of a chip in 1e9 bytes/s; a single one if `cores` identifies the variant."""
    known = BANDWIDTHS.get(chip, ())
    if len(known) == 2 and cores:
        return (max(known),) if cores >= LARGER_GPU[chip] else (min(known),)
    return known


def gpu_cores() -> int | None:
    """Return the number of GPU cores of a Mac, or None on other systems."""
    if platform.system() != "Darwin":
        return None
    found = re.search(
        r'"gpu-core-count"\s*=\s*(\d+)', _run_command("/usr/sbin/ioreg", "-rc", "IOAccelerator", "-d", "1")
    )
    if found is None:
        found = re.search(
            r"Total Number of Cores:\s*(\d+)", _run_command("/usr/sbin/system_profiler", "SPDisplaysDataType")
        )
    return int(found[1]) if found else None


def power_state() -> str:
    """Return the power source of a Mac, and whether low power mode is active; "" on other systems."""
    if platform.system() != "Darwin":
        return ""
    source = re.search(r"drawing from '([^']+)'", _run_command("/usr/bin/pmset", "-g", "batt"))
    low = re.search(r"lowpowermode\s+1", _run_command("/usr/bin/pmset", "-g"))
    return f"{source[1] if source else 'power source unknown'}{', low power mode' if low else ''}"


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _get_chip_name(device: mx.Device) -> str:
    if platform.system() == "Darwin":
        named = _run_command("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string").strip()
        if named:
            return named
    return str(mx.device_info(device).get("device_name") or platform.processor() or platform.machine())


def _describe_system() -> str:
    system = f"macOS {platform.mac_ver()[0]}" if platform.system() == "Darwin" else platform.system()
    return f"{system} {platform.machine()}"


def _get_physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _run_command(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
