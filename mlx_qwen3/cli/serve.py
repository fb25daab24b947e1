"""Serve models over HTTP: the OpenAI API, reranking, classification, extraction, and a chat page."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from ..errors import InputError
from .model_flags import DTYPES, add_gguf_file_flag, add_revision_flag, check_revision, resolve_gguf_file
from .ranks import current_group

KEY_VARIABLE = "MLX_QWEN3_API_KEY"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("serve", help="serve models over HTTP", description=__doc__)
    group = parser.add_argument_group("models (a folder, a Hub id, or a GGUF file)")
    group.add_argument(
        "--model", metavar="PATH|ID", help="model for chat and completions (default: the bundled small model)"
    )
    add_revision_flag(group)
    add_gguf_file_flag(group)
    group.add_argument("--embedding-model", metavar="PATH|ID", help="model for embeddings (default: the chat model)")
    group.add_argument(
        "--rerank-model",
        metavar="PATH|ID",
        help="model for reranking, such as Qwen/Qwen3-Reranker-0.6B (default: the chat model)",
    )
    group.add_argument("--classify-model", metavar="PATH|ID", help="model with a trained classification head")
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="also serve the chat model with an adapter, under the model name NAME; may be repeated",
    )
    group.add_argument(
        "--dtype", choices=DTYPES, help="computation dtype (default: float32 on a CPU, else that of the model)"
    )
    group.add_argument(
        "--kv-bits",
        type=int,
        choices=(4, 8),
        help="quantize the key/value cache to this many bits (default: not quantized)",
    )
    group.add_argument(
        "--kv-group-size", type=int, default=64, metavar="N", help="quantization group size of the cache (default: 64)"
    )
    group.add_argument("--force", action="store_true", help="load models even if they do not fit into memory")
    group = parser.add_argument_group("address")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    group.add_argument("--port", type=int, default=8080, help="port to listen on; 0 for a free one (default: 8080)")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key that clients must send (default: the value of {KEY_VARIABLE}, else no key)",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="web origin that may call the API from a browser; may be repeated",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name to accept in the Host header; may be repeated",
    )
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-batch", type=int, default=32, metavar="N", help="maximum sequences decoded in one batch (default: 32)"
    )
    group.add_argument(
        "--max-queue",
        type=int,
        default=256,
        metavar="N",
        help="maximum requests that run or wait; more are refused with status 429 (default: 256)",
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="maximum tokens per answer if a request sets no limit (default: 4096)",
    )
    group.add_argument(
        "--cache-memory",
        type=_parse_size(1e9),
        metavar="GB",
        help="cache memory of the running sequences (default: the free memory)",
    )
    group.add_argument(
        "--prefix-cache",
        type=_parse_size(1e9),
        default=int(1e9),
        metavar="GB",
        help="memory for the caches of earlier prompts; 0 for none (default: 1)",
    )
    group.add_argument(
        "--max-body",
        type=_parse_size(1e6),
        default=int(16e6),
        metavar="MB",
        help="maximum size of a request body (default: 16)",
    )
    group.add_argument(
        "--drain",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that running requests may take to finish at shutdown (default: 30)",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve until a signal stops the server, and return the exit status."""
    from ..server import ServerSettings

    check_revision(args)
    resolve_gguf_file(args)
    settings = ServerSettings(
        model=args.model,
        revision=args.revision,
        embedding_model=args.embedding_model,
        rerank_model=args.rerank_model,
        classify_model=args.classify_model,
        adapters=_parse_adapters(args.adapter),
        dtype=args.dtype,
        kv_bits=args.kv_bits,
        kv_group_size=args.kv_group_size,
        host=args.host,
        port=args.port,
        api_key=args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE),
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        max_tokens=args.max_tokens,
        cache_bytes=args.cache_memory,
        prefix_bytes=args.prefix_cache,
        allow_origins=tuple(args.allow_origin),
        allow_hosts=tuple(args.allow_host),
        max_body=args.max_body,
        drain_seconds=args.drain,
        force=args.force,
        group=current_group(),
    )
    try:
        from ..server.running import serve
    except ModuleNotFoundError as error:
        raise InputError(f"the server needs {error.name}. Run pip install 'mlx-qwen3[server]'.") from error
    if args.model is None:
        from ..bundled import BUNDLED_NOTE

        print(BUNDLED_NOTE, file=sys.stderr)
    return serve(settings)


def _parse_size(unit: float) -> Callable[[str], int]:
    """Return a parser of sizes in multiples of `unit` bytes; it returns bytes."""

    def parse(text: str) -> int:
        try:
            return int(float(text) * unit)
        except (ValueError, OverflowError):  # also for NaN and infinity
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None

    return parse


def _parse_adapters(values: list[str]) -> dict[str, str]:
    """Return name → folder from the NAME=DIR of every `--adapter`. Raises `InputError` for any other text."""
    adapters: dict[str, str] = {}
    for value in values:
        name, sign, folder = value.partition("=")
        if not (name and sign and folder):
            raise InputError(f"--adapter is {value!r}, expected NAME=DIR.")
        if name in adapters:
            raise InputError(f"--adapter names {name!r} twice. Choose another name.")
        adapters[name] = folder
    return adapters
