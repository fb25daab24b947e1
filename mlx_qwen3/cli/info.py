"""`mlx-qwen3 info`: describe a checkpoint or an adapter without loading its weights."""

import argparse
import os
from pathlib import Path
from typing import Any

from .model_flags import add_gguf_file_flag


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser(
        "info",
        help="describe a checkpoint or an adapter without loading it",
        description="Print architecture, head, parameters, bits per weight, bytes, context and the memory that a "
        "checkpoint needs on this machine, or the type, base model, rank, layers and labels of an adapter.",
    )
    parser.add_argument("path", metavar="PATH|ID", help="a folder, a GGUF file or a Hub id")
    add_gguf_file_flag(parser)
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository (default: its main branch)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the description and return the exit status."""
    import json
    from dataclasses import asdict

    from ..adapters.folder import is_adapter_folder
    from ..conversion import describe

    if args.gguf_file is None and is_adapter_folder(Path(os.path.expanduser(args.path))):
        return _print_adapter(args)
    info = describe(args.path, args.revision, args.gguf_file)
    if args.json:
        print(json.dumps(asdict(info), indent=2))
        return 0
    rows = [
        ("model", info.name),
        ("architecture", info.architecture),
        ("head", info.head),
        ("parameters", f"{info.parameters:,}"),
        ("weights", f"{info.bytes / 1e6:,.1f} MB, {info.bits_per_weight:.2f} bits per weight, {info.format}"),
        ("context", f"{info.context:,} tokens"),
        ("this machine", f"{info.machine_bytes / 1e9:.1f} GB of memory"),
    ]
    _print_rows(rows)
    print(f"memory for the weights and the key/value cache in {info.dtype}:")
    for tokens, needed in info.memory.items():
        verdict = "fits" if needed <= info.machine_bytes else "does not fit"
        print(f"  {tokens:>9,} tokens  {needed / 1e9:8.2f} GB  {verdict}")
    return 0


def _print_adapter(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from ..adapters.describe import describe_adapter

    info = describe_adapter(args.path, args.revision)
    if args.json:
        print(json.dumps(asdict(info), indent=2))
        return 0
    rows = [
        ("adapter", info.name),
        ("kind", f"{info.kind}, in the format of {info.format}"),
        ("base", info.base or "unknown; pass it with --model"),
        ("architecture", info.architecture or "that of the base model"),
    ]
    if info.rank is not None:
        rows.append(("rank", f"{info.rank}, alpha {info.alpha:g}" if info.alpha is not None else str(info.rank)))
    rows += [("layers", info.targets)] if info.targets else []
    rows += [("whole weights", ", ".join(info.saved))] if info.saved else []
    rows += [("labels", ", ".join(info.labels))] if info.labels else []
    rows.append(("parameters", f"{info.parameters:,}"))
    rows.append(("weights", f"{info.bytes / 1e6:,.1f} MB"))
    _print_rows(rows)
    return 0


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
