"""`mlx-qwen3 convert`: a Hugging Face checkpoint becomes an MLX folder."""

import argparse
import os
import shlex
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .model_flags import add_gguf_file_flag

if TYPE_CHECKING:
    from ..conversion import Conversion

MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
GGUF_TYPES = ("f16", "bf16", "q8_0", "q4_0")
DTYPES = ("float16", "bfloat16", "float32")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags; those of mlx_lm.convert have the same names here."""
    parser = subparsers.add_parser(
        "convert",
        help="convert and quantize a checkpoint",
        description="Convert a Qwen3 or QDQBert checkpoint (bf16, fp16, fp32, FP8, GPTQ, AWQ, GGUF) to MLX.",
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a folder, a GGUF file or a Hub id")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="the folder or file to write (default: mlx_model)")
    parser.add_argument("--hf-path", "--model", help="the same as SOURCE")
    add_gguf_file_flag(parser)
    parser.add_argument("--mlx-path", help="the same as TARGET")
    parser.add_argument(
        "--to", choices=("mlx", "gguf"), default="mlx", help="write an MLX folder (default) or a GGUF file"
    )
    parser.add_argument("--gguf-type", choices=GGUF_TYPES, help="of the matrices in the GGUF file (default: f16)")
    parser.add_argument("-q", "--quantize", action="store_true", help="pack the weights")
    parser.add_argument("--q-bits", type=int, help="2, 3, 4, 5, 6 or 8 (default: 4)")
    parser.add_argument("--q-group-size", type=int, help="32, 64 or 128 (default: 64)")
    parser.add_argument("--q-mode", default="affine", choices=MODES, help="default: affine")
    parser.add_argument("--quant-predicate", choices=RECIPES, help="a mixed recipe, instead of --q-bits")
    parser.add_argument(
        "--q-override",
        action="append",
        default=[],
        metavar="PATTERN=BITS[:GROUP[:MODE]]|none",
        help="another format for the layers that a pattern names; may be repeated, the last match decides",
    )
    parser.add_argument(
        "--target-bpw",
        type=float,
        help="measure layers and spend this many bits per weight, instead of --q-bits and the like",
    )
    parser.add_argument("--calibration-text", metavar="FILE", help="measure layers for --target-bpw on this text")
    parser.add_argument("--quantize-heads", action="store_true", help="also pack classification and other heads")
    parser.add_argument("--dtype", choices=DTYPES, help="of scales and unpacked weights (default: the checkpoint's)")
    parser.add_argument("-d", "--dequantize", action="store_true", help="unpack instead")
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure what quantization cost (default: with --report-text, and with -q if the model fits in memory)",
    )
    parser.add_argument("--report-text", metavar="FILE", help="measure on this text instead of the one that is shipped")
    parser.add_argument(
        "--requantize-bits",
        type=int,
        default=8,
        metavar="BITS",
        help="bits of GPTQ and AWQ layers whose codes MLX cannot represent, such as reordered ones (default: 8)",
    )
    parser.add_argument("--verify", action="store_true", help="compare the sha256 of the source before and after")
    parser.add_argument("--revision", help="a branch, tag or commit of the Hub repository")
    parser.add_argument("--upload-repo", help="a Hub repository to upload the result to")
    parser.add_argument("--force", action="store_true", help="replace the target; convert NaN and infinite weights")
    parser.set_defaults(run=run)
    return parser


class ProgressBar:
    """What is done, how far and for how long still, on standard error; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._what = ""

    def __call__(self, done: int, total: int) -> None:
        """Bytes converted."""
        self._show("converting", done, total, unit="B", unit_scale=True)

    def measuring(self, what: str, done: int, total: int) -> None:
        """Layers or pieces of text measured."""
        self._show(f"measuring {what}", done, total)

    def _show(self, what: str, done: int, total: int, **units: Any) -> None:
        if what != self._what:
            from tqdm import tqdm

            self.close()
            self._bar, self._what = tqdm(total=total, desc=what, disable=None, **units), what
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def run(args: argparse.Namespace) -> int:
    """Convert, print what came of it, and give back the exit status."""
    args.hf_path = _given_once("SOURCE", args.source, "--hf-path", args.hf_path)
    if args.hf_path is None:
        raise InputError("there is no checkpoint to convert. Name a folder, a GGUF file or a Hub id")
    args.mlx_path = _given_once("TARGET", args.target, "--mlx-path", args.mlx_path) or "mlx_model"
    from ..conversion import convert

    if args.gguf_type is not None and args.to != "gguf":
        raise InputError(f"--gguf-type {args.gguf_type} needs --to gguf: add it, or leave the type out")
    bar = ProgressBar()
    before = _identity(args.mlx_path)
    started = time.perf_counter()
    try:
        with closing(bar):
            done = (
                _to_gguf(args, bar)
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
                    command=_command(args),
                    gguf_file=args.gguf_file,
                    requantize_bits=args.requantize_bits,
                    verify=args.verify,
                )
            )
    except KeyboardInterrupt:
        state = "is as it was before" if _identity(args.mlx_path) == before else "holds the converted model"
        print(
            f"interrupted: {args.mlx_path} {state}; run the same command again to convert from the start",
            file=sys.stderr,
        )
        return 130
    print_conversion(done, time.perf_counter() - started)
    return 0


