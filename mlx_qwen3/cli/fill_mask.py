"""`mlx-qwen3 fill-mask`: the words that fit where a text has a mask."""

import argparse
from itertools import tee
from typing import Any

from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_text_arguments, joined, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("fill-mask", help="fill masked words (BERT models)", description=__doc__)
    add_text_arguments(parser, "texts with a mask, such as [MASK]")
    parser.add_argument("--top-k", type=int, default=5, help="words to show (default: 5)")
    parser.add_argument("--targets", help="words to choose from, with commas between them; by default all")
    add_model_arguments(parser, needed="bert-base-uncased")
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the words that fit."""
    from ..tasks import pipeline

    targets = [word.strip() for word in args.targets.split(",")] if args.targets else None
    rows, texts = tee(read_rows(args))
    results = pipeline("fill-mask", top_k=args.top_k, targets=targets, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_record, texts, results), ("word", "score", "sequence"), _cells)


def _record(row: Row, result: Any) -> Row:
    return joined(row, result if isinstance(result, dict) else {"words": result})


def _cells(record: dict[str, Any]) -> list[tuple[str, ...]]:
    words = record["words"]
    flatten = words if not words or isinstance(words[0], dict) else [word for some in words for word in some]
    return [(word["token_str"], f"{word['score']:.4f}", word["sequence"]) for word in flatten]
