"""Counters of a server, as Prometheus reads them."""

from collections.abc import Callable
from typing import Any


class Metrics:
    """Counters, gauges and histograms with a registry of their own.

    Args:
        numbers: returns the gauges of the engine by name.
    """

    def __init__(self, numbers: Callable[[], dict[str, int]]):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._numbers = numbers
        self.registry = registry = CollectorRegistry()
        prefix = "mlx_qwen3_"
        self.requests = Counter(
            f"{prefix}requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter(f"{prefix}prompt_tokens", "Tokens of prompts and inputs.", registry=registry)
        self.cached_tokens = Counter(
            f"{prefix}cached_prompt_tokens", "Tokens of prompts that were not computed again.", registry=registry
        )
        self.completion_tokens = Counter(f"{prefix}completion_tokens", "Tokens generated.", registry=registry)
        self.first_token = Histogram(
            f"{prefix}time_to_first_token_seconds", "Time to the first token of an answer.", registry=registry
        )
        self.duration = Histogram(
            f"{prefix}request_seconds", "Time to answer a request in full.", ["route"], registry=registry
        )
        self._gauges: dict[str, Any] = {}
        for name, text in (
            ("open_requests", "Requests that were accepted and not yet answered."),
            ("running_sequences", "Sequences that are being generated."),
            ("waiting_requests", "Requests whose prompt or rows wait or are being computed."),
            ("reserved_cache_bytes", "Bytes of cache that running sequences may come to need."),
            ("prefix_cache_entries", "Earlier prompts whose cache is kept."),
        ):
            self._gauges[name] = Gauge(prefix + name, text, registry=registry)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        from prometheus_client import generate_latest

        for name, value in self._numbers().items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)
