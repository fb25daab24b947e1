"""Test every kernel family that the package uses, on the default device, against NumPy and the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..cache.packing import KVFormat
from ..layers import attention, masks, rotary
from ..layers.devices import CHOICES, device_kind, using
from ..qdq.fake_quantizer import TensorQuantizer
from ..quantization import PackedFormat
from ..quantization.formats import AFFINE_BITS, MODES
from . import reference
from .comparison import DTYPES, Comparison, Family, as_numpy, draw, on_cpu, run_family
from .machine import Check
from .models import caches_family, generation_family, masks_of_models, models_family, training_family

LENGTHS = (1, 7, 9, 64)
"""Numbers of queries. Metal has one attention kernel for up to 8 queries and another one for more."""
HEADS, KV_HEADS, HEAD_DIM, PAST = 4, 2, 128, 5


def masks_family() -> Iterator[Comparison]:
    """Compare attention under every type of mask: boolean, additive, causal, windowed, and with fully masked rows."""
    for dtype in DTYPES:
        for length in LENGTHS:
            queries, q = draw(1, 1, HEADS, length, HEAD_DIM, dtype=dtype)
            keys, k = draw(2, 1, KV_HEADS, PAST + length, HEAD_DIM, dtype=dtype)
            values, v = draw(3, 1, KV_HEADS, PAST + length, HEAD_DIM, dtype=dtype)
            visible = reference.allowed_keys(length, PAST, hidden=2)
            with_masked_row = visible & (np.arange(length) != length // 2)[:, None]
            itself = np.arange(PAST, PAST + length)[:, None] == np.arange(PAST + length)[None]
            want = reference.attention(
                q, k, v, HEAD_DIM**-0.5, np.where(with_masked_row.any(-1, keepdims=True), with_masked_row, itself)
            )
            allowed = mx.array(with_masked_row[None, None])
            given = {
                "booleans": allowed,
                "float32 to add": mx.where(allowed, 0.0, mx.finfo(mx.float32).min),
                "infinity to add": mx.where(allowed, 0.0, -float("inf")),
                f"{dtype} to add": mx.where(allowed, 0.0, mx.finfo(DTYPES[dtype]).min).astype(DTYPES[dtype]),
            }
            for kind, mask in given.items():
                ranges = ((0, PAST + length),)
                decoder_mask = masks.decoder_mask(length, PAST, ranges, attention_mask=mask, dtype=DTYPES[dtype])
                got = attention.attend(queries, keys, values, HEAD_DIM**-0.5, decoder_mask)
                yield Comparison(f"{kind}, {length} queries", dtype, got, want)
    yield from _compare_created_masks()
    yield from masks_of_models()


def _compare_created_masks() -> Iterator[Comparison]:
    """Compare the masks that `decoder_mask` creates, with and without returned attention weights."""
    for length in LENGTHS:
        queries, q = draw(1, 1, HEADS, length, HEAD_DIM)
        keys, k = draw(2, 1, KV_HEADS, PAST + length, HEAD_DIM)
        values, v = draw(3, 1, KV_HEADS, PAST + length, HEAD_DIM)
        real: Any = np.arange(PAST + length)[None] >= 2
        cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("causal", {}, {}),
            ("window", {"window": 4}, {"window": 4}),
            ("padding", {"attention_mask": mx.array(real)}, {"hidden": 2}),
        ]
        for kind, options, allowed in cases:
            decoder_mask = masks.decoder_mask(length, PAST, ((0, PAST + length),), **options)
            want = reference.attention(q, k, v, 0.1, reference.allowed_keys(length, PAST, **allowed))
            arrays = queries, keys, values
            yield Comparison(f"{kind}, {length} queries", "float32", attention.attend(*arrays, 0.1, decoder_mask), want)
            weighted = attention.attend_with_weights(*arrays, 0.1, decoder_mask)[0]
            yield Comparison(f"{kind} with weights, {length} queries", "float32", weighted, want)


def attention_family() -> Iterator[Comparison]:
    """Compare attention without a mask and with the causal mask, in every dtype."""
    for dtype in DTYPES:
        for length in LENGTHS:
            queries, q = draw(1, 2, HEADS, length, HEAD_DIM, dtype=dtype)
            keys, k = draw(2, 2, KV_HEADS, length, HEAD_DIM, dtype=dtype)
            values, v = draw(3, 2, KV_HEADS, length, HEAD_DIM, dtype=dtype)
            for mask, allowed in (
                (None, np.ones((length, length), bool)),
                ("causal", reference.allowed_keys(length, 0)),
            ):
                got = attention.attend(queries, keys, values, HEAD_DIM**-0.5, mask)
                want = reference.attention(q, k, v, HEAD_DIM**-0.5, allowed)
                yield Comparison(f"{mask or 'all keys'}, {length} queries", dtype, got, want)


def rope_family() -> Iterator[Comparison]:
    """Compare every RoPE variant, for consecutive positions and for explicit position ids."""
    theta = 1e6
    positions = rotary.RotaryPositions({"rope_type": "default", "rope_theta": theta}, HEAD_DIM, 40960)
    for dtype in DTYPES:
        for start in (0, 4000):
            for length in LENGTHS:
                x, exact = draw(4, 1, HEADS, length, HEAD_DIM, dtype=dtype)
                at = np.arange(start, start + length)
                want = reference.rotate(exact, at, theta)
                setting = "prefill_rope" if length > 1 else "decode_rope"
                for variant in CHOICES[setting]:
                    with using(**{setting: variant}):
                        got = positions.at(start, length, DTYPES[dtype])(x)
                    yield Comparison(f"{variant}, positions {start} to {start + length - 1}", dtype, got, want)
                got = positions.at_positions(mx.array(at[None]), DTYPES[dtype])(x)
                yield Comparison(f"given positions from {start} on", dtype, got, want)


def norms_family() -> Iterator[Comparison]:
    """Compare RMSNorm with and without weights, and LayerNorm."""
    weight, w = draw(6, 256)
    bias, b = draw(7, 256)
    for dtype in DTYPES:
        for rows in (1, 9):
            x, exact = draw(5, rows, 256, dtype=dtype)
            for given, scale in ((weight, w), (None, 1.0)):
                label = f"rms_norm {'with' if given is not None else 'without'} weights, {rows} rows"
                cast = None if given is None else given.astype(DTYPES[dtype])
                exact_scale = scale if cast is None else as_numpy(cast)
                got = mx.fast.rms_norm(x, cast, 1e-6)
                yield Comparison(label, dtype, got, reference.rms_norm(exact, exact_scale, 1e-6))
            got = mx.fast.layer_norm(x, weight.astype(DTYPES[dtype]), bias.astype(DTYPES[dtype]), 1e-12)
            yield Comparison(f"layer_norm, {rows} rows", dtype, got, reference.layer_norm(exact, w, b, 1e-12))


def packed_products_family() -> Iterator[Comparison]:
    """Compare products with packed weights of every format, for 1, 5 and 33 rows.

    On CUDA 33 rows are tested for one format only, because MLX compiles each of those kernels for half a minute.
    """
    compiles = device_kind() == "cuda"
    formats = [PackedFormat(bits, 64) for bits in AFFINE_BITS]
    formats += [PackedFormat(4, 32), PackedFormat(4, 128)] + [
        PackedFormat.of(mode) for mode in MODES if mode != "affine"
    ]
    weight = np.random.default_rng(8).standard_normal((96, 512)).astype(np.float32)
    for weight_format in formats:
        for dtype in ("float32", "bfloat16"):
            packed = on_cpu(
                lambda weight_format=weight_format, dtype=dtype: weight_format.quantize(
                    mx.array(weight).astype(DTYPES[dtype])
                )
            )
            exact = as_numpy(
                on_cpu(lambda weight_format=weight_format, packed=packed: weight_format.dequantize(packed))
            )
            for rows in (1, 5, 33):
                if compiles and rows > 5 and (weight_format != PackedFormat(4, 64) or dtype == "float32"):
                    continue
                x, given = draw(9, rows, 512, dtype=dtype)
                got = mx.quantized_matmul(
                    x,
                    packed["weight"],
                    packed["scales"],
                    packed.get("biases"),
                    transpose=True,
                    group_size=weight_format.group_size,
                    bits=weight_format.bits,
                    mode=weight_format.mode,
                )
                yield Comparison(
                    f"{weight_format.mode} {weight_format.bits} bits, {rows} rows", dtype, got, given @ exact.T
                )


def packed_caches_family() -> Iterator[Comparison]:
    """Compare attention over packed keys and values, per query head and per group of query heads."""
    for bits in (8, 4):
        cache_format = KVFormat(bits, 64)
        for length in LENGTHS:
            queries, q = draw(1, 1, 8, length, HEAD_DIM)
            keys = cache_format.pack(draw(2, 1, 2, 40 + length, HEAD_DIM)[0])
            values = cache_format.pack(draw(3, 1, 2, 40 + length, HEAD_DIM)[0])
            k, v = as_numpy(cache_format.unpack(keys)), as_numpy(cache_format.unpack(values))
            want = reference.attention(q, k, v, HEAD_DIM**-0.5, reference.allowed_keys(length, 40))
            for rows in ("group", "single"):
                with using(packed_values=rows):
                    got = cache_format.attend(queries, keys, values, HEAD_DIM**-0.5, "causal" if length > 1 else None)
                yield Comparison(f"{bits} bits, {length} queries, rows by {rows}", "float32", got, want)


def fake_quantizers_family() -> Iterator[Comparison]:
    """Compare the fake quantizers of QDQBERT and their gradients, with one range per tensor and one per row."""
    x, _ = draw(10, 32, 64)
    exact = np.array(x)
    for bits in (8, 4):
        for axis, amax in ((None, np.float32(1.7)), (0, np.abs(exact).max(axis=1, keepdims=True))):
            quantizer = TensorQuantizer(num_bits=bits, axis=axis, amax=amax)
            want = reference.fake_quantize(exact, np.asarray(amax), *quantizer.descriptor.bounds)
            yield Comparison(f"{bits} bits, axis {axis}", "float32", quantizer(x), want)
            gradient = mx.grad(lambda x, quantizer=quantizer: mx.sum(quantizer(x)))(x)
            yield Comparison(f"gradient, {bits} bits, axis {axis}", "exact", gradient, np.abs(exact) <= amax)


FAMILIES: dict[str, Family] = {
    "masks": masks_family,
    "attention": attention_family,
    "rope": rope_family,
    "norms": norms_family,
    "packed products": packed_products_family,
    "packed caches": packed_caches_family,
    "sliding caches": caches_family,
    "fake quantizers": fake_quantizers_family,
    "models": models_family,
    "generation": generation_family,
    "training step": training_family,
}
"""Name -> comparisons, in the order in which they run: basic kernels first, so that the first failure is the cause."""


def run_all(progress: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Run all families on the default device.

    Args:
        progress: called with the result of each family.
    """
    results = []
    for name, family in FAMILIES.items():
        results.append(run_family(name, family))
        progress(results[-1])
    return results
