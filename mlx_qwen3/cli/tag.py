"""Label the words and spans of texts, such as named entities, with their character positions."""

import argparse
from itertools import tee
from typing import Any

from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_result, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("tag", help="label the words of texts", description=__doc__)
    add_text_arguments(parser, "texts to tag")
    parser.add_argument(
        "--aggregation-strategy",
        "--aggregate",
        dest="aggregate",
        choices=("none", "simple", "first", "average", "max"),
        default="simple",
        help="how tokens are grouped into entities: none, by equal labels (simple), or by words first (first, average, "
        "max) (default: simple)",
    )
    parser.add_argument(
        "--stride", type=int, help="overlap in tokens of the windows of a long text; without it, long texts are cut"
    )
    parser.add_argument(
        "--ignore-labels",
        "--ignore",
        dest="ignore",
        default="O",
        help="comma-separated labels to leave out (default: O)",
    )
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the entities of every text."""
    from ..tasks import pipeline

    ignored = [label.strip() for label in args.ignore.split(",")]
    options = {"aggregation_strategy": args.aggregate, "stride": args.stride, "ignore_labels": ignored}
    rows, texts = tee(read_rows(args))
    results = pipeline("token-classification", **options, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_make_record, texts, results), ("text", "label", "score", "span"), _format_cells)


def _make_record(row: Row, result: Any) -> Row:
    return add_result(row, result if isinstance(result, dict) else {"entities": result})


def _format_cells(record: Row) -> list[tuple[str, ...]]:
    return [
        (
            record.value[entity["start"] : entity["end"]],
            entity.get("entity_group") or entity["entity"],
            f"{entity['score']:.4f}",
            f"{entity['start']}–{entity['end']}",
        )
        for entity in record["entities"]
    ]
