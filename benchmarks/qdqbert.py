"""Measure the cost of fake quantization and packing of a BERT: sentences per second, and change of the embeddings.

    python benchmarks/qdqbert.py speed [--device gpu] [--shape base] [--batch 32] [--length 64]
    python benchmarks/qdqbert.py quality FOLDER [--methods max percentile mse entropy]

`speed` times a random BERT in float32, fake-quantized, packed in 8 bits and unpacked again, and PyTorch's BertModel on
the same device if it is installed. `quality` calibrates a sentence encoder on 200 sentences. It reports the cosine
similarity between its mean-pooled embeddings of other sentences and those of the float model. The sentences are the
first paragraphs of docstrings of the standard library, so nothing is downloaded.
"""

import argparse
import importlib
import inspect
import re
import time

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_qwen3

MODULES = [
    "argparse",
    "ast",
    "asyncio",
    "calendar",
    "codecs",
    "collections",
    "configparser",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "fractions",
    "functools",
    "gettext",
    "glob",
    "heapq",
    "html",
    "http",
    "imaplib",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "logging",
    "mailbox",
    "math",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "random",
    "re",
    "sched",
    "selectors",
    "shelve",
    "shutil",
    "smtplib",
    "socket",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "trace",
    "typing",
    "unittest",
    "urllib.request",
    "uuid",
    "warnings",
    "wave",
    "weakref",
    "zipfile",
]
SHAPES = {
    "mini": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}


def sentences() -> list[str]:
    """Return English sentences of 40 to 250 characters, in a fixed random order."""
    found = []
    for name in MODULES:
        for _, value in sorted(vars(importlib.import_module(name)).items()):
            members = [v for _, v in sorted(vars(value).items())] if inspect.isclass(value) else []
            for documented in [value, *members]:
                text = inspect.getdoc(documented) if callable(documented) else None
                first = " ".join((text or "").split("\n\n")[0].split())
                if 40 <= len(first) <= 250 and "->" not in first and re.match(r"[A-Z][a-z]+ [a-z]", first):
                    found.append(first)
    found = list(dict.fromkeys(found))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def megabytes(model, within: str = "") -> float:
    """Return the size in MB of a model's weights, or of the weights whose name contains `within`."""
    return sum(array.nbytes for name, array in tree_flatten(model.parameters()) if within in name) / 1e6


def time_run(run, repeat: int) -> float:
    """Return the median time of `run` in seconds, after one warm-up run."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def speed(args: argparse.Namespace) -> None:
    device = mx.gpu if args.device == "gpu" else mx.cpu
    mx.set_default_device(device)
    model = mlx_qwen3.QDQBertModel(mlx_qwen3.QDQBertConfig(**SHAPES[args.shape]))
    model.eval()
    mx.eval(model.parameters())
    ids = mx.random.randint(5, 30000, (args.batch, args.length))
    mask = mx.ones_like(ids)
    rows = []

    def add(name: str) -> None:
        seconds = time_run(lambda: mx.eval(model(ids, attention_mask=mask).pooler_output), args.repeat)
        rows.append((name, args.batch / seconds, megabytes(model, "encoder")))

    model.disable_quantizers("")
    add("float32")
    model.enable_quantizers("")
    add("fake-quantized, dynamic")
    mlx_qwen3.calibrate(model, [{"input_ids": ids}])
    add("fake-quantized, calibrated")
    model.pack(bits=8)
    add("packed 8 bits")
    model.disable_quantizers("matmul_|add_")
    add("packed 8 bits, only its inputs quantized")
    model.disable_quantizers("")
    add("packed 8 bits, float activations")
    model.enable_quantizers("")
    model.unpack()
    model.disable_quantizers("_weight_quantizer")
    add("unpacked, weights not rounded again")
    torch_row = torch_speed(args, np.array(ids))
    if torch_row:
        rows.append(torch_row)
    print(f"BERT {args.shape}, batch {args.batch}, {args.length} tokens, {args.device}, MLX {mx.__version__}")
    for name, rate, size in rows:
        print(f"| {name:42s} | {rate:9.1f} sentences/s | {size:7.1f} MB in the layers |")


def torch_speed(args: argparse.Namespace, ids: np.ndarray) -> tuple[str, float, float] | None:
    """Return the row of PyTorch for the same shape, or None if PyTorch or transformers is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    device = "cpu" if args.device == "cpu" else "cuda" if torch.cuda.is_available() else "mps"
    torch.backends.cuda.matmul.allow_tf32 = False
    model = transformers.BertModel(transformers.BertConfig(**SHAPES[args.shape])).eval().to(device)
    tensor = torch.tensor(ids, device=device)

    def run() -> None:
        with torch.no_grad():
            model(tensor).pooler_output.cpu()

    seconds = time_run(run, args.repeat)
    size = sum(p.nbytes for p in model.encoder.parameters()) / 1e6
    return f"torch {torch.__version__} BertModel float32", args.batch / seconds, size


