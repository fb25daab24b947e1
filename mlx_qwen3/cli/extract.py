"""Extract a JSON value that satisfies a schema from each text."""

import argparse
import json
from itertools import tee
from typing import Any

from ..errors import InputError
from ..files import read_text
from .results import add_output_arguments, print_results
from .texts import Row, add_model_arguments, add_result, add_text_arguments, read_rows, task_options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("extract", help="extract fields from texts by a JSON schema", description=__doc__)
    add_text_arguments(parser, "texts to extract from")
    parser.add_argument("--schema", required=True, metavar="FILE|JSON", help="JSON Schema of the values")
    parser.add_argument(
        "--instruction", help="system prompt; {schema} in it is replaced by the schema (default: a built-in one)"
    )
    parser.add_argument(
        "--max-tokens", "-m", type=int, default=512, metavar="N", help="maximum tokens per answer (default: 512)"
    )
    add_model_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the value extracted from each text."""
    from ..tasks import pipeline

    inline = args.schema.lstrip()[:1] in ("{", "[")
    options: dict[str, Any] = {
        "schema": args.schema if inline else read_text(args.schema, error=InputError),
        "max_new_tokens": args.max_tokens,
    }
    if args.instruction is not None:
        options["instruction"] = args.instruction
    rows, texts = tee(read_rows(args))
    results = pipeline("extraction", **options, **task_options(args))(row.value for row in rows)
    return print_results(args, map(_make_record, texts, results), ("text", "value"), _format_cells)


def _make_record(row: Row, result: Any) -> Row:
    failed = isinstance(result, dict) and set(result) == {"error", "row"}
    return add_result(row, result if failed else {"value": result})


def _format_cells(record: Row) -> list[tuple[str, ...]]:
    return [(record.value, json.dumps(record["value"], ensure_ascii=False))]
