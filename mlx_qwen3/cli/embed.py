"""`mlx-qwen3 embed`: one vector per text."""

import argparse
from itertools import tee
from typing import Any

from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_text_arguments, joined, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("embed", help="turn texts into vectors", description=__doc__)
    add_text_arguments(parser, "texts to embed")
    parser.add_argument("--instruction", help="what the texts, as queries, are to find; leave it out for documents")
    parser.add_argument("--dimensions", type=int, help="numbers of a vector to keep; by default all")
    parser.add_argument(
        "--pooling", choices=("last", "mean", "cls", "max"), help="(default: what the model's folder says, else last)"
    )
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the vector of every text."""
    from ..tasks import pipeline

    options = {"instruction": args.instruction, "dimensions": args.dimensions, "pooling": args.pooling}
    rows, texts = tee(read_rows(args))
    results = pipeline("embedding", **options, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_record, texts, results), ("text", "vector"), _cells)


def _record(row: Row, result: Any) -> Row:
    return joined(row, result if isinstance(result, dict) else {"embedding": result.tolist()})


def _cells(record: Row) -> list[tuple[str, ...]]:
    vector = record["embedding"]
    return [(record.value, f"[{', '.join(f'{x:.4f}' for x in vector[:4])}, …] ({len(vector)})")]
