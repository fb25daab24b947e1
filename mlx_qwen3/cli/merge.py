"""`mlx-qwen3 merge`: merge an adapter into its base model and write an ordinary checkpoint."""

import argparse
import sys
import time
from contextlib import closing
from typing import Any

from .convert import DTYPES, MODES, RECIPES, ProgressBar, print_conversion
from .model_flags import add_gguf_file_flag, resolve_gguf_file


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags. The quantization flags are those of `convert`."""
    parser = subparsers.add_parser(
        "merge",
        help="merge an adapter into its base model",
        description="Merge a PEFT or mlx-lm adapter into its base model and write an ordinary checkpoint folder.",
    )
    parser.add_argument("--adapter", required=True, help="folder or Hub repository of the adapter")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--model", help="base model (default: the one that the adapter names)")
    parser.add_argument(
        "--revision", help="branch, tag or commit of the base model's Hub repository (default: its main branch)"
    )
    add_gguf_file_flag(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the merged weights (default: that of the base model)")
    parser.add_argument(
        "-q", "--quantize", action="store_true", help="quantize the merged weights and report the quality loss"
    )
    parser.add_argument("--q-bits", type=int, help="bits per weight: 2, 3, 4, 5, 6 or 8 (default: 4)")
    parser.add_argument("--q-group-size", type=int, help="quantization group size: 32, 64 or 128 (default: 64)")
    parser.add_argument("--q-mode", default="affine", choices=MODES, help="quantization mode (default: affine)")
    parser.add_argument("--quant-predicate", choices=RECIPES, help="mixed-bit recipe, instead of --q-bits")
    parser.add_argument("--report-text", metavar="FILE", help="text to measure quality on, instead of the bundled one")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Merge the adapter, print the result, and return the exit status."""
    from ..training.merging import merge

    resolve_gguf_file(args)
    bar = ProgressBar()
    started = time.perf_counter()
    bar.write(f"merging {args.adapter} into its base model")
    try:
        with closing(bar):
            done = merge(
                args.adapter,
                args.output,
                model=args.model,
                revision=args.revision,
                dtype=args.dtype,
                quantize=args.quantize,
                force=args.force,
                progress=bar,
                measuring=bar.measuring,
                q_bits=args.q_bits,
                q_group_size=args.q_group_size,
                q_mode=args.q_mode,
                quant_predicate=args.quant_predicate,
                report_text=args.report_text,
            )
    except KeyboardInterrupt:
        print(f"interrupted: {args.output} is unchanged. Run the same command again", file=sys.stderr)
        return 130
    if done is not None:
        print_conversion(done, time.perf_counter() - started)
    else:
        print(f"{args.output}: the merged model, not quantized")
    return 0
