"""Check this machine and run a self-test of every kernel family. The report can be pasted into an issue."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("doctor", help="check this machine and test every kernel", description=__doc__)
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), help="device for the self-tests (default: MLX's default device)"
    )
    parser.add_argument("--no-network", action="store_true", help="do not check the connection to the Hugging Face Hub")
    parser.add_argument("--no-kernels", action="store_true", help="skip the self-tests of the kernels")
    parser.add_argument("--output", type=Path, help="write the report to a Markdown file")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print one line per check, and return 1 if one failed, else 0."""
    from .. import __version__
    from ..doctor import check_machine, doctor_report, status_line
    from ..doctor.machine import FAILED, check_mlx
    from ..doctor.report import verdict

    if args.output is not None and not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: the folder does not exist. Create it, or give another file.")
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # TF32 would round float32 factors to 10 bits of mantissa
    if args.device and check_mlx().status != FAILED:
        _choose_device(args.device)
    machine = check_machine(network=not args.no_network)
    for check in machine:
        print(status_line(check), flush=True)
    kernels, device = [], "without MLX"
    if check_mlx().status != FAILED:
        import mlx.core as mx

        from ..bench.machine import this_machine

        hardware = this_machine(mx.default_device())
        device = f"{hardware.chip}, {hardware.device}"
        if not args.no_kernels:
            from ..doctor.kernels import run_all

            kernels = run_all(lambda check: print(status_line(check), flush=True))
    checks = [*machine, *kernels]
    print(f"\n{verdict(checks)}")
    if args.output is not None:
        args.output.write_text(doctor_report(machine, kernels, device, __version__), encoding="utf-8")
        print(f"report: {args.output}", file=sys.stderr)
    return 1 if any(check.status == FAILED for check in checks) else 0


def _choose_device(name: str) -> None:
    import mlx.core as mx

    if name == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        raise InputError("--device gpu: MLX finds no GPU on this machine. Pass cpu, or leave the flag out.")
    mx.set_default_device(mx.Device(mx.DeviceType.gpu if name == "gpu" else mx.DeviceType.cpu, 0))
