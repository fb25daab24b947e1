"""Measure the variants of `layers/devices.py` on this machine, to choose the defaults of a device."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..adapters.layers import is_packed
from ..generation import generate_step
from ..layers.devices import using, variants
from .measure import Measurement, measure
from .random_models import with_dtype

CHOICES: dict[str, tuple[Any, ...]] = {
    "prefill_rope": ("fast", "table", "compiled"),
    "decode_rope": ("angle", "position"),
    "head_norms": ("joined", "separate", "mixed"),
    "decode_parts": (1, 2, 4),
    "layers_per_step": (0, 0.5, 1, 2, 4),
    "unpacked_work": (0, 1, 1 << 20),
    "prefill_step_size": (1024, 2048, 4096, 8192),
    "packed_values": ("group", "single"),
}
"""Variant -> values to measure. Draft lengths and dtypes are measured separately."""

DRAFTS = (0, 4, 6, 9, 16)
"""Draft lengths of speculative decoding; 0 is a plain decoding step."""


@dataclass(frozen=True)
class VariantRow:
    """Medians of one value of one variant.

    Args:
        variant, value: name and value of the setting.
        default: whether the value is this device's default.
        prompt_tps, decode_tps: tokens per second; None if not measured.
        working: peak memory in bytes, minus the memory in use before the run; None if not measured.
    """

    variant: str
    value: str
    default: bool
    prompt_tps: float | None
    decode_tps: float | None
    working: int | None


def measure_variants(
    model: Any,
    *,
    prompt_tokens: int = 2048,
    max_tokens: int = 32,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda line: None,
) -> list[VariantRow]:
    """Measure every variant on a causal model, the values of each interleaved. The first round is discarded.

    Args:
        rounds: measured rounds per value, after one warm-up round.
        progress: called with one line per value.
    """
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt_tokens).tolist()
    table: list[VariantRow] = []
    for variant, values in CHOICES.items():
        if not _applies(variant, model):
            continue
        options = {"kv_bits": 8} if variant == "packed_values" else {}
        results: dict[Any, list[Measurement]] = {value: [] for value in values}
        for index in range(rounds + 1):
            for value in values:
                with using(**{variant: value}):
                    one = measure(_make_runner(model, options), prompt, max_tokens)
                if index:
                    results[value].append(one)
        default = getattr(variants(), variant)
        for value, rows in results.items():
            table.append(_make_row(variant, value, value == default, rows))
            progress(_format_row(table[-1]))
    table += _measure_drafts(model, prompt[: min(prompt_tokens, 512)], rounds)
    if mx.default_device().type == mx.DeviceType.gpu:  # a CPU computes both dtypes in float32
        table += _measure_dtypes(model, prompt, max_tokens, rounds)
    return table


def _applies(variant: str, model: Any) -> bool:
    """Return whether a variant changes what the model computes."""
    if variant == "packed_values":
        return model.config.head_dim % 64 == 0
    if variant == "decode_rope":
        return model.dtype != mx.float32
    if variant == "unpacked_work":
        return model.dtype != mx.float32 and any(map(is_packed, model.modules()))
    return True


def _make_runner(model: Any, options: dict[str, Any]) -> Any:
    def run(prompt: list[int], max_tokens: int) -> Iterator[int]:
        return generate_step(model, prompt, max_tokens=max_tokens, **options)

    return run


def _make_row(variant: str, value: Any, default: bool, rows: Sequence[Measurement]) -> VariantRow:
    return VariantRow(
        variant,
        str(value),
        default,
        statistics.median(row.prompt_tps for row in rows),
        statistics.median(row.decode_tps for row in rows),
        int(statistics.median(row.working for row in rows)),
    )


def _format_row(row: VariantRow) -> str:
    return f"{row.variant} {row.value}: prompt {row.prompt_tps or 0:.0f}, decode {row.decode_tps or 0:.1f} tokens/s"


def _measure_drafts(model: Any, prompt: list[int], rounds: int) -> list[VariantRow]:
    """Measure verification passes of each draft length, in tokens per second if every draft token is accepted."""
    path, cache = model.for_inference(), model.make_cache()
    mx.eval(path.step_logits(mx.array([prompt]), cache))
    seconds: dict[int, list[float]] = {count: [] for count in DRAFTS}
    for index in range(3 * rounds + 2):
        for count in DRAFTS:
            ids = mx.array([(prompt * (count + 1))[: count + 1]])
            mx.synchronize()
            start = time.perf_counter()
            mx.eval(mx.argmax(path.step_logits(ids, cache, count + 1), axis=-1))
            if index > 1:
                seconds[count].append(time.perf_counter() - start)
            cache.trim(count + 1)
    rows = []
    for count, times in seconds.items():
        speed = (count + 1) / statistics.median(times)
        rows.append(VariantRow("longest_draft", str(count), count == variants().longest_draft, None, speed, None))
    return rows


def _measure_dtypes(model: Any, prompt: list[int], max_tokens: int, rounds: int) -> list[VariantRow]:
    """Measure float16 and bfloat16, then cast the model back to its dtype."""
    stored = model.dtype
    results: dict[mx.Dtype, list[Measurement]] = {mx.bfloat16: [], mx.float16: []}
    for dtype, rows in results.items():
        with_dtype(model, dtype)
        measurements = [measure(_make_runner(model, {}), prompt, max_tokens) for _ in range(rounds + 1)]
        rows.extend(measurements[1:])
    with_dtype(model, stored)
    named = {dtype: str(dtype).rpartition(".")[2] for dtype in results}
    return [_make_row("dtype", named[dtype], dtype == stored, rows) for dtype, rows in results.items()]


def variants_table(rows: Sequence[VariantRow]) -> str:
    """Return the rows as a Markdown table with the defaults in bold."""
    lines = [
        "| variant | value | prompt tok/s | decode tok/s | peak above weights GB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        value = f"**{row.value}**" if row.default else row.value
        prompt = "" if row.prompt_tps is None else f"{row.prompt_tps:.0f}"
        decode = "" if row.decode_tps is None else f"{row.decode_tps:.1f}"
        working = "" if row.working is None else f"{row.working / 1e9:.2f}"
        lines.append(f"| {row.variant} | {value} | {prompt} | {decode} | {working} |")
    lines += [
        "",
        "Bold: this device's default. longest_draft: tokens/s of verification passes if every draft token is accepted.",
    ]
    return "\n".join(lines) + "\n"
