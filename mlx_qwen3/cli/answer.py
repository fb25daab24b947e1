"""`mlx-qwen3 answer`: the span of each text that answers a question."""

import argparse
from collections.abc import Iterator
from itertools import tee
from typing import Any

from ..errors import InputError
from .results import add_output_arguments, print_results
from .texts import add_model_arguments, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the verb and its flags."""
    parser = subparsers.add_parser("answer", help="find answers in texts", description=__doc__)
    add_text_arguments(parser, "texts to look in", column="context")
    parser.add_argument("--question", help="the question; without it, --file has a column of questions")
    parser.add_argument("--question-column", default="question", help="that column (default: question)")
    parser.add_argument("--top-k", type=int, default=1, help="answers to show for each text (default: 1)")
    parser.add_argument("--max-answer", type=int, default=15, help="tokens of the longest answer (default: 15)")
    parser.add_argument("--allow-none", action="store_true", help="an empty answer where the text has none")
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints the answer that every text gives."""
    from ..tasks import pipeline

    options = {
        "top_k": args.top_k,
        "max_answer_len": args.max_answer,
        "handle_impossible_answer": args.allow_none,
    }
    rows, shown = tee(_rows(args))
    results = pipeline("question-answering", **options, **task_options(args))(rows)
    return print_results(args, map(_record, shown, results), ("question", "answer", "score", "place"), _cells)


def _rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if args.question:
        return ({"question": args.question, "context": text} for text in read_rows(args))
    if args.question is not None:
        raise InputError("the question is empty")
    if not args.file:
        raise InputError("give --question, or a --file with a column of questions")
    rows = read_rows(args, (args.question_column, args.column))
    return ({"question": row[args.question_column], "context": row[args.column]} for row in rows)


def _record(row: dict[str, Any], result: Any) -> dict[str, Any]:
    if isinstance(result, list):
        return {"question": row["question"], "answers": result}
    return {"question": row["question"], **result}


def _cells(record: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (record["question"], found["answer"], f"{found['score']:.4f}", f"{found['start']}–{found['end']}")
        for found in record.get("answers", [record])
    ]
