"""One run of a generator of tokens, timed: prompt, first token, and the tokens after it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

Runner = Callable[[list[int], int], Iterator[int]]
"""Prompt ids and a number of tokens → that many greedy tokens, one after the other."""


@dataclass(frozen=True)
class Measurement:
    """One run.

    Args:
        prompt_tps, decode_tps: tokens per second. first_token: seconds until it.
        peak_memory: bytes, weights included. working: bytes of the peak above what was in memory before.
    """

    prompt_tps: float
    first_token: float
    decode_tps: float
    peak_memory: int
    working: int = 0


def measure(run: Runner, prompt: list[int], max_tokens: int) -> Measurement:
    """Time one run: the time to the first token covers the whole prompt, the others are the decode."""
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
