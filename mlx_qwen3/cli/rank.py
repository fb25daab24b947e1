"""Rank documents by their relevance to a query."""

import argparse
from typing import Any

from .results import add_output_arguments, print_results
from .texts import add_model_arguments, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("rank", help="rank documents by their relevance to a query", description=__doc__)
    parser.add_argument("--query", required=True, help="the search query")
    add_text_arguments(parser, "documents to rank")
    parser.add_argument(
        "--instruction",
        help="retrieval task, which defines what makes a document relevant (default: that of the model card)",
    )
    parser.add_argument("--top-k", type=int, help="number of documents to print (default: all)")
    add_model_arguments(parser, needed="Qwen/Qwen3-Reranker-0.6B")
    add_output_arguments(parser, resume=False)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the documents, the most relevant first."""
    from ..tasks import Reranker

    options: dict[str, Any] = {"instruction": args.instruction} if args.instruction else {}
    rows = list(read_rows(args))
    texts = [row.value for row in rows]
    task = Reranker(top_k=args.top_k, return_documents=True, **options, **task_options(args))
    ranked = ({**rows[entry["index"]], **entry} if "index" in entry else entry for entry in task(args.query, texts))
    return print_results(args, ranked, ("index", "score", "document"), _format_cells)


def _format_cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(str(result["index"]), f"{result['score']:.4f}", result["document"])]
