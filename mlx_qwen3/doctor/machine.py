"""Check the machine: Python, macOS, MLX, GPU, memory, the Hugging Face Hub and its cache; each with a remedy."""

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
"""Bytes below which only the smallest models fit. Qwen3-0.6B in 4 bits needs about 1 GB with its cache."""

HUB_SECONDS = 5
"""Timeout of a request to the Hub in seconds."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        name: name of the check.
        status: "ok", "warning" or "failed".
        detail: the finding.
        remedy: how to repair it; empty if the status is "ok".
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def check_machine(network: bool = True) -> list[Check]:
    """Run all checks of the machine.

    Args:
        network: also check that the Hugging Face Hub is reachable.
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
    if platform.system() == "Darwin" and (platform.machine() != "arm64" or _runs_under_rosetta()):
        return Check("python", FAILED, f"{detail}, under Rosetta", f"{native}: MLX has no wheel for Intel Pythons.")
    return Check("python", OK, detail)


def check_system() -> Check:
    """Check that MLX has wheels for the operating system."""
    if platform.system() != "Darwin":
        return Check("system", OK, f"{platform.system()} {platform.release()} {platform.machine()}")
    release = platform.mac_ver()[0]
    detail = f"macOS {release}, {sysctl('machdep.cpu.brand_string') or 'unknown chip'}"
    if int(release.split(".")[0] or 0) < LEAST_MACOS:
        return Check("system", FAILED, detail, f"Update to macOS {LEAST_MACOS} or newer, which MLX requires.")
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
    mx = _import_mlx()
    if mx is None:
        return Check("gpu", FAILED, "not known without MLX", "Repair MLX first.")
    backend = "Metal" if mx.metal.is_available() else "CUDA" if mx.cuda.is_available() else ""
    if not backend:
        remedy = "Computing on the CPU works, but is slow."
        if platform.system() == "Darwin":
            return Check("gpu", FAILED, "no Metal device", f"Use a Mac with Apple Silicon. {remedy}")
        return Check("gpu", WARNING, "no GPU that MLX can use", remedy)
    name = mx.device_info(mx.Device(mx.gpu, 0)).get("device_name", "GPU")
    if mx.default_device().type == mx.DeviceType.cpu:
        return Check("gpu", WARNING, f"{name} ({backend}), but the default device is the CPU", "Pass --device gpu.")
    return Check("gpu", OK, f"{name} ({backend})")


def check_memory() -> Check:
    """Check how much memory models may use."""
    if _import_mlx() is None:
        return Check("memory", FAILED, "not known without MLX", "Repair MLX first.")
    from ..memory import gpu_info, machine_memory

    memory, info = machine_memory(), gpu_info()
    detail = f"{memory / 1e9:.1f} GB for models"
    if info.get("max_buffer_length"):
        detail += f", largest array {int(info['max_buffer_length']) / 1e9:.1f} GB"
    if memory < LEAST_MEMORY:
        return Check("memory", WARNING, detail, "Use Qwen3-0.6B in 4 bits, and close other programs.")
    return Check("memory", OK, detail)


def check_packages() -> Check:
    """Check that all required packages are installed."""
    needed = ("mlx-lm", "tokenizers", "safetensors", "huggingface_hub", "numpy")
    missing = [name for name in needed if installed(name) is None]
    found = ", ".join(f"{name} {installed(name)}" for name in needed if name not in missing)
    if missing:
        return Check("packages", FAILED, f"{found}; missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", OK, found)


def check_hub() -> Check:
    """Check that the Hugging Face Hub responds, unless HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check("hub", OK, "offline (HF_HUB_OFFLINE is set): only cached models are available")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        answered = _request_status(address)
    except (OSError, ValueError) as error:
        remedy = "Check the network and HTTPS_PROXY; cached models and local folders work without it."
        return Check("hub", WARNING, f"{address} cannot be reached ({error})", remedy)
    return Check("hub", OK, f"{address} answered {answered}")


def check_cache() -> Check:
    """Check the folder of downloaded models: number of Qwen3 models, free disk space and write access."""
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
        return Check("cache", FAILED, f"{detail}, not writable", "Set HF_HOME to a folder with write access.")
    return Check("cache", OK, detail)


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sysctl(name: str) -> str:
    """Return a value of macOS's sysctl, or "" if it does not exist."""
    try:
        found = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip()


def _runs_under_rosetta() -> bool:
    return sysctl("sysctl.proc_translated") == "1"


def _import_mlx() -> Any:
    try:
        return importlib.import_module("mlx.core")
    except ImportError:
        return None


def _request_status(address: str) -> int:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:  # an HTTP error is a response too
        return error.code
