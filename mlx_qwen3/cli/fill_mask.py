"""Predict the words behind the masks of texts with a BERT model."""

import argparse
from itertools import tee
from typing import Any

from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_result, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("fill-mask", help="fill in masked words (BERT models)", description=__doc__)
    add_text_arguments(parser, "texts with a mask, such as [MASK]")
    parser.add_argument("--top-k", type=int, default=5, help="words per mask (default: 5)")
    parser.add_argument("--targets", help="comma-separated words to choose from (default: the whole vocabulary)")
    add_model_arguments(parser, needed="bert-base-uncased")
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the predicted words of every text."""
    from ..tasks import pipeline

    targets = [word.strip() for word in args.targets.split(",")] if args.targets else None
    rows, texts = tee(read_rows(args))
    results = pipeline("fill-mask", top_k=args.top_k, targets=targets, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_make_record, texts, results), ("word", "score", "sequence"), _format_cells)


def _make_record(row: Row, result: Any) -> Row:
    return add_result(row, result if isinstance(result, dict) else {"words": result})


def _format_cells(record: dict[str, Any]) -> list[tuple[str, ...]]:
    words = record["words"]
    flat = words if not words or isinstance(words[0], dict) else [word for some in words for word in some]
    return [(word["token_str"], f"{word['score']:.4f}", word["sequence"]) for word in flat]
