"""`mlx-qwen3 convert`: convert a Hugging Face checkpoint to an MLX folder or a GGUF file."""

import argparse
import os
import shlex
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .model_flags import add_gguf_file_flag
from .progress import StageProgress

if TYPE_CHECKING:
    from ..conversion import Conversion

MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
GGUF_TYPES = ("f16", "bf16", "q8_0", "q4_0")
DTYPES = ("float16", "bfloat16", "float32")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags. The flags that mlx_lm.convert also has keep its names."""
    parser = subparsers.add_parser(
        "convert",
        help="convert and quantize a checkpoint",
        description="Convert a Qwen3 or QDQBert checkpoint (bf16, fp16, fp32, FP8, GPTQ, AWQ, GGUF) to an MLX folder "
        "or a GGUF file, and quantize it.",
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a folder, a GGUF file or a Hub id")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="folder or file to write (default: mlx_model)")
    parser.add_argument("--hf-path", "--model", help="same as SOURCE")
    add_gguf_file_flag(parser)
    parser.add_argument("--mlx-path", help="same as TARGET")
    parser.add_argument(
        "--to", choices=("mlx", "gguf"), default="mlx", help="write an MLX folder (default) or a GGUF file"
    )
    parser.add_argument("--gguf-type", choices=GGUF_TYPES, help="type of the matrices in the GGUF file (default: f16)")
    parser.add_argument("-q", "--quantize", action="store_true", help="quantize the weights")
    parser.add_argument("--q-bits", type=int, help="bits per weight: 2, 3, 4, 5, 6 or 8 (default: 4)")
    parser.add_argument("--q-group-size", type=int, help="quantization group size: 32, 64 or 128 (default: 64)")
    parser.add_argument("--q-mode", default="affine", choices=MODES, help="quantization mode (default: affine)")
    parser.add_argument("--quant-predicate", choices=RECIPES, help="mixed-bit recipe, instead of --q-bits")
    parser.add_argument(
        "--q-override",
        action="append",
        default=[],
        metavar="PATTERN=BITS[:GROUP[:MODE]]|none",
        help="another format for the layers that match a pattern; may be repeated, the last match wins",
    )
    parser.add_argument(
        "--target-bpw",
        type=float,
        help="choose the format of each layer by its measured sensitivity, for at most this many bits per weight on "
        "average; replaces --q-bits, --q-group-size, --q-mode and --quant-predicate",
    )
    parser.add_argument("--calibration-text", metavar="FILE", help="text to measure sensitivity on, for --target-bpw")
    parser.add_argument("--quantize-heads", action="store_true", help="also quantize classification and other heads")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of scales and unquantized weights (default: the checkpoint's)"
    )
    parser.add_argument("-d", "--dequantize", action="store_true", help="dequantize the weights")
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure the quality loss of quantization (default: with --report-text, and with -q if the model fits "
        "into memory)",
    )
    parser.add_argument("--report-text", metavar="FILE", help="text to measure quality on, instead of the bundled one")
    parser.add_argument(
        "--requantize-bits",
        type=int,
        default=8,
        metavar="BITS",
        help="bits for GPTQ and AWQ layers whose codes MLX cannot represent, such as layers with reordered groups "
        "(default: 8)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check that the SHA-256 of the source files is the same before and after"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository (default: its main branch)")
    parser.add_argument("--upload-repo", help="Hub repository to upload the result to")
    parser.add_argument(
        "--force", action="store_true", help="replace an existing target; accept NaN and infinite weights"
    )
    parser.set_defaults(run=run)
    return parser


class ProgressBar(StageProgress):
    """Show the progress and the remaining time of a conversion on standard error."""

    def __call__(self, done: int, total: int) -> None:
        """Show how many bytes are converted."""
        self.show("converting", done, total, unit="B", unit_scale=True)

    def measuring(self, what: str, done: int, total: int) -> None:
        """Show how many layers or pieces of text are measured."""
        self.show(f"measuring {what}", done, total)


def run(args: argparse.Namespace) -> int:
    """Convert the checkpoint, print the result, and return the exit status."""
    args.hf_path = _choose_one("SOURCE", args.source, "--hf-path", args.hf_path)
    if args.hf_path is None:
        raise InputError("there is no checkpoint to convert. Give a folder, a GGUF file or a Hub id.")
    args.mlx_path = _choose_one("TARGET", args.target, "--mlx-path", args.mlx_path) or "mlx_model"
    from ..conversion import convert

    if args.gguf_type is not None and args.to != "gguf":
        raise InputError(f"--gguf-type {args.gguf_type} needs --to gguf. Add it, or leave the type out.")
    bar = ProgressBar()
    before = _file_identity(args.mlx_path)
    started = time.perf_counter()
    try:
        with closing(bar):
            done = (
                _convert_to_gguf(args, bar)
                if args.to == "gguf"
                else convert(
                    args.hf_path,
                    args.mlx_path,
                    quantize=args.quantize,
                    q_group_size=args.q_group_size,
                    q_bits=args.q_bits,
                    q_mode=args.q_mode,
                    dtype=args.dtype,
                    upload_repo=args.upload_repo,
                    revision=args.revision,
                    dequantize=args.dequantize,
                    quant_predicate=args.quant_predicate,
                    q_overrides=args.q_override,
                    quantize_heads=args.quantize_heads,
                    target_bpw=args.target_bpw,
                    calibration_text=args.calibration_text,
                    report=args.report,
                    report_text=args.report_text,
                    force=args.force,
                    progress=bar,
                    measuring=bar.measuring,
                    command=_build_command(args),
                    gguf_file=args.gguf_file,
                    requantize_bits=args.requantize_bits,
                    verify=args.verify,
                )
            )
    except KeyboardInterrupt:
        state = "is unchanged" if _file_identity(args.mlx_path) == before else "holds the converted model"
        print(
            f"interrupted: {args.mlx_path} {state}. Run the same command again to convert from the start",
            file=sys.stderr,
        )
        return 130
    print_conversion(done, time.perf_counter() - started)
    return 0


def _choose_one(name: str, value: str | None, flag: str, other: str | None) -> str | None:
    """Return the value given by position or by flag. Raises `InputError` if both are given."""
    if value is not None and other is not None:
        raise InputError(f"{name} {value!r} and {flag} {other!r} are both given. Leave one of them out.")
    return value if value is not None else other


def _file_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file or folder, which change when it is replaced; None if it does not exist."""
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _convert_to_gguf(args: argparse.Namespace, bar: ProgressBar) -> "Conversion":
    """Write a GGUF file. Raises `InputError` for flags that only apply to MLX folders."""
    from ..conversion import convert_to_gguf

    mlx_only = ("quantize", "q_bits", "q_group_size", "quant_predicate", "q_override", "target_bpw", "calibration_text")
    mlx_only += ("quantize_heads", "dtype", "dequantize", "report", "report_text", "upload_repo")
    given = next((name for name in mlx_only if getattr(args, name)), "q_mode" if args.q_mode != "affine" else None)
    if given is not None:
        raise InputError(
            f"--{given.replace('_', '-')} applies to MLX folders only. Omit it with --to gguf, or use --gguf-type."
        )
    if args.mlx_path == "mlx_model":
        raise InputError("--to gguf needs the name of a file. Give it with --mlx-path NAME.gguf.")
    return convert_to_gguf(
        args.hf_path,
        args.mlx_path,
        args.gguf_type or "f16",
        revision=args.revision,
        gguf_file=args.gguf_file,
        force=args.force,
        progress=bar,
        verify=args.verify,
    )


