"""`mlx-qwen3 answer`: the span of each text that answers a question."""

import argparse
from collections.abc import Iterator
from itertools import tee
from typing import Any

from ..errors import InputError
from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_text_arguments, joined, read_rows, row_of, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("answer", help="find answers in texts", description=__doc__)
    add_text_arguments(parser, "texts to look in", column="context")
    parser.add_argument("--question", help="the question; without it, --file has a column of questions")
    parser.add_argument("--question-column", default="question", help="that column (default: question)")
    parser.add_argument("--top-k", type=int, default=1, help="answers to show for each text (default: 1)")
    parser.add_argument(
        "--max-answer-len",
        "--max-answer",
        dest="max_answer",
        type=int,
        default=15,
        help="tokens of the longest answer (default: 15)",
    )
    parser.add_argument(
        "--handle-impossible-answer",
        "--allow-none",
        dest="allow_none",
        action="store_true",
        help="give an empty answer where the text has none",
    )
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the answer that every text gives."""
    from ..tasks import pipeline

    options = {
        "top_k": args.top_k,
        "max_answer_len": args.max_answer,
        "handle_impossible_answer": args.allow_none,
    }
    rows, shown = tee(_rows(args))
    results = pipeline("question-answering", **options, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_record, shown, results), ("question", "answer", "score", "place"), _cells)


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    if args.question:
        rows = read_rows(args)
        return (
            row_of({"question": args.question, "context": row.value}, dict(row) if args.file else {}) for row in rows
        )
    if args.question is not None:
        raise InputError("the question is empty")
    if not args.file:
        raise InputError("give --question, or a --file with a column of questions")
    rows = read_rows(args, (args.question_column, args.column))
    return (
        row_of({"question": row.value[args.question_column], "context": row.value[args.column]}, dict(row))
        for row in rows
    )


def _record(row: Row, result: Any) -> Row:
    own = row if "question" in row else row_of(row.value, {"question": row.value["question"], **row})
    return joined(own, {"answers": result} if isinstance(result, list) else result)


def _cells(record: Row) -> list[tuple[str, ...]]:
    return [
        (record.value["question"], found["answer"], f"{found['score']:.4f}", f"{found['start']}–{found['end']}")
        for found in record.get("answers", [record])
    ]