def _given_once(name: str, value: str | None, flag: str, other: str | None) -> str | None:
    """Return what was given by position or by flag. Raises `InputError` where both were."""
    if value is not None and other is not None:
        raise InputError(f"{name} {value!r} and {flag} {other!r} are given. Give one of them")
    return value if value is not None else other


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file or folder from another one at the same path; None where there is none."""
    try:
        found = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _to_gguf(args: argparse.Namespace, bar: ProgressBar) -> "Conversion":
    """Write a GGUF file; raises `InputError` for flags that would be ignored."""
    from ..conversion import convert_to_gguf

    mlx_only = ("quantize", "q_bits", "q_group_size", "quant_predicate", "q_override", "target_bpw", "calibration_text")
    mlx_only += ("quantize_heads", "dtype", "dequantize", "report", "report_text", "upload_repo")
    given = next((name for name in mlx_only if getattr(args, name)), "q_mode" if args.q_mode != "affine" else None)
    if given is not None:
        raise InputError(
            f"--{given.replace('_', '-')} is for MLX folders: leave it out with --to gguf, or use --gguf-type"
        )
    if args.mlx_path == "mlx_model":
        raise InputError("--to gguf writes one file: give its name with --mlx-path NAME.gguf")
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


def _command(args: argparse.Namespace) -> str:
    """Return the command for the card, as it was typed but for --force and where it was uploaded to."""
    words = ["mlx-qwen3", "convert", "--hf-path", _public(args.hf_path), "--mlx-path", _public(args.mlx_path)]
    values = ("q_bits", "q_group_size", "quant_predicate", "target_bpw", "calibration_text", "dtype", "report_text")
    for flag in (*values, "revision", "gguf_file"):
        if getattr(args, flag) is not None:
            words += [f"--{flag.replace('_', '-')}", _public(getattr(args, flag))]
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


def _public(value: object) -> str:
    """Return a value for the card: of a path on this machine only its last part."""
    text = str(value)
    local = os.path.isabs(text) or text.startswith(("~", ".")) or os.path.exists(text)
    return os.path.basename(os.path.abspath(os.path.expanduser(text))) if local else text


def print_conversion(done: "Conversion", seconds: float) -> None:
    """Print what a conversion did."""
    print(f"{done.path}: {done.parameters / 1e6:,.1f} million parameters, {done.bits_per_weight:.3f} bits per weight,")
    print(f"  {done.bytes_in / 1e6:,.1f} MB -> {done.bytes_out / 1e6:,.1f} MB in {seconds:.1f} s")
    if done.largest_error is not None:
        print(
            f"quantized codes reused without requantization; largest error from rounded scales {done.largest_error:.3g}"
        )
    if done.requantized:
        path, reason = next(iter(done.requantized.items()))
        print(f"{len(done.requantized)} layers were decoded and quantized again, as {path}: {reason}")
    if done.requantize_errors:
        print("largest and mean error of a weight by quantizing it again:")
        for path, error in sorted(done.requantize_errors.items()):
            print(f"  {path}: {error.largest:.3g}, {error.mean:.3g}")
    if done.repacked:
        print("in 8 bits, groups of 32: MLX has no smaller layout for their GGUF type; largest error of a weight:")
        print("\n".join(f"  {path} ({found.kind}): {found.error:.2g}" for path, found in sorted(done.repacked.items())))
    if done.kept:
        print("in full precision, because the group size does not divide their rows:")
        print("\n".join(f"  {path}" for path in done.kept))
    if done.mlx_lm_differences:
        print(f"stock mlx-lm will refuse this folder: it would get {', '.join(done.mlx_lm_differences)} wrong")
    if done.quality is not None:
        from ..quantization.quality import quality_table

        print(quality_table(done.quality))
