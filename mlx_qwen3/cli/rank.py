"""`mlx-qwen3 rank`: documents by how well they answer a query."""

import argparse
from typing import Any

from .results import add_output_arguments, print_results
from .texts import add_model_arguments, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("rank", help="sort texts by how well they answer a query", description=__doc__)
    parser.add_argument("--query", required=True, help="what is looked for")
    add_text_arguments(parser, "documents to rank")
    parser.add_argument("--instruction", help="what makes a document a good one")
    parser.add_argument("--top-k", type=int, help="documents to show; by default all")
    add_model_arguments(parser, needed="Qwen/Qwen3-Reranker-0.6B")
    add_output_arguments(parser, resume=False)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the documents, the best first."""
    from ..tasks import Reranker

    options: dict[str, Any] = {"instruction": args.instruction} if args.instruction else {}
    rows = list(read_rows(args))
    texts = [row.value for row in rows]
    task = Reranker(top_k=args.top_k, return_documents=True, **options, **task_options(args))
    ranked = ({**rows[found["index"]], **found} if "index" in found else found for found in task(args.query, texts))
    return print_results(args, ranked, ("index", "score", "document"), _cells)


def _cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(str(result["index"]), f"{result['score']:.4f}", result["document"])]
