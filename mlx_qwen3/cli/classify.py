"""Label texts with a trained classification head, or zero-shot with the labels of --labels."""

import argparse
from collections.abc import Iterator
from itertools import islice, tee
from typing import Any

from ..errors import InputError
from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_result, add_text_arguments, make_row, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("classify", help="classify texts", description=__doc__)
    add_text_arguments(parser, "texts to classify")
    parser.add_argument("--pair-column", help="column of the second text, for models trained on text pairs")
    parser.add_argument("--labels", help="comma-separated labels for zero-shot classification")
    parser.add_argument("--multi-label", action="store_true", help="with --labels: score every label independently")
    parser.add_argument(
        "--hypothesis-template",
        "--template",
        dest="template",
        help="with --labels: sentence that ends with the label, written as {}",
    )
    parser.add_argument("--think", action="store_true", help="with --labels: reason about each text first; slower")
    parser.add_argument(
        "--thinking-budget",
        type=int,
        metavar="N",
        help="with --think: maximum reasoning tokens per text (default: 512)",
    )
    parser.add_argument("--top-k", type=int, default=1, help="labels per text; 0 for all (default: 1)")
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the labels of every text."""
    from ..tasks import pipeline

    if args.top_k < 0:
        raise InputError(f"--top-k is {args.top_k}, expected 0 or more.")
    if args.labels is not None and not args.labels.strip(" ,"):
        raise InputError("--labels names no label. Give one or more, separated by commas.")
    if not args.labels and (args.template or args.multi_label or args.think):
        raise InputError(
            "--hypothesis-template, --multi-label and --think need --labels. Give the labels, or leave the flags out."
        )
    if args.thinking_budget is not None and not args.think:
        raise InputError("--thinking-budget needs --think. Add it, or leave the budget out.")
    if args.labels and args.pair_column:
        raise InputError("--labels and --pair-column exclude each other. Leave one of them out.")
    rows, texts = tee(_read_rows(args))  # tee stays small: a task reads a bounded number of rows ahead
    if args.labels:
        options = {"hypothesis_template": args.template} if args.template else {}
        options |= {"candidate_labels": args.labels, "multi_label": args.multi_label}
        options |= {"think": True} if args.think else {}
        options |= {"thinking_budget": args.thinking_budget} if args.thinking_budget is not None else {}
        task = pipeline("zero-shot-classification", **options, **task_options(args))
        results = (_select_labels(result, args.top_k or None) for result in task(row.value for row in rows))
    else:
        results = pipeline("text-classification", top_k=args.top_k or None, **task_options(args))(
            row.value for row in rows
        )
    return print_results(args, map(_make_record, texts, results), ("text", "label", "score"), _format_cells)


def _read_rows(args: argparse.Namespace) -> Iterator[Row]:
    if not args.pair_column:
        return read_rows(args)
    if not args.file:
        raise InputError("--pair-column needs --file. Give a file with both columns.")
    rows = read_rows(args, (args.column, args.pair_column))
    pairs = ((row, {"text": row.value[args.column], "text_pair": row.value[args.pair_column]}) for row in rows)
    return (make_row(pair, {**row, **pair}) for row, pair in pairs)


def _select_labels(result: Any, top_k: int | None) -> Any:
    if "error" in result:
        return result
    pairs = zip(result["labels"], result["scores"], strict=True)
    labels = [{"label": label, "score": score} for label, score in islice(pairs, top_k)]
    return {"labels": labels, "reasoning": result["reasoning"]} if "reasoning" in result else labels


def _make_record(row: Row, result: Any) -> Row:
    return add_result(row, result if isinstance(result, dict) else {"labels": result})


def _format_cells(record: Row) -> list[tuple[str, ...]]:
    text = record.value if isinstance(record.value, str) else record.value["text"]
    return [(text, label["label"], f"{label['score']:.4f}") for label in record["labels"]]
