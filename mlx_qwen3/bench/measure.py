"""Time one generation: prompt processing, time to first token and decoding."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

Runner = Callable[[list[int], int], Iterator[int]]
"""Function of prompt ids and `max_tokens` that yields `max_tokens` greedily decoded tokens."""


@dataclass(frozen=True)
class Measurement:
    """The figures of one generation.

    Args:
        prompt_tps: prompt tokens per second, up to the first generated token.
        first_token: seconds to the first token.
        decode_tps: tokens per second after the first token.
        peak_memory: peak memory in bytes, including the weights.
        working: peak memory in bytes, minus the memory in use before the run.
    """

    prompt_tps: float
    first_token: float
    decode_tps: float
    peak_memory: int
    working: int = 0


def measure(run: Runner, prompt: list[int], max_tokens: int) -> Measurement:
    """Time one generation. The time to the first token covers the whole prompt; decoding starts after it."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    tokens = run(prompt, max_tokens)
    next(tokens)
    first = time.perf_counter()
    count = sum(1 for _ in tokens)
    stop = time.perf_counter()
    return Measurement(
        prompt_tps=len(prompt) / (first - start),
        first_token=first - start,
        decode_tps=count / (stop - first),
        peak_memory=mx.get_peak_memory(),
        working=mx.get_peak_memory() - before,
    )
