"""The machine that a figure was measured on: chip, system, versions, and the memory bandwidth its maker names."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass

import mlx.core as mx

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
    "NVIDIA H200": (4800,),
}
"""Peak memory bandwidth in 1e9 bytes/s; two where a chip is sold with two. Sources: Apple's specification pages as
collected by llmcheck.net (M5 Pro and Max: news.ycombinator.com/item?id=47296378); NVIDIA's H200 datasheet."""


@dataclass(frozen=True)
class Machine:
    """chip: as the system names it. bandwidths: peaks in 1e9 bytes/s, empty where nobody told."""

    chip: str
    system: str
    device: str
    mlx_version: str
    mlx_lm_version: str | None
    python_version: str
    bandwidths: tuple[float, ...] = ()


def this_machine(device: mx.Device) -> Machine:
    """What is known of this machine, seen from an MLX device."""
    on_gpu = device.type == mx.DeviceType.gpu
    chip = _chip(device)
    system = f"macOS {platform.mac_ver()[0]}" if platform.system() == "Darwin" else platform.system()
    backend = "CPU"
    if on_gpu:
        backend = "Metal" if mx.metal.is_available() else "CUDA"
    return Machine(
        chip=chip,
        system=f"{system} {platform.machine()}",
        device=backend,
        mlx_version=installed_version("mlx") or "",
        mlx_lm_version=installed_version("mlx-lm"),
        python_version=platform.python_version(),
        # a CPU shares the memory but does not reach the bandwidth that the maker names
        bandwidths=BANDWIDTHS.get(chip, ()) if on_gpu else (),
    )


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _chip(device: mx.Device) -> str:
    if platform.system() == "Darwin":
        named = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if named.stdout.strip():
            return named.stdout.strip()
    return str(mx.device_info(device).get("device_name") or platform.processor() or platform.machine())
