"""Compute one embedding vector per text."""

import argparse
from itertools import tee
from typing import Any

from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_result, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("embed", help="compute embeddings of texts", description=__doc__)
    add_text_arguments(parser, "texts to embed")
    parser.add_argument("--instruction", help="retrieval task, prepended to queries; omit it for documents")
    parser.add_argument("--dimensions", type=int, help="dimensions of the vectors to keep (default: all)")
    parser.add_argument(
        "--pooling",
        choices=("last", "mean", "cls", "max"),
        help="pooling of the token states (default: that of the model's folder, else last)",
    )
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the embedding of every text."""
    from ..tasks import pipeline

    options = {"instruction": args.instruction, "dimensions": args.dimensions, "pooling": args.pooling}
    rows, texts = tee(read_rows(args))
    results = pipeline("embedding", **options, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_make_record, texts, results), ("text", "vector"), _format_cells)


def _make_record(row: Row, result: Any) -> Row:
    return add_result(row, result if isinstance(result, dict) else {"embedding": result.tolist()})


def _format_cells(record: Row) -> list[tuple[str, ...]]:
    vector = record["embedding"]
    return [(record.value, f"[{', '.join(f'{x:.4f}' for x in vector[:4])}, …] ({len(vector)})")]
