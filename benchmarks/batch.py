"""Compare batch generation with mlx-lm's BatchGenerator and with single sequences, on the same random weights.

python benchmarks/batch.py --random 0.6B --bits 4 --prompts 32
python benchmarks/batch.py --random 0.6B --prompts 128 --at-once 32 --shortest-answer 8
"""

import argparse
import importlib
import statistics
import time

import mlx.core as mx
import numpy as np

from mlx_qwen3 import generate_step
from mlx_qwen3.bench import random_model, this_machine
from mlx_qwen3.bench.mlx_lm_reference import mlx_lm_model
from mlx_qwen3.generation.continuous_batch import BatchSequence, decode_rows


def run_own(model, prompts, budgets, at_once):
    """Return the number of generated tokens, and the seconds for all prompts, with this package."""
    start = time.perf_counter()
    found = decode_rows(
        model.for_inference(),
        [BatchSequence(i, prompts[i], budgets[i]) for i in range(len(prompts))],
        lambda token: False,
        batch_size=at_once,
    )
    count = sum(1 for _ in found)
    return count, time.perf_counter() - start


def run_mlx_lm(reference, prompts, budgets, at_once):
    """Return the same figures for mlx-lm."""
    module = importlib.import_module("mlx_lm.generate")
    stream = mx.default_stream(mx.default_device())
    start = time.perf_counter()
    generator = module.BatchGenerator(reference, completion_batch_size=at_once, stream=stream)
    generator.insert(prompts, budgets)
    count = 0
    while responses := generator.next_generated():
        count += len(responses)
    seconds = time.perf_counter() - start
    generator.close()
    return count, seconds


def measure_single(model, prompt, max_tokens):
    """Return the decode speed of one sequence in tokens per second, without the prompt."""
    steps = generate_step(model, prompt, max_tokens=max_tokens)
    next(steps)
    start = time.perf_counter()
    count = sum(1 for _ in steps)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", default="tiny")
    parser.add_argument("--bits", type=int, nargs="+", default=[16])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--shortest", type=int, default=16)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument(
        "--shortest-answer", type=int, help="minimum of the random number of new tokens (default: --max-tokens)"
    )
    parser.add_argument("--at-once", type=int, help="sequences decoded together (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    if args.cpu:
        mx.set_default_device(mx.cpu)
    at_once = args.at_once or args.prompts
    print(this_machine(mx.default_device()))
    print("| model | package | tokens/s | over mlx-lm | over one sequence |\n| --- | --- | ---: | ---: | ---: |")
    for bits in args.bits:
        model = random_model(args.random, getattr(mx, args.dtype), bits, args.group_size)
        reference = mlx_lm_model(model)
        draw = np.random.default_rng(0)
        lengths = draw.integers(args.shortest, args.longest + 1, args.prompts)
        prompts = [draw.integers(0, model.config.vocab_size, n).tolist() for n in lengths]
        shortest = args.shortest_answer or args.max_tokens
        budgets = draw.integers(shortest, args.max_tokens + 1, args.prompts).tolist()
        middle = sorted(prompts, key=len)[len(prompts) // 2]
        rounds = []
        for index in range(args.rounds + 1):
            a, own = run_own(model, prompts, budgets, at_once)
            b, other = run_mlx_lm(reference, prompts, budgets, at_once)
            assert a == b == sum(budgets), (a, b)
            if index:
                rounds.append((a / own, b / other, measure_single(model, middle, args.max_tokens)))
        own, other, single = (statistics.median(column) for column in zip(*rounds, strict=True))
        over = statistics.median(one / two for one, two, _ in rounds)
        many = statistics.median(one / three for one, _, three in rounds)
        label = f"{args.random} random, {'unpacked' if bits >= 16 else f'{bits} bits'}"
        print(f"| {label} | mlx-qwen3 | {own:.0f} | {over:.2f}× | {many:.1f}× |")
        print(f"| {label} | mlx-lm | {other:.0f} | | {other / single:.1f}× |", flush=True)
    print(f"{args.prompts} prompts of {args.shortest} to {args.longest} tokens, {at_once} at once;")
    print(f"{args.shortest_answer or args.max_tokens} to {args.max_tokens} new tokens each;")
    print("tokens/s include the time of the prompts, except for the single sequence.")


if __name__ == "__main__":
    main()
