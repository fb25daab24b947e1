"""mlx-qwen3 doctor passes on a working machine, and names the check that fails on a broken one."""

import importlib
import platform
import shutil
import subprocess
import sys
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_qwen3.cache.packing import KVFormat
from mlx_qwen3.cli.main import main
from mlx_qwen3.doctor import Check, check_machine, doctor_report, machine, status_line
from mlx_qwen3.doctor.comparison import run_family
from mlx_qwen3.doctor.kernels import FAMILIES
from mlx_qwen3.doctor.report import verdict
from mlx_qwen3.layers import masks
from mlx_qwen3.layers.rotary import RotaryPositions
from mlx_qwen3.models import qwen3, qwen3_fused
from mlx_qwen3.qdq import fake_quantizer


def failed(name):
    return run_family(name, FAMILIES[name]).status == "failed"


def unmasked(length, past, *_, **__):
    return mx.ones((1, 1, length, past + length), mx.bool_)


def shift(method):
    def rotation(self, start, length, dtype=mx.float32):
        return method(self, start + 1, length, dtype)

    return rotation


@pytest.mark.parametrize("where", [masks, qwen3, qwen3_fused], ids=["itself", "plain model", "fused model"])
def test_a_wrong_mask_fails_by_name(monkeypatch, where):
    monkeypatch.setattr(where, "decoder_mask", unmasked)
    check = run_family("masks", FAMILIES["masks"])
    assert check.status == "failed"
    assert "error" in check.detail
    assert check.remedy


def test_an_overflowing_mask_fails_by_name(monkeypatch):
    monkeypatch.setattr(masks, "additive", lambda mask, dtype: mask.astype(dtype))
    monkeypatch.setattr("mlx_qwen3.layers.attention.additive", lambda mask, dtype: mask.astype(dtype) * 1e9)
    assert failed("masks")


def test_a_wrong_rope_fails_by_name(monkeypatch):
    monkeypatch.setattr(RotaryPositions, "at", shift(RotaryPositions.at))
    assert failed("rope")


def test_a_wrong_base_fails_in_models_too(monkeypatch):
    other = RotaryPositions({"rope_type": "default", "rope_theta": 100.0}, 64, 512)
    at = RotaryPositions.at
    monkeypatch.setattr(RotaryPositions, "at", lambda self, *where: at(other, *where))
    assert failed("models")
    assert failed("sliding caches")


def test_a_wrong_rope_kernel_fails_by_name(monkeypatch):
    kernel = mx.fast.rope
    monkeypatch.setattr(mx.fast, "rope", lambda x, dims, **rest: kernel(x, dims, **{**rest, "traditional": True}))
    assert failed("rope")


def test_a_wrong_norm_fails_by_name(monkeypatch):
    kernel = mx.fast.rms_norm
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, weight, eps: kernel(x, weight, eps + 0.1))
    assert failed("norms")


def test_attention_in_the_wrong_scale_fails_by_name(monkeypatch):
    kernel = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        mx.fast,
        "scaled_dot_product_attention",
        lambda *arrays, scale, mask: kernel(*arrays, scale=scale * 2, mask=mask),
    )
    assert failed("attention")
    assert failed("sliding caches")


def test_a_wrong_packed_product_fails_by_name(monkeypatch):
    kernel = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *arrays, **rest: kernel(*arrays, **rest) * 1.01)
    assert failed("packed products")


def test_a_wrong_packed_cache_fails_by_name(monkeypatch):
    unpack = KVFormat.unpack
    monkeypatch.setattr(KVFormat, "attend", lambda self, q, k, v, scale, mask: q * mx.mean(unpack(self, v)))
    assert failed("packed caches")


def test_wrong_levels_fail_by_name(monkeypatch):
    monkeypatch.setattr(fake_quantizer, "fake_quantize", lambda x, amax, low, high, factors=None: x)
    assert failed("fake quantizers")


def test_wrong_gradients_fail_by_name(monkeypatch):
    monkeypatch.setattr(qwen3.Qwen3MLP, "__call__", lambda self, x: mx.stop_gradient(self.down_proj(self.gate_proj(x))))
    assert failed("training step")


def test_wrong_tokens_fail_by_name(monkeypatch):
    monkeypatch.setattr("mlx_qwen3.generation.sampling.greedy", lambda logits: mx.argmin(logits, axis=-1))
    monkeypatch.setattr("mlx_qwen3.generation.steps.greedy", lambda logits: mx.argmin(logits, axis=-1))
    assert failed("generation")


def test_nan_and_an_exception_fail_by_name(monkeypatch):
    monkeypatch.setattr(mx.fast, "layer_norm", lambda x, *rest: x * float("nan"))
    assert failed("norms")

    def missing(*_, **__):
        raise RuntimeError("[metal] Unable to load kernel\nrope")

    monkeypatch.setattr(mx.fast, "rope", missing)
    check = run_family("rope", FAMILIES["rope"])
    assert check.status == "failed"
    assert "Unable to load kernel rope" in check.detail


# the command