def quality(args: argparse.Namespace) -> None:
    mx.set_default_device(mx.gpu if args.device == "gpu" else mx.cpu)
    tokenizer = mlx_qwen3.AutoTokenizer.from_pretrained(args.folder)
    texts = sentences()
    calibration, test = texts[: args.count], sorted(texts[args.count : args.count + args.test], key=len)

    def batches(chosen: list[str]) -> list:
        parts = [chosen[i : i + 20] for i in range(0, len(chosen), 20)]
        return [tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="mlx") for part in parts]

    def embed(model) -> np.ndarray:
        rows = []
        for batch in batches(test):
            weights = mx.array(batch["attention_mask"])[..., None].astype(mx.float32)
            mean = (model(**batch).last_hidden_state * weights).sum(axis=1) / weights.sum(axis=1)
            rows.append(np.array(mean / mx.linalg.norm(mean, axis=-1, keepdims=True)))
        return np.concatenate(rows)

    model = mlx_qwen3.QDQBertModel.from_pretrained(args.folder)
    model.disable_quantizers("")
    reference = embed(model)

    def row(name: str) -> None:
        cosine = (embed(model) * reference).sum(axis=1)
        size = f"{megabytes(model):.1f} MB, layers {megabytes(model, 'encoder'):.1f} MB"
        print(f"| {name:44s} | mean {cosine.mean():.4f} | least {cosine.min():.4f} | {size} |", flush=True)

    for method in args.methods:
        model.enable_quantizers("")
        mlx_qwen3.calibrate(
            model, batches(sorted(calibration, key=len)), method, percentile=args.percentile, stride=args.stride
        )
        row(f"fake-quantized, {method}")
        model.disable_quantizers("add_|matmul_")
        row(f"fake-quantized, {method}, linear layers only")
    model.enable_quantizers("")
    model.pack(bits=8)
    row(f"packed 8 bits, {args.methods[-1]}")
    model.disable_quantizers("add_|matmul_")
    row(f"packed 8 bits, {args.methods[-1]}, linear layers only")
    model.disable_quantizers("")
    row("packed 8 bits, float activations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("speed")
    one.add_argument("--shape", choices=SHAPES, default="mini")
    one.add_argument("--batch", type=int, default=16)
    one.add_argument("--length", type=int, default=64)
    one.add_argument("--repeat", type=int, default=5)
    one.set_defaults(run=speed)
    two = commands.add_parser("quality")
    two.add_argument("folder")
    two.add_argument("--methods", nargs="+", default=["max", "percentile", "mse", "entropy"])
    two.add_argument("--percentile", type=float, default=99.99)
    two.add_argument("--stride", type=int, default=8)
    two.add_argument("--count", type=int, default=200)
    two.add_argument("--test", type=int, default=100)
    two.set_defaults(run=quality)
    for command in (one, two):
        command.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
