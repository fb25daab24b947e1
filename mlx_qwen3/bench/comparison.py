"""Compare this package with mlx-lm on the same weights, in interleaved rounds.

Interleaving exposes both to the same state of the machine (temperature, clock, other load).
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..errors import InputError
from ..generation import generate_step
from .measure import Measurement, Runner, measure

OWN, OTHER = "mlx-qwen3", "mlx-lm"


@dataclass(frozen=True)
class Outcome:
    """The measurements of one model.

    Args:
        label: name of the model in tables.
        bytes_per_token: bytes that decoding one token reads from memory.
        rounds: implementation name -> measurements, one per round, in order.
        notes: sentences printed below the table.
    """

    label: str
    prompt_tokens: int
    generated_tokens: int
    bytes_per_token: float
    rounds: dict[str, list[Measurement]]
    notes: tuple[str, ...] = ()

    def median(self, name: str, figure: str) -> float:
        """Return the median over the rounds of a field of `Measurement`."""
        return statistics.median(getattr(one, figure) for one in self.rounds[name])

    def ratio(self, figure: str) -> float | None:
        """Return the median of the per-round ratios of this package to mlx-lm, or None if mlx-lm was not measured."""
        if OTHER not in self.rounds:
            return None
        pairs = zip(self.rounds[OWN], self.rounds[OTHER], strict=True)
        return statistics.median(getattr(own, figure) / max(getattr(other, figure), 1e-9) for own, other in pairs)


@dataclass
class Benchmark:
    """Implementations to compare on the same weights.

    Args:
        label: name of the model in tables.
        model: the model of this package.
        runners: implementation name -> runner.
        notes: sentences printed below the table.
    """

    label: str
    model: Any
    runners: dict[str, Runner]
    notes: list[str] = field(default_factory=list)


def own_runner(model: Any) -> Runner:
    """Return a `Runner` that calls this package's `generate_step`."""

    def run(prompt: list[int], max_tokens: int) -> Iterator[int]:
        return generate_step(model, prompt, max_tokens=max_tokens)

    return run


def compare(
    benchmark: Benchmark,
    *,
    prompt_tokens: int = 512,
    max_tokens: int = 128,
    rounds: int = 5,
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Measure all implementations in interleaved rounds. The first round warms up and is discarded.

    Args:
        prompt_tokens: length of the random prompt.
        max_tokens: number of tokens to generate, at least 2.
        rounds: measured rounds, after one warm-up round.
        progress: called with one line per measurement.

    Raises:
        InputError: `prompt_tokens`, `max_tokens` or `rounds` is too small, or the context too short for the tokens.
    """
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("max_tokens", max_tokens, 2),
        ("rounds", rounds, 1),
    ):
        if value < least:
            raise InputError(f"{name} is {value}, expected {least} or more.")
    config = benchmark.model.config
    if prompt_tokens + max_tokens > config.max_position_embeddings:
        raise InputError(
            f"{prompt_tokens} prompt and {max_tokens} new tokens do not fit the model's context of "
            f"{config.max_position_embeddings} tokens. Reduce one of the two numbers."
        )
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, prompt_tokens).tolist()
    results: dict[str, list[Measurement]] = {name: [] for name in benchmark.runners}
    for index in range(rounds + 1):
        # alternate the order, so that neither always runs on the warmer machine
        names = list(benchmark.runners) if index % 2 else list(benchmark.runners)[::-1]
        for name in names:
            measurement = measure(benchmark.runners[name], prompt, max_tokens)
            if index:
                results[name].append(measurement)
                if progress is not None:
                    progress(
                        f"{benchmark.label}, round {index} of {rounds}, {name}: {measurement.decode_tps:.1f} tokens/s"
                    )
    return Outcome(
        benchmark.label,
        prompt_tokens,
        max_tokens,
        bytes_per_token(benchmark.model, prompt_tokens + max_tokens // 2),
        results,
        tuple(benchmark.notes),
    )


def bytes_per_token(model: Any, cached: int) -> float:
    """Return the bytes that decoding one token reads: all weights in use, and keys and values of `cached` tokens."""
    config = model.config
    weights = _count_bytes(model)
    if not config.tie_word_embeddings:
        # only one row of an untied embedding is read; a tied one is read completely as the output head
        weights -= _count_bytes(model.get_input_embeddings())
    width = 4 if model.dtype == mx.float32 else 2
    per_slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    return float(weights + per_slot * cached)


def _count_bytes(module: Any) -> int:
    arrays: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in arrays)