def test_the_command_prints_a_line_per_check_and_a_report(tmp_path, capsys):
    path = tmp_path / "report.md"
    assert main(["doctor", "--no-network", "--device", "cpu", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("python", "mlx", "memory"))
    assert all(f"ok       {name} " in out for name in FAMILIES)
    assert "passed" in out.splitlines()[-1]
    report = path.read_text(encoding="utf-8")
    assert "| masks | ok | " in report
    assert report.startswith("### mlx-qwen3 doctor")


def test_the_command_fails_with_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(RotaryPositions, "at", shift(RotaryPositions.at))
    for name in FAMILIES.keys() - {"masks", "rope"}:
        monkeypatch.delitem(FAMILIES, name)
    assert main(["doctor", "--no-network", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAILED   rope" in out
    assert "ok       masks" in out
    assert "checks failed: rope" in out


def test_a_missing_output_folder_is_an_error_before_any_check(capsys, tmp_path):
    assert main(["doctor", "--output", str(tmp_path / "no" / "report.md")]) == 2
    assert "does not exist" in capsys.readouterr().err


# the machine


@pytest.fixture
def mac(monkeypatch):
    """Make Python report a Mac with Apple Silicon; tests change its properties."""
    facts = SimpleNamespace(machine="arm64", release="26.1", translated="0")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: facts.machine)
    monkeypatch.setattr(platform, "mac_ver", lambda: (facts.release, ("", "", ""), facts.machine))
    values = {"machdep.cpu.brand_string": "Apple M4", "sysctl.proc_translated": None}

    def run(command, **_):
        values["sysctl.proc_translated"] = facts.translated
        return SimpleNamespace(stdout=f"{values.get(command[-1], '')}\n")

    monkeypatch.setattr(subprocess, "run", run)
    return facts


def test_a_supported_mac_passes(mac):
    assert machine.check_python().status == "ok"
    assert machine.check_system() == Check("system", "ok", "macOS 26.1, Apple M4")


@pytest.mark.parametrize(("field", "value"), [("translated", "1"), ("machine", "x86_64")])
def test_a_python_under_rosetta_fails(mac, field, value):
    setattr(mac, field, value)
    check = machine.check_python()
    assert check.status == "failed"
    assert "native arm64 Python" in check.remedy


def test_an_old_python_and_an_old_macos_fail(mac, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    assert "/usr/bin/python3 is older" in machine.check_python().remedy
    mac.release = "13.7"
    assert machine.check_system().status == "failed"
    assert "macOS 14" in machine.check_system().remedy


def test_a_gpu_that_is_missing_unused_or_working(mac, monkeypatch):
    assert machine.check_gpu().status == "failed"
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda device=None: {"device_name": "Apple M4"})
    assert machine.check_gpu().status == "warning"
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert machine.check_gpu() == Check("gpu", "ok", "Apple M4 (Metal)")


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr("mlx_qwen3.memory.machine_memory", lambda: int(3e9))
    assert machine.check_memory().status == "warning"


def test_without_mlx_the_machine_is_still_checked(monkeypatch, capsys):
    real = importlib.import_module

    def importing(name, *rest):
        if name == "mlx.core":
            raise ImportError("no suitable image found")
        return real(name, *rest)

    monkeypatch.setattr(machine.importlib, "import_module", importing)
    assert machine.check_mlx().status == "failed"
    assert machine.check_gpu().status == machine.check_memory().status == "failed"
    assert main(["doctor", "--no-network"]) == 1
    assert "cannot be imported: no suitable image found" in capsys.readouterr().out


def test_importing_the_checks_needs_no_mlx():
    code = "import sys; sys.modules['mlx'] = None; import mlx_qwen3.doctor, mlx_qwen3.cli.doctor"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hub_is_reachable_unreachable_or_offline(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(machine, "_request_status", lambda address: 200)
    assert machine.check_hub() == Check("hub", "ok", "https://huggingface.co answered 200")

    def unreachable(address):
        raise OSError("Name or service not known")

    monkeypatch.setattr(machine, "_request_status", unreachable)
    assert machine.check_hub().status == "warning"
    assert "HTTPS_PROXY" in machine.check_hub().remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert machine.check_hub().status == "ok"


def test_a_full_disk_and_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--Qwen--Qwen3-0.6B").mkdir()
    assert "1 Qwen3 models" in machine.check_cache().detail
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert machine.check_cache().status == "failed"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    assert machine.check_cache().status == "warning"


def test_missing_packages_are_reported(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda name: None if name == "tokenizers" else "1.0")
    check = machine.check_packages()
    assert (check.status, check.remedy) == ("failed", "pip install tokenizers")


def test_check_machine_runs_all_checks():
    names = [check.name for check in check_machine(network=False)]
    assert names == ["python", "system", "mlx", "gpu", "memory", "packages", "cache"]


def test_status_lines_reports_and_verdicts():
    good, bad = Check("mlx", "ok", "MLX 1"), Check("gpu", "failed", "a | b", "Buy one.")
    assert status_line(bad) == f"FAILED   {'gpu':<22} a | b -> Buy one."
    report = doctor_report([good], [bad], "Apple M4, Metal", "1.0")
    assert "| gpu | failed | a \\| b (Buy one.) |" in report
    assert verdict([good, bad]) == "1 of 2 checks failed: gpu"
    assert verdict([good, Check("hub", "warning", "")]) == "all 2 checks passed, 1 with a warning (hub)"
