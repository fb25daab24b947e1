"""Compare prompt-lookup decoding with plain decoding, on text that repeats the prompt and on random text.

    python benchmarks/prompt_lookup.py                       the bundled model
    python benchmarks/prompt_lookup.py --random 0.6B --bits 4

Every forward pass is computed, but its result is replaced with the next token of a given text, so that the share of
accepted drafts depends on the text only. The text is a passage of the prompt, or random tokens.
"""

import argparse
import statistics
import time

import mlx.core as mx
import numpy as np

from mlx_qwen3 import generate_step, load
from mlx_qwen3.bench import random_model, this_machine
from mlx_qwen3.generation.prompt_lookup import prompt_lookup


class Dictated:
    """A model that computes its logits, then raises the logit of the next token of `text`."""

    def __init__(self, model, text: list[int]):
        self.model, self.config, self.text = model.for_inference(), model.config, mx.array(text)

    def step_logits(self, ids, cache, keep=1):
        stop = cache.offset + ids.shape[1]
        logits = self.model.step_logits(ids, cache, keep)
        wanted = self.text[stop - keep + 1 : stop + 1]
        return mx.where(mx.arange(logits.shape[-1]) == wanted[None, :, None], mx.array(1e4, logits.dtype), logits)

    def fill_cache(self, ids, cache):
        self.model.fill_cache(ids, cache)


def time_steps(model, ids, max_tokens, decoding):
    """Generate, and return the tokens and the seconds per token after the first."""
    steps = generate_step(model, ids, max_tokens=max_tokens, decoding=decoding)
    tokens = [next(steps)]
    start = time.perf_counter()
    tokens += list(steps)
    return tokens, (time.perf_counter() - start) / (len(tokens) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--random")
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", help="dtype of random weights")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    if args.cpu:
        mx.set_default_device(mx.cpu)
    if args.random:
        model = random_model(args.random, getattr(mx, args.dtype), args.bits)
    else:
        model, _ = load(args.model)
    print(this_machine(mx.default_device()))
    print("| text | plain, tokens/s | with lookup, tokens/s | ratio | same tokens |")
    print("| --- | ---: | ---: | ---: | --- |")
    length = args.prompt_tokens + args.max_tokens + 1
    draw = np.random.default_rng(0)
    passage = draw.integers(0, model.config.vocab_size, args.prompt_tokens)
    texts = {
        "copying": np.resize(passage, length + 8).tolist(),
        "free": draw.integers(0, model.config.vocab_size, length).tolist(),
    }
    for name, text in texts.items():
        dictated, ids, rounds = Dictated(model, text), text[: args.prompt_tokens + 8], []
        for turn in range(args.rounds + 1):
            found = {}
            for decoding in (None, prompt_lookup()) if turn % 2 else (prompt_lookup(), None):
                found[decoding is None] = time_steps(dictated, ids, args.max_tokens - 8, decoding)
            if turn:
                rounds.append((found[True][1], found[False][1], found[True][0] == found[False][0]))
        plain, drafted = (statistics.median(column) for column in list(zip(*rounds, strict=True))[:2])
        ratio = statistics.median(one / two for one, two, _ in rounds)
        same = "yes" if all(agree for *_, agree in rounds) else "no"
        print(f"| {name} | {1 / plain:.0f} | {1 / drafted:.0f} | {ratio:.2f}× | {same} |", flush=True)


if __name__ == "__main__":
    main()