def _build_command(args: argparse.Namespace) -> str:
    """Return the command line for the model card, without --force and --upload-repo."""
    words = [
        "mlx-qwen3",
        "convert",
        "--hf-path",
        _remove_local_folders(args.hf_path),
        "--mlx-path",
        _remove_local_folders(args.mlx_path),
    ]
    values = ("q_bits", "q_group_size", "quant_predicate", "target_bpw", "calibration_text", "dtype", "report_text")
    for flag in (*values, "revision", "gguf_file"):
        if getattr(args, flag) is not None:
            words += [f"--{flag.replace('_', '-')}", _remove_local_folders(getattr(args, flag))]
    if args.requantize_bits != 8:
        words += ["--requantize-bits", str(args.requantize_bits)]
    if args.verify:
        words.append("--verify")
    if args.q_mode != "affine":
        words += ["--q-mode", args.q_mode]
    for override in args.q_override:
        words += ["--q-override", override]
    for flag, word in (("quantize", "-q"), ("dequantize", "-d"), ("quantize_heads", "--quantize-heads")):
        if getattr(args, flag):
            words.append(word)
    if args.report is not None:
        words.append("--report" if args.report else "--no-report")
    return shlex.join(words)


def _remove_local_folders(value: object) -> str:
    """Return a value for the model card: only the last component of a path on this machine."""
    text = str(value)
    local = os.path.isabs(text) or text.startswith(("~", ".")) or os.path.exists(text)
    return os.path.basename(os.path.abspath(os.path.expanduser(text))) if local else text


def print_conversion(done: "Conversion", seconds: float) -> None:
    """Print size, time and errors of a conversion."""
    print(f"{done.path}: {done.parameters / 1e6:,.1f} million parameters, {done.bits_per_weight:.3f} bits per weight,")
    print(f"  {done.bytes_in / 1e6:,.1f} MB -> {done.bytes_out / 1e6:,.1f} MB in {seconds:.1f} s")
    if done.largest_error is not None:
        print(
            f"quantized codes reused without requantization; largest error from rounded scales {done.largest_error:.3g}"
        )
    if done.requantized:
        path, reason = next(iter(done.requantized.items()))
        print(f"{len(done.requantized)} layers were dequantized and quantized again, such as {path}: {reason}")
    if done.requantize_errors:
        print("largest and mean error per weight of quantizing again:")
        for path, error in sorted(done.requantize_errors.items()):
            print(f"  {path}: {error.largest:.3g}, {error.mean:.3g}")
    if done.repacked:
        print("stored in 8 bits with groups of 32, because MLX has no smaller layout for the GGUF type; largest error:")
        print("\n".join(f"  {path} ({layer.kind}): {layer.error:.2g}" for path, layer in sorted(done.repacked.items())))
    if done.kept:
        print("kept in full precision, because the group size does not divide the row length:")
        print("\n".join(f"  {path}" for path in done.kept))
    if done.mlx_lm_differences:
        print(f"stock mlx-lm cannot load this folder: it does not support {', '.join(done.mlx_lm_differences)}")
    if done.quality is not None:
        from ..quantization.quality import quality_table

        print(quality_table(done.quality))
