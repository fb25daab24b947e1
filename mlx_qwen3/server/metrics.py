"""Prometheus metrics of the server."""

from collections.abc import Callable
from typing import Any


class Metrics:
    """Counters, gauges and histograms with a registry of their own.

    Args:
        numbers: returns the values of the engine's gauges by name.
    """

    def __init__(self, numbers: Callable[[], dict[str, int]]):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._numbers = numbers
        self.registry = registry = CollectorRegistry()
        prefix = "mlx_qwen3_"
        self.requests = Counter(
            f"{prefix}requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            f"{prefix}prompt_tokens", "Tokens of prompts and of other inputs.", registry=registry
        )
        self.cached_tokens = Counter(
            f"{prefix}cached_prompt_tokens", "Prompt tokens taken from the prefix cache.", registry=registry
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
            ("open_requests", "Requests accepted and not yet answered."),
            ("running_sequences", "Sequences being generated."),
            ("waiting_requests", "Requests whose prompt or rows are waiting or being computed."),
            ("reserved_cache_bytes", "Bytes of cache reserved for running sequences."),
            ("prefix_cache_entries", "Prompts in the prefix cache."),
        ):
            self._gauges[name] = Gauge(prefix + name, text, registry=registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        from prometheus_client import generate_latest

        for name, value in self._numbers().items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)
