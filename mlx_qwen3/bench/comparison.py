"""This package and mlx-lm on the same weights, in turns, so that both see the same state of the machine."""

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
    """What the rounds of one model gave, a list of measurements by name, the rounds in order."""

    label: str
    prompt_tokens: int
    generated_tokens: int
    bytes_per_token: float
    rounds: dict[str, list[Measurement]]
    notes: tuple[str, ...] = ()

    def median(self, name: str, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(getattr(one, figure) for one in self.rounds[name])

    def ratio(self, figure: str) -> float | None:
        """This package over mlx-lm, the median of the rounds' ratios; None without mlx-lm."""
        if OTHER not in self.rounds:
            return None
        pairs = zip(self.rounds[OWN], self.rounds[OTHER], strict=True)
        return statistics.median(getattr(own, figure) / max(getattr(other, figure), 1e-9) for own, other in pairs)


@dataclass
class Benchmark:
    """Runners over the same weights.

    Args:
        label: what the table calls the model.
        model: the model here.
        runners: by name.
    """

    label: str
    model: Any
    runners: dict[str, Runner]
    notes: list[str] = field(default_factory=list)


def own_runner(model: Any) -> Runner:
    """This package's `generate_step` as a `Runner`."""

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
    """Run everyone in turns and give back the figures; the first round warms up and does not count.

    Args:
        prompt_tokens: length of the random prompt. max_tokens: tokens to generate. rounds: rounds that count.

    Raises:
        InputError: a length or a number of rounds that gives no figure.
    """
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("max_tokens", max_tokens, 2),
        ("rounds", rounds, 1),
    ):
        if value < least:
            raise InputError(f"{name} is {value}, expected {least} or more")
    config = benchmark.model.config
    if prompt_tokens + max_tokens > config.max_position_embeddings:
        raise InputError(
            f"{prompt_tokens} prompt and {max_tokens} new tokens do not fit the model's context of "
            f"{config.max_position_embeddings}"
        )
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, prompt_tokens).tolist()
    results: dict[str, list[Measurement]] = {name: [] for name in benchmark.runners}
    for turn in range(rounds + 1):
        # alternate the order between rounds
        names = list(benchmark.runners) if turn % 2 else list(benchmark.runners)[::-1]
        for name in names:
            found = measure(benchmark.runners[name], prompt, max_tokens)
            if turn:
                results[name].append(found)
                if progress is not None:
                    progress(f"{benchmark.label}, round {turn} of {rounds}, {name}: {found.decode_tps:.1f} tokens/s")
    return Outcome(
        benchmark.label,
        prompt_tokens,
        max_tokens,
        bytes_per_token(benchmark.model, prompt_tokens + max_tokens // 2),
        results,
        tuple(benchmark.notes),
    )


def bytes_per_token(model: Any, cached: int) -> float:
    """Return bytes that decoding one token must read: every weight that is used, and keys and values of `cached`
    tokens.
    """
    config = model.config
    weights = _bytes(model)
    if not config.tie_word_embeddings:
        # the embedding gives one row; tied, the same matrix is read whole as the output head
        weights -= _bytes(model.get_input_embeddings())
    width = 4 if model.dtype == mx.float32 else 2
    per_slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    return float(weights + per_slot * cached)


def _bytes(module: Any) -> int:
    arrays: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in arrays)
