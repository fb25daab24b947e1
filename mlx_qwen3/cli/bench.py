"""Measure speed and memory on this machine and print a Markdown table.

Generation is measured side by side with mlx-lm; --full adds classification, embeddings and a long prompt."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from .model_flags import add_gguf_file_flag, add_revision_flag, check_revision, resolve_gguf_file

DTYPES = ("float32", "bfloat16", "float16")
LONG_PROMPT = 16384
LONG_ROUNDS = 2


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("bench", help="measure speed and memory", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="a folder or Hub repository (default: the bundled model)")
    source.add_argument(
        "--random", metavar="SIZE", help="random weights in a Qwen3 size: 0.6B 1.7B 4B 8B 14B 32B small tiny"
    )
    add_revision_flag(parser)
    add_gguf_file_flag(parser)
    parser.add_argument(
        "--bits",
        type=int,
        nargs="+",
        help="with --random: bits per weight, one or more of 16 8 6 5 4 3 2 (default: 16)",
    )
    parser.add_argument("--group-size", type=int, help="with --random: quantization group size (default: 64)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="computation dtype of both packages (default: that of each package; float32 here on a CPU)",
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), help="device to measure on (default: MLX's default device)")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="tokens of the prompt (default: 512)")
    parser.add_argument("--max-tokens", "-m", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up round (default: 5)")
    parser.add_argument("--no-mlx-lm", action="store_true", help="do not measure mlx-lm")
    parser.add_argument(
        "--full",
        action=argparse.BooleanOptionalAction,
        help="also measure classification, embeddings and a long prompt (default: only on a GPU)",
    )
    parser.add_argument(
        "--long-tokens", type=int, default=LONG_PROMPT, help=f"tokens of the long prompt (default: {LONG_PROMPT})"
    )
    parser.add_argument(
        "--variants",
        action="store_true",
        help="also compare the values of every setting that depends on the device, in alternating order",
    )
    parser.add_argument(
        "--wired",
        nargs="?",
        type=float,
        const=0.0,
        metavar="GB",
        help="wire memory on a Mac; without a number, as much as Metal recommends (default: not wired)",
    )
    parser.add_argument("--output", type=Path, help="append the table to a file, such as benchmarks/RESULTS.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round to FILE")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, and write them to the files of `--output` and `--json`."""
    check_revision(args)
    resolve_gguf_file(args)
    packing = {name: getattr(args, name) for name in ("bits", "group_size") if getattr(args, name) is not None}
    if packing and args.random is None:
        flag = f"--{next(iter(packing)).replace('_', '-')}"
        raise InputError(
            f"{flag} needs --random SIZE. Quantize a checkpoint with mlx-qwen3 convert before measuring it."
        )
    for flag, path in (("--output", args.output), ("--json", args.json)):
        if path is not None and path.is_dir():
            raise InputError(f"{flag} {path} is a folder. Give the name of a file.")
    import mlx.core as mx

    from ..bench import append_report, compare, json_report, markdown_report, measure_variants, this_machine
    from ..bench.candidates import benchmark_candidates
    from ..bench.encoding import measure_encoding
    from ..files import write_atomically
    from ..memory import wire_memory

    if args.device == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        raise InputError("--device gpu: MLX finds no GPU on this machine. Pass cpu, or leave the flag out.")
    if args.device:
        mx.set_default_device(mx.Device(mx.DeviceType.gpu if args.device == "gpu" else mx.DeviceType.cpu, 0))
    if args.wired is not None:
        wire_memory(args.wired or None)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    full = on_gpu if args.full is None else args.full
    machine = this_machine(mx.default_device())
    outcomes, encodings, variants = [], [], []

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for benchmark in benchmark_candidates(
        model=args.model,
        revision=args.revision,
        size=args.random,
        dtype=args.dtype,
        beside_mlx_lm=not args.no_mlx_lm,
        **packing,
    ):
        progress(f"{benchmark.label} on {machine}")
        lengths = {"prompt_tokens": args.prompt_tokens, "max_tokens": args.max_tokens, "rounds": args.rounds}
        outcomes.append(compare(benchmark, **lengths, progress=progress))
        limit = benchmark.model.config.max_position_embeddings
        if full:
            longest = min(args.long_tokens, limit - 32)
            outcomes.append(
                compare(benchmark, prompt_tokens=longest, max_tokens=32, rounds=LONG_ROUNDS, progress=progress)
            )
            encodings += [(benchmark.label, row) for row in measure_encoding(benchmark.model, progress=progress)]
        if args.variants:
            tokens = min(2048 if on_gpu else args.prompt_tokens, limit // 2)
            rows = measure_variants(benchmark.model, prompt_tokens=tokens, max_tokens=24, rounds=2, progress=progress)
            variants.append((benchmark.label, rows))
    report = markdown_report(machine, outcomes, command_line(args), encodings, variants)
    print(report, end="")
    if args.output is not None:
        append_report(args.output, report)
    if args.json is not None:
        values = json_report(machine, outcomes, command_line(args), encodings, variants)
        write_atomically(args.json, json.dumps(values, indent=2) + "\n", error=InputError)
    return 0


def command_line(args: argparse.Namespace) -> str:
    """Return the command line that repeats this measurement."""
    words = ["mlx-qwen3", "bench"]
    for flag in ("model", "revision", "random", "dtype", "device"):
        if getattr(args, flag) is not None:
            words += [f"--{flag}", str(getattr(args, flag))]
    words += ["--bits", *map(str, args.bits)] if args.bits is not None else []
    words += ["--group-size", str(args.group_size)] if args.group_size is not None else []
    words += ["--prompt-tokens", str(args.prompt_tokens), "--max-tokens", str(args.max_tokens)]
    words += ["--rounds", str(args.rounds)] + (["--no-mlx-lm"] if args.no_mlx_lm else [])
    words += ["--full" if args.full else "--no-full"] if args.full is not None else []
    words += ["--long-tokens", str(args.long_tokens)] if args.long_tokens != LONG_PROMPT else []
    words += ["--variants"] if args.variants else []
    if args.wired is not None:
        words += ["--wired", *([f"{args.wired:g}"] if args.wired else [])]
    return shlex.join(words)
