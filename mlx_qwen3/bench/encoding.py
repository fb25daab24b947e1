"""Benchmark classification and embedding: speed and memory in batches and one text at a time."""

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
"""(texts per batch, tokens per text) measured on a GPU."""

CPU_SHAPES = ((8, 32), (1, 32))
"""Shapes measured on a CPU, where `SHAPES` would take minutes."""

ONE_AT_A_TIME = 16
"""Number of texts measured with a batch size of 1."""


@dataclass(frozen=True)
class EncodingRow:
    """Medians for one task and one shape.

    Args:
        task: "classification" or "embedding".
        rows: texts per batch.
        tokens: tokens per text.
        texts_per_second: includes copying the results to the host.
        working: peak memory in bytes, minus the memory in use before the run.
    """

    task: str
    rows: int
    tokens: int
    texts_per_second: float
    working: int


def classifier_over(model: Any) -> Any:
    """Return a sequence classifier with a random head that shares the decoder of a causal model."""
    classifier = Qwen3ForSequenceClassification(model.config)
    classifier.model = model.base_model
    classifier.score.weight = classifier.score.weight.astype(model.dtype)
    mx.eval(classifier.score.parameters())
    classifier.eval()
    return classifier


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
    """Measure a causal model's decoder on random texts. The first round warms up and is discarded.

    Args:
        shapes: (texts per batch, tokens per text); default: `CPU_SHAPES` on a CPU, `SHAPES` on a GPU.
        rounds: measured rounds, after one warm-up round.
        batches: batches per round.
        compiled: as in `Runner`; None for the device's default.
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
    results = []
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
            results.append(EncodingRow(task, rows, tokens, speed, int(statistics.median(peaks[1:]))))
            progress(f"{task}, {rows} x {tokens} tokens: {speed:.1f} texts/s")
    return results
