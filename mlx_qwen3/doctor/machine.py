"""Checks of the machine: Python, macOS, MLX, GPU, memory, the Hub and its offline cache; each with a remedy."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, WARNING, FAILED = "ok", "warning", "failed"

LEAST_PYTHON = (3, 11)
LEAST_MACOS = 14
LEAST_MEMORY = 4e9
"""Bytes below which only the smallest models fit: Qwen3-0.6B in 4 bits with a cache takes about 1 GB."""

HUB_SECONDS = 5
"""Seconds after which the Hub counts as unreachable."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        name: what was checked. status: "ok", "warning" or "failed".
        detail: what was found. remedy: what to do about it; empty where nothing is wrong.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def check_machine(network: bool = True) -> list[Check]:
    """Run all checks of the machine.

    Args:
        network: whether to ask the Hugging Face Hub for a sign of life.
    """
    checks: list[Callable[[], Check]] = [check_python, check_system, check_mlx, check_gpu, check_memory, check_packages]
    checks += [check_hub] if network else []
    return [check() for check in [*checks, check_cache]]


def check_python() -> Check:
    """Check that Python is new enough and, on a Mac, native."""
    version = platform.python_version()
    detail = f"Python {version}, {platform.machine()}, {sys.executable}"
    native = "Install a native arm64 Python 3.11 or newer (uv, python.org or Homebrew in /opt/homebrew)"
    if sys.version_info[:2] < LEAST_PYTHON:
        return Check("python", FAILED, detail, f"{native}; /usr/bin/python3 is older.")
    if platform.system() == "Darwin" and (platform.machine() != "arm64" or _translated()):
        return Check("python", FAILED, f"{detail}, under Rosetta", f"{native}: MLX has no wheel for Intel Pythons.")
    return Check("python", OK, detail)


def check_system() -> Check:
    """Check that the operating system is one for which MLX has wheels."""
    if platform.system() != "Darwin":
        return Check("system", OK, f"{platform.system()} {platform.release()} {platform.machine()}")
    release = platform.mac_ver()[0]
    detail = f"macOS {release}, {sysctl('machdep.cpu.brand_string') or 'unknown chip'}"
    if int(release.split(".")[0] or 0) < LEAST_MACOS:
        return Check("system", FAILED, detail, f"Update to macOS {LEAST_MACOS} or newer: MLX needs its Metal.")
    return Check("system", OK, detail)


def check_mlx() -> Check:
    """Check that MLX can be imported."""
    try:
        importlib.import_module("mlx.core")
    except ImportError as error:
        reason = " ".join(str(error).split())
        return Check("mlx", FAILED, f"cannot be imported: {reason}", "Run pip install --force-reinstall mlx-qwen3.")
    return Check("mlx", OK, f"MLX {installed('mlx')}")


def check_gpu() -> Check:
    """Check that MLX sees a GPU, and that it is the default device."""
    mx = _mlx()
    if mx is None:
        return Check("gpu", FAILED, "not known without MLX", "Repair MLX first.")
    backend = "Metal" if mx.metal.is_available() else "CUDA" if mx.cuda.is_available() else ""
    if not backend:
        remedy = "Computing on the CPU works, and is slow."
        if platform.system() == "Darwin":
            return Check("gpu", FAILED, "no Metal device", f"Use a Mac with Apple Silicon. {remedy}")
        return Check("gpu", WARNING, "no GPU that MLX can use", remedy)
    name = mx.device_info(mx.Device(mx.gpu, 0)).get("device_name", "GPU")
    if mx.default_device().type == mx.DeviceType.cpu:
        return Check("gpu", WARNING, f"{name} ({backend}), but the default device is the CPU", "Pass --device gpu.")
    return Check("gpu", OK, f"{name} ({backend})")


def check_memory() -> Check:
    """Check how much memory models may use."""
    if _mlx() is None:
        return Check("memory", FAILED, "not known without MLX", "Repair MLX first.")
    from ..memory import gpu_info, machine_memory

    memory, info = machine_memory(), gpu_info()
    detail = f"{memory / 1e9:.1f} GB for models"
    if info.get("max_buffer_length"):
        detail += f", largest array {int(info['max_buffer_length']) / 1e9:.1f} GB"
    if memory < LEAST_MEMORY:
        return Check("memory", WARNING, detail, "Take Qwen3-0.6B in 4 bits, and close other programs.")
    return Check("memory", OK, detail)


def check_packages() -> Check:
    """Check that the packages that the product needs are installed."""
    needed = ("mlx-lm", "tokenizers", "safetensors", "huggingface_hub", "numpy")
    missing = [name for name in needed if installed(name) is None]
    found = ", ".join(f"{name} {installed(name)}" for name in needed if name not in missing)
    if missing:
        return Check("packages", FAILED, f"{found}; missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", OK, found)


def check_hub() -> Check:
    """Check that the Hugging Face Hub answers, or that it is switched off on purpose."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check("hub", OK, "offline by HF_HUB_OFFLINE: only models in the cache are found")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        answered = _reach(address)
    except (OSError, ValueError) as error:
        remedy = "Check the network and HTTPS_PROXY; cached models and local folders work without it."
        return Check("hub", WARNING, f"{address} cannot be reached ({error})", remedy)
    return Check("hub", OK, f"{address} answered {answered}")


def check_cache() -> Check:
    """Check the folder where downloaded models are kept: what it holds, and the free space on its disk."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    models = sorted(folder.glob("models--*Qwen3*")) if folder.is_dir() else []
    disk = folder
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free / 1e9
    detail = f"{folder}: {len(models)} Qwen3 models, {free:.1f} GB free"
    if free < 2:
        return Check("cache", WARNING, detail, "Free some space, or set HF_HOME to a folder on another disk.")
    if folder.exists() and not os.access(folder, os.W_OK):
        return Check("cache", FAILED, f"{detail}, not writable", "Set HF_HOME to a folder that you may write.")
    return Check("cache", OK, detail)


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sysctl(name: str) -> str:
    """Return a value of macOS's sysctl, or "" where there is none."""
    try:
        found = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip()


def _translated() -> bool:
    return sysctl("sysctl.proc_translated") == "1"


def _mlx() -> Any:
    try:
        return importlib.import_module("mlx.core")
    except ImportError:
        return None


def _reach(address: str) -> int:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:  # it answers, whatever it says
        return error.code
