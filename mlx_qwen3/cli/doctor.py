"""`mlx-qwen3 doctor`: check this machine and run a self-test of every kernel family; prints a report to paste."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("doctor", help="check this machine and test every kernel", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), help="where the self-tests run (default: MLX's)")
    parser.add_argument("--no-network", action="store_true", help="do not ask the Hugging Face Hub whether it answers")
    parser.add_argument("--no-kernels", action="store_true", help="check the machine only")
    parser.add_argument("--output", type=Path, help="write the report to this file as Markdown")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print one line per check; the status is 1 where one failed."""
    from .. import __version__
    from ..doctor import check_machine, doctor_report, status_line
    from ..doctor.machine import FAILED, check_mlx
    from ..doctor.report import verdict

    if args.output is not None and not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: its folder does not exist. Name a file in one that does.")
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # or a GPU may multiply float32 with ten bits
    if args.device and check_mlx().status != FAILED:
        _choose_device(args.device)
    machine = check_machine(network=not args.no_network)
    for check in machine:
        print(status_line(check), flush=True)
    kernels, device = [], "without MLX"
    if check_mlx().status != FAILED:
        import mlx.core as mx

        from ..bench.machine import this_machine

        found = this_machine(mx.default_device())
        device = f"{found.chip}, {found.device}"
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
        raise InputError("--device gpu: MLX finds no GPU here. Leave it out or pass cpu.")
    mx.set_default_device(mx.Device(mx.DeviceType.gpu if name == "gpu" else mx.DeviceType.cpu, 0))
