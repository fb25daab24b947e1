"""Measure prompts and batches of texts for several numbers of layers per evaluation, and compare with mlx-lm.

    python benchmarks/prefill.py [--size 0.6B] [--bits 16 8 4] [--tokens 512 2048 6000] [--rounds 3] [--encode]

Weights are random, so nothing is downloaded. All implementations compute the same prompts on the same arrays in
interleaved rounds. Figures are medians of the rounds after one warm-up round. "auto" is the default of the package,
"graph" evaluates a whole pass at its end, and the others fix the layers per step or the tokens per pass.

`--encode` measures batches of texts instead. There "before" is a compiled pass in one graph with a table of cosines and
sines.
"""

import argparse
import statistics
import sys
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen3.bench import random_model
from mlx_qwen3.bench.comparison import own_runner
from mlx_qwen3.bench.encoding import measure_encoding
from mlx_qwen3.bench.measure import measure
from mlx_qwen3.bench.mlx_lm_reference import mlx_lm_model, mlx_lm_runner
from mlx_qwen3.layers.devices import using

WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "graph": {"layers_per_step": 0},
    "1/2 layer": {"layers_per_step": 0.5},
    "1 layer": {"layers_per_step": 1},
    "2 layers": {"layers_per_step": 2},
    "4 layers": {"layers_per_step": 4},
    "table": {"prefill_rope": "table"},
    "4096 per pass": {"prefill_step_size": 4096},
    "8192 per pass": {"prefill_step_size": 8192},
}
ENCODINGS: dict[str, tuple[dict[str, Any], bool | None]] = {
    "before": ({"layers_per_step": 0, "prefill_rope": "table"}, True),
    "before, not compiled": ({"layers_per_step": 0, "prefill_rope": "table"}, False),
    "graph": ({"layers_per_step": 0}, False),
    "graph, compiled": ({"layers_per_step": 0}, True),
    "1/2 layer": ({"layers_per_step": 0.5}, False),
    "1 layer": ({"layers_per_step": 1}, False),
    "2 layers": ({"layers_per_step": 2}, False),
    "auto": ({}, None),
}
SHAPES = ((32, 128), (256, 32), (8, 1024), (128, 128), (1, 128))


def prompts(model, size: str, bits: int, lengths: list[int], rounds: int, new_tokens: int, beside: bool) -> None:
    own = own_runner(model)
    other = mlx_lm_runner(mlx_lm_model(model, model.dtype)) if beside else None
    for length in lengths:
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, length).tolist()
        ways = {name: change for name, change in WAYS.items() if length > 4096 or "per pass" not in name}
        names = [*ways, *(["mlx-lm"] if other else [])]
        found: dict[str, list[Any]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name in names if turn % 2 else names[::-1]:
                with using(**ways[name]) if name in ways else nullcontext():
                    run = other if name == "mlx-lm" else own
                    one = measure(run, ids, new_tokens if name in ("auto", "mlx-lm") else 2)
                if turn:
                    found[name].append(one)
        for name, rows in found.items():
            prompt, decode, first, working, peak = (
                statistics.median(getattr(row, figure) for row in rows)
                for figure in ("prompt_tps", "decode_tps", "first_token", "working", "peak_memory")
            )
            cells = [f"{prompt:.0f}", f"{first * 1e3:.1f}", f"{decode:.1f}" if name in ("auto", "mlx-lm") else ""]
            cells += [f"{working / 2**30:.3f}", f"{peak / 2**30:.3f}"]
            print(f"| {size} {bits} bits | {length} | {name} | {' | '.join(cells)} |", flush=True)
        if other:
            pairs = list(zip(found["auto"], found["mlx-lm"], strict=True))
            ratios = [
                statistics.median(getattr(a, figure) / getattr(b, figure) for a, b in pairs)
                for figure in ("prompt_tps", "first_token", "decode_tps", "working", "peak_memory")
            ]
            print(f"| | | **ratio** | {' | '.join(f'{ratio:.2f}×' for ratio in ratios)} |", flush=True)


def encodings(model, size: str, shapes, rounds: int, batches: int, ways: list[str]) -> None:
    for shape in shapes:
        for name in ways:
            changes, compiled = ENCODINGS[name]
            options: dict[str, Any] = {"rounds": rounds, "batches": batches, "compiled": compiled}
            with using(**changes):
                (row,) = measure_encoding(model, [shape], tasks=["classification"], **options)
            texts = f"{shape[0]} × {shape[1]}"
            print(f"| {size} | {texts} | {name} | {row.texts_per_second:.1f} | {row.working / 2**30:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6B")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 6000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--encode", action="store_true", help="batches of texts instead of prompts")
    parser.add_argument("--shapes", nargs="+", help="with --encode: texts x tokens, such as 32x128")
    parser.add_argument("--batches", type=int, default=8, help="with --encode: batches per round (default: 8)")
    parser.add_argument("--ways", nargs="+", choices=ENCODINGS, default=list(ENCODINGS), help="with --encode")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--no-mlx-lm", action="store_true")
    args = parser.parse_args()
    if args.cpu:
        mx.set_default_device(mx.Device(mx.cpu, 0))
    print(f"`python benchmarks/{' '.join(sys.argv).rpartition('/')[2]}`\n")
    if args.encode:
        print("| model | texts × tokens | way | texts/s | peak above weights GiB |\n| --- | --- | --- | ---: | ---: |")
    else:
        print("| model | prompt | way | prompt tok/s | first token ms | decode tok/s | peak above weights | peak GiB |")
        print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for bits in [16] if args.encode else args.bits:
        model = random_model(args.size, getattr(mx, args.dtype), bits)
        if args.encode:
            shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes] if args.shapes else SHAPES
            encodings(model, args.size, shapes, args.rounds, args.batches, args.ways)
        else:
            prompts(model, args.size, bits, args.tokens, args.rounds, args.new_tokens, not args.no_mlx_lm)
        del model
        mx.clear_cache()


if __name__ == "__main__":
    main()
