"""`mlx-qwen3 bench`: prompt and decode speed, time to first token and memory on this machine, beside mlx-lm."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the verb and its flags."""
    parser = subparsers.add_parser("bench", help="measure speed, beside mlx-lm where installed", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="folder or Hub repository (default: the bundled model)")
    source.add_argument(
        "--random", metavar="SIZE", help="random weights of a Qwen3 size: 0.6B 1.7B 4B 8B 14B 32B small tiny"
    )
    parser.add_argument("--bits", type=int, nargs="+", help="with --random: 16 8 6 5 4 3 2 (default: 16)")
    parser.add_argument("--group-size", type=int, help="with --random: weights that share a scale (default: 64)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="for both packages (default: each its own; here float32 on a CPU)"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: MLX's")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="default: 512")
    parser.add_argument("--max-tokens", "-m", type=int, default=128, help="default: 128")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not (default: 5)")
    parser.add_argument("--no-mlx-lm", action="store_true", help="measure this package alone")
    parser.add_argument("--output", type=Path, help="append the table to this file, such as benchmarks/RESULTS.md")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, and appends it where asked."""
    packing = {name: getattr(args, name) for name in ("bits", "group_size") if getattr(args, name) is not None}
    if packing and args.random is None:
        flag = f"--{next(iter(packing)).replace('_', '-')}"
        raise InputError(f"{flag} needs --random SIZE: a checkpoint is measured as it is; mlx-qwen3 convert packs it")
    if args.output is not None and args.output.is_dir():
        raise InputError(f"--output {args.output} is a folder: name a file")
    import mlx.core as mx

    from ..bench import append_report, compare, markdown_report, this_machine
    from ..bench.contestants import contests

    if args.device == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        raise InputError("--device gpu: MLX finds no GPU here; leave it out or pass cpu")
    if args.device:
        mx.set_default_device(mx.Device(mx.DeviceType.gpu if args.device == "gpu" else mx.DeviceType.cpu, 0))
    machine = this_machine(mx.default_device())
    outcomes = []
    for contest in contests(
        model=args.model,
        size=args.random,
        dtype=args.dtype,
        beside_mlx_lm=not args.no_mlx_lm,
        **packing,
    ):
        outcomes.append(
            compare(
                contest,
                prompt_tokens=args.prompt_tokens,
                max_tokens=args.max_tokens,
                rounds=args.rounds,
                progress=lambda line: print(line, file=sys.stderr, flush=True),
            )
        )
    report = markdown_report(machine, outcomes, command_line(args))
    print(report, end="")
    if args.output is not None:
        append_report(args.output, report)
    return 0


def command_line(args: argparse.Namespace) -> str:
    """The command that would measure this again."""
    words = ["mlx-qwen3", "bench"]
    for flag in ("model", "random", "dtype", "device"):
        if getattr(args, flag) is not None:
            words += [f"--{flag}", str(getattr(args, flag))]
    words += ["--bits", *map(str, args.bits)] if args.bits is not None else []
    words += ["--group-size", str(args.group_size)] if args.group_size is not None else []
    words += ["--prompt-tokens", str(args.prompt_tokens), "--max-tokens", str(args.max_tokens)]
    words += ["--rounds", str(args.rounds)] + (["--no-mlx-lm"] if args.no_mlx_lm else [])
    return shlex.join(words)
