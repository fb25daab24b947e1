"""Every test runs on the CPU device, offline: golden tolerances are float32 on a CPU."""

import os
import signal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mlx.core as mx
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m network` may reach the Hub; the hub's library reads the variable when it is imported.

    Programs that the tests start must be able to receive Ctrl-C, which a background job of a shell ignores, and with
    it every program that it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "not network" in config.option.markexpr or "network" not in config.option.markexpr:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def cpu_device(request: pytest.FixtureRequest):
    """Select the CPU, except for tests with a GPU marker."""
    if request.node.get_closest_marker("metal") or request.node.get_closest_marker("accelerator"):
        yield
        return
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    mx.random.seed(0)
    yield
    mx.set_default_device(before)
