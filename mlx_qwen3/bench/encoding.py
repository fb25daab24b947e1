"""Speed and memory of reading texts without generating: classification and embeddings, in batches and one by one."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..models import Qwen3ForSequenceClassification
from ..tasks.batches import Piece, Runner

SHAPES = ((32, 128), (256, 32), (8, 1024), (1, 128))
"""Texts in a batch, tokens in each."""

CPU_SHAPES = ((8, 32), (1, 32))
"""The same for a CPU, where the others would take minutes."""

ONE_AT_A_TIME = 16
"""Texts that are measured where each is a batch of its own."""


@dataclass(frozen=True)
class EncodingRow:
    """Medians of one task and one shape.

    Args:
        task: "classification" or "embedding". rows, tokens: of a batch.
        texts_per_second: with results on the host. working: bytes of the peak above what was in memory before.
    """

    task: str
    rows: int
    tokens: int
    texts_per_second: float
    working: int


def classifier_over(model: Any) -> Any:
    """Return a sequence classifier with a random head over the decoder of a causal model, which it shares."""
    made = Qwen3ForSequenceClassification(model.config)
    made.model = model.base_model
    made.score.weight = made.score.weight.astype(model.dtype)
    mx.eval(made.score.parameters())
    made.eval()
    return made


def measure_encoding(
    model: Any,
    shapes: Sequence[tuple[int, int]] | None = None,
    *,
    tasks: Sequence[str] = ("classification", "embedding"),
    rounds: int = 3,
    batches: int = 2,
    compiled: bool | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[EncodingRow]:
    """Measure a causal model's decoder on random texts; the first round warms up and does not count.

    Args:
        shapes: (texts in a batch, tokens in each); by default those of the device. batches: batches per round.
        compiled: as in `Runner`; None for what the device takes.
    """
    classifier = classifier_over(model)
    runner = Runner(classifier, compiled=compiled)

    def classify(call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (classifier(**call, last_positions=last).logits.astype(mx.float32),)

    def embed(call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        states = runner.base_model(**call).last_hidden_state
        return (states[mx.arange(states.shape[0]), last].astype(mx.float32),)

    if shapes is None:
        shapes = CPU_SHAPES if mx.default_device().type == mx.DeviceType.cpu else SHAPES
    found = []
    for rows, tokens in shapes:
        count = ONE_AT_A_TIME if rows == 1 else rows * batches
        ids = np.random.default_rng(0).integers(1, model.config.vocab_size, (count, tokens)).tolist()
        for task in tasks:
            compute = {"classification": classify, "embedding": embed}[task]
            seconds, peaks = [], []
            for _ in range(rounds + 1):
                mx.synchronize()
                mx.clear_cache()
                before = mx.get_active_memory()
                mx.reset_peak_memory()
                start = time.perf_counter()
                if rows == 1:
                    for row in ids:
                        runner.run([Piece(row)], compute)
                else:
                    runner.run([Piece(row) for row in ids], compute, batch_size=rows)
                seconds.append(time.perf_counter() - start)
                peaks.append(mx.get_peak_memory() - before)
            speed = count / statistics.median(seconds[1:])
            found.append(EncodingRow(task, rows, tokens, speed, int(statistics.median(peaks[1:]))))
            progress(f"{task}, {rows} x {tokens} tokens: {speed:.1f} texts/s")
    return found
