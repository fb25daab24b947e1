"""Compare sequence classification with transformers on PyTorch, with the same weights, device and texts.

    python benchmarks/classify.py [--shape 0.6b|tiny] [--dtype bfloat16] [--rounds 3] [--output FILE]

Weights and texts are random, so nothing is downloaded. Both implementations get the same texts in the same order, and
return one row of logits per text on the host. transformers runs as in its pipeline: batches in the order of the texts,
padded to the longest text of the batch, with a mask. Rounds are interleaved, and figures are medians of the rounds.
Zero-shot classification is compared with one prompt per label on this package's model, on a part of the texts.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen3 import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification
from mlx_qwen3.memory import machine_memory
from mlx_qwen3.tasks.batches import Piece, Runner
from mlx_qwen3.tasks.label_scores import LabelScorer, LabelTree

SHAPES = {
    "0.6b": {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}
Texts = list[list[int]]


def workloads(vocabulary: int, scale: float) -> dict[str, tuple[Texts, int, int | None]]:
    """Return name → (token ids, batch size of transformers, batch size of this package or None for its choice)."""
    draw = np.random.default_rng(0)

    def texts(lengths) -> Texts:
        return [draw.integers(1, vocabulary, size=int(length)).tolist() for length in lengths]

    def count(number: int) -> int:
        return max(2, int(number * scale))

    mixed = np.clip(draw.lognormal(4.3, 0.9, count(1024)), 8, 1024)
    return {
        "128 tokens, one at a time": (texts([128] * count(64)), 1, 1),
        "128 tokens, 32 at a time": (texts([128] * count(1024)), 32, 32),
        "16 tokens, 32 at a time": (texts([16] * count(2048)), 32, 32),
        "16 tokens, 32 at a time / as many as fit": (texts([16] * count(2048)), 32, None),
        "8 to 1024 tokens, 32 at a time / sorted": (texts(mixed), 32, None),
        "8 to 1024 tokens, 128 at a time / sorted": (texts(mixed), 128, None),
        "1024 tokens, 8 at a time": (texts([1024] * count(64)), 8, 8),
    }


class Ours:
    """Sequence classification as in the tasks of this package."""

    def __init__(self, folder: Path, dtype: str):
        self.model = Qwen3ForSequenceClassification.from_pretrained(folder, dtype=dtype)
        self.runner = Runner(self.model)

    def compute(self, call, last):
        return (self.model(**call, last_positions=last).logits.astype(mx.float32),)

    def __call__(self, texts: Texts, batch_size: int | None) -> np.ndarray:
        pieces = [Piece(ids) for ids in texts]
        if batch_size == 1:  # in the given order, without sorting by length
            return np.stack([self.runner.run([piece], self.compute)[0][0] for piece in pieces])
        return np.stack([row for (row,) in self.runner.run(pieces, self.compute, batch_size=batch_size)])


class Torch:
    """Sequence classification with transformers."""

    def __init__(self, folder: Path, dtype: str):
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        model = transformers.Qwen3ForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.to(self.device).eval()

    def release_memory(self) -> None:
        """Release the memory that PyTorch caches on the device."""
        if self.device != "cpu":
            getattr(self.torch, self.device).empty_cache()

    def __call__(self, texts: Texts, batch_size: int) -> np.ndarray:
        torch, results = self.torch, []
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                some = texts[start : start + batch_size]
                width = max(map(len, some))
                ids = torch.zeros((len(some), width), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, text in enumerate(some):
                    ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
                output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
                results.append(output.logits.float().cpu().numpy())
        return np.concatenate(results)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def classification(folder: Path, dtype: str, rounds: int, scale: float, vocabulary: int, only: str) -> list[str]:
    ours, plain = Ours(folder, dtype), Torch(folder, dtype)
    all_memory = mx.set_memory_limit(machine_memory() // 2)  # the other half is for PyTorch
    lines = [
        f"MLX on {mx.default_device()}, PyTorch on {plain.device}, {dtype}. Texts per second; median of {rounds}.",
        "",
        "| texts | mlx_qwen3 | transformers | ratio | largest difference of logits |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (texts, batch_size, own_size) in workloads(vocabulary, scale).items():
        if only not in name:
            continue
        plain.release_memory()  # both libraries cache freed memory of the same device
        for _ in range(2):  # warm up twice: a shape is compiled on its second use
            difference = float(np.abs(ours(texts, own_size) - plain(texts, batch_size)).max())
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            times[0].append(seconds(lambda: ours(texts, own_size)))  # noqa: B023
            times[1].append(seconds(lambda: plain(texts, batch_size)))  # noqa: B023
        rate, other = (len(texts) / statistics.median(some) for some in times)
        lines.append(f"| {name} | {rate:.1f} | {other:.1f} | {rate / other:.2f}× | {difference:.1e} |")
        print(lines[-1], file=sys.stderr, flush=True)
    mx.set_memory_limit(all_memory)
    return lines


def zero_shot(config: Qwen3Config, dtype: str, rounds: int, scale: float) -> list[str]:
    mx.random.seed(0)
    model = Qwen3ForCausalLM(config)
    model.set_dtype(getattr(mx, dtype))
    model.eval()
    mx.eval(model.parameters())
    draw = np.random.default_rng(1)
    labels = [draw.integers(1, config.vocab_size, size=1 + index % 3).tolist() for index in range(20)]
    count = max(2, int(1000 * scale))
    texts = [draw.integers(1, config.vocab_size, size=int(n)).tolist() for n in draw.integers(24, 160, count)]
    runner, scorer = Runner(model), LabelScorer(model, LabelTree(labels))

    def naive(text: list[int]) -> np.ndarray:
        scores = []
        for label in labels:
            logits = model(mx.array([[*text, *label]]), use_cache=False).logits[0, len(text) - 1 : -1]
            chances = logits.astype(mx.float32) - mx.logsumexp(logits.astype(mx.float32), axis=-1, keepdims=True)
            scores.append(chances[mx.arange(len(label)), mx.array(label)].sum().item())
        return np.array(scores)

    def batched(some: Texts) -> np.ndarray:
        return np.stack([row for (row,) in runner.run([Piece(ids) for ids in some], scorer)])

    part = texts[: max(2, count // 40)]
    difference = float(np.abs(batched(part) - np.stack([naive(text) for text in part])).max())
    batched(texts)
    batched(texts)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: batched(texts)))
        theirs.append(seconds(lambda: [naive(text) for text in part]))
    rate, other = len(texts) / statistics.median(ours), len(part) / statistics.median(theirs)
    return [
        "",
        f"Zero-shot, 20 labels of 1 to 3 tokens, {len(texts)} texts of 24 to 160 tokens, texts per second:",
        "",
        f"| one pass over the labels' tree | one prompt per label ({len(part)} texts) | ratio | largest difference |",
        "| ---: | ---: | ---: | ---: |",
        f"| {rate:.1f} | {other:.2f} | {rate / other:.1f}× | {difference:.1e} |",
    ]


def main() -> None:
    gpu = mx.default_device().type == mx.DeviceType.gpu
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="0.6b" if gpu else "tiny")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0 if gpu else 0.05, help="fraction of the texts to run")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    parser.add_argument("--only", default="", help="run only rows whose name contains this, and no zero-shot")
    options = parser.parse_args()
    if not (find_spec("torch") and find_spec("transformers")):
        parser.error("torch and transformers are required: pip install -e '.[reference]'")
    config = Qwen3Config(**SHAPES[options.shape], max_position_embeddings=4096, rope_theta=1e6, pad_token_id=0)
    config.tie_word_embeddings = True
    lines = [
        f"Shape {options.shape}, {platform.machine()}, mlx {version('mlx')}, torch {version('torch')}, "
        f"transformers {version('transformers')}. Command: `python benchmarks/classify.py {' '.join(sys.argv[1:])}`.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        mx.random.seed(0)
        model = Qwen3ForSequenceClassification(config)
        model.set_dtype(getattr(mx, options.dtype))
        model.save_pretrained(folder)
        del model
        lines += classification(
            Path(folder), options.dtype, options.rounds, options.scale, config.vocab_size, options.only
        )
    mx.clear_cache()
    if not options.only:
        lines += zero_shot(config, options.dtype, options.rounds, options.scale)
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
