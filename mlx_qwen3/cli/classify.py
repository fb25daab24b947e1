"""`mlx-qwen3 classify`: labels of texts, from a trained head or from labels named here."""

import argparse
from collections.abc import Iterator
from itertools import islice, tee
from typing import Any

from ..errors import InputError
from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_text_arguments, joined, read_rows, row_of, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("classify", help="label texts", description=__doc__)
    add_text_arguments(parser, "texts to label")
    parser.add_argument("--pair-column", help="column of the second text, for a model that judges pairs")
    parser.add_argument("--labels", help="labels with commas between them: needs no trained head")
    parser.add_argument("--multi-label", action="store_true", help="labels do not exclude one another (with --labels)")
    parser.add_argument(
        "--hypothesis-template",
        "--template",
        dest="template",
        help="sentence that ends with the label, written as {} (with --labels)",
    )
    parser.add_argument("--think", action="store_true", help="reason about each text first (with --labels); slower")
    parser.add_argument(
        "--thinking-budget", type=int, metavar="N", help="tokens of reasoning at most (with --think; default: 512)"
    )
    parser.add_argument("--top-k", type=int, default=1, help="labels to show; 0 for all (default: 1)")
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the labels of every text."""
    from ..tasks import pipeline

    if args.top_k < 0:
        raise InputError(f"--top-k is {args.top_k}, expected 0 or more")
    if args.labels is not None and not args.labels.strip(" ,"):
        raise InputError("--labels names no label; give some with commas between them")
    if not args.labels and (args.template or args.multi_label or args.think):
        raise InputError("--hypothesis-template, --multi-label and --think need --labels")
    if args.thinking_budget is not None and not args.think:
        raise InputError("--thinking-budget needs --think")
    if args.labels and args.pair_column:
        raise InputError("--labels judges single texts; leave out --pair-column")
    rows, texts = tee(_rows(args))  # a task reads a bounded number of rows ahead
    if args.labels:
        options = {"hypothesis_template": args.template} if args.template else {}
        options |= {"candidate_labels": args.labels, "multi_label": args.multi_label}
        options |= {"think": True} if args.think else {}
        options |= {"thinking_budget": args.thinking_budget} if args.thinking_budget is not None else {}
        task = pipeline("zero-shot-classification", **options, **task_options(args))
        results = (_ranked(result, args.top_k or None) for result in task(row.value for row in rows))
    else:
        results = pipeline("text-classification", top_k=args.top_k or None, **task_options(args))(
            row.value for row in rows
        )
    return print_results(args, map(_record, texts, results), ("text", "label", "score"), _cells)


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    if not args.pair_column:
        return read_rows(args)
    if not args.file:
        raise InputError("--pair-column needs --file")
    rows = read_rows(args, (args.column, args.pair_column))
    pairs = ((row, {"text": row.value[args.column], "text_pair": row.value[args.pair_column]}) for row in rows)
    return (row_of(pair, {**row, **pair}) for row, pair in pairs)


def _ranked(result: Any, top_k: int | None) -> Any:
    if "error" in result:
        return result
    pairs = zip(result["labels"], result["scores"], strict=True)
    labels = [{"label": label, "score": score} for label, score in islice(pairs, top_k)]
    return {"labels": labels, "reasoning": result["reasoning"]} if "reasoning" in result else labels


def _record(row: Row, result: Any) -> Row:
    return joined(row, result if isinstance(result, dict) else {"labels": result})


def _cells(record: Row) -> list[tuple[str, ...]]:
    text = record.value if isinstance(record.value, str) else record.value["text"]
    return [(text, label["label"], f"{label['score']:.4f}") for label in record["labels"]]
