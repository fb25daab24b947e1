"""Measure the time to first token of a second chat turn with the chat's cache, a prefix cache and a saved cache.

python benchmarks/second_turn.py --random 0.6B --tokens 16384
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen3 import PrefixCache, Qwen3Config, Qwen3ForCausalLM, generate_step, load_cache, save_cache
from mlx_qwen3.bench import SIZES, this_machine


def first_token(model, ids, cache):
    """Return the seconds to the first token for ids that are not in the cache yet."""
    start = time.perf_counter()
    steps = generate_step(model, ids, cache, max_tokens=2)
    next(steps)
    seconds = time.perf_counter() - start
    steps.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", default="tiny")
    parser.add_argument("--layers", type=int, help="number of layers (default: all), for a slow machine")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    if args.cpu:
        mx.set_default_device(mx.cpu)
    fields = dict(SIZES[args.random])
    if args.layers:
        fields["num_hidden_layers"] = args.layers
    model = Qwen3ForCausalLM(Qwen3Config(**fields)).eval()
    model.set_dtype(getattr(mx, args.dtype))
    mx.eval(model.parameters())
    draw = np.random.default_rng(0)
    first = draw.integers(0, fields["vocab_size"], args.tokens).tolist()
    names = ("first turn", "second turn, same cache", "second turn, kept prefix", "second turn, from a file")
    figures: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            # vary the number of new tokens as in a chat, so that nothing compiled for a length is reused
            new = args.new_tokens + 3 * turn
            prefixes, cache = PrefixCache(8 << 30), model.make_cache(slack=32)
            figures["first turn"].append(first_token(model, first, cache))
            second = [*first, *draw.integers(0, fields["vocab_size"], new).tolist()]
            cache.trim(cache.offset - args.tokens)
            figures["second turn, same cache"].append(first_token(model, second[args.tokens :], cache))
            cache.trim(cache.offset - args.tokens)
            prefixes.insert(first, cache)
            save_cache(Path(folder) / "cache.safetensors", cache, model.config)
            second += draw.integers(0, fields["vocab_size"], 1).tolist()
            start = time.perf_counter()
            kept, known = prefixes.longest_prefix(second[:-1])
            found = time.perf_counter() - start
            figures["second turn, kept prefix"].append(found + first_token(model, second[known:], kept))
            second += draw.integers(0, fields["vocab_size"], 1).tolist()
            start = time.perf_counter()
            loaded, _ = load_cache(Path(folder) / "cache.safetensors", model.config)
            found = time.perf_counter() - start
            again = found + first_token(model, second[args.tokens :], loaded)
            figures["second turn, from a file"].append(again)
    print(this_machine(mx.default_device()))
    print(f"{args.tokens} tokens, then {args.new_tokens} and a few more; medians of {args.rounds}\n")
    print("| | first token ms | of the first turn |\n| --- | ---: | ---: |")
    whole = statistics.median(figures["first turn"])
    for name, seconds in figures.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle * 1e3:.0f} | {middle / whole:.3f} |")


if __name__ == "__main__":
    main()
