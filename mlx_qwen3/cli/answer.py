"""Extract the span of each text that answers a question."""

import argparse
from collections.abc import Iterator
from itertools import tee
from typing import Any

from ..errors import InputError
from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_result, add_text_arguments, make_row, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("answer", help="find the answer to a question in a text", description=__doc__)
    add_text_arguments(parser, "texts to search", column="context")
    parser.add_argument("--question", help="the question; without it, the questions are read from a column of --file")
    parser.add_argument("--question-column", default="question", help="column with the questions (default: question)")
    parser.add_argument("--top-k", type=int, default=1, help="answers per text (default: 1)")
    parser.add_argument(
        "--max-answer-len",
        "--max-answer",
        dest="max_answer",
        type=int,
        default=15,
        help="maximum tokens per answer (default: 15)",
    )
    parser.add_argument(
        "--handle-impossible-answer",
        "--allow-none",
        dest="allow_none",
        action="store_true",
        help="allow an empty answer if the text does not contain one",
    )
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the answers found in every text."""
    from ..tasks import pipeline

    options = {
        "top_k": args.top_k,
        "max_answer_len": args.max_answer,
        "handle_impossible_answer": args.allow_none,
    }
    rows, shown = tee(_read_rows(args))
    results = pipeline("question-answering", **options, **task_options(args))(row.value for row in rows)
    return print_results(
        args, map(_make_record, shown, results), ("question", "answer", "score", "span"), _format_cells
    )


def _read_rows(args: argparse.Namespace) -> Iterator[Row]:
    if args.question:
        rows = read_rows(args)
        return (
            make_row({"question": args.question, "context": row.value}, dict(row) if args.file else {}) for row in rows
        )
    if args.question is not None:
        raise InputError("the question is empty. Give one with --question TEXT.")
    if not args.file:
        raise InputError("there is no question. Give --question TEXT, or a --file with a column of questions.")
    rows = read_rows(args, (args.question_column, args.column))
    return (
        make_row({"question": row.value[args.question_column], "context": row.value[args.column]}, dict(row))
        for row in rows
    )


def _make_record(row: Row, result: Any) -> Row:
    own = row if "question" in row else make_row(row.value, {"question": row.value["question"], **row})
    return add_result(own, {"answers": result} if isinstance(result, list) else result)


def _format_cells(record: Row) -> list[tuple[str, ...]]:
    return [
        (record.value["question"], answer["answer"], f"{answer['score']:.4f}", f"{answer['start']}–{answer['end']}")
        for answer in record.get("answers", [record])
    ]
