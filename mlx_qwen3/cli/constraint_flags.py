"""The flags that constrain answers, and those of tools."""

import argparse
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import IncompleteOutputError, InputError
from ..files import read_text


def add_constraint_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what an answer must be."""
    group = parser.add_argument_group("constraints").add_mutually_exclusive_group()
    group.add_argument("--schema", metavar="FILE|JSON", help="a JSON Schema that the answer satisfies")
    group.add_argument("--regex", metavar="PATTERN", help="a regular expression that the whole answer matches")
    group.add_argument("--choices", metavar="A,B,...", help="texts, separated by commas, of which the answer is one")
    group.add_argument("--grammar", metavar="FILE", help="a Lark grammar that the answer follows")


def add_tool_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of tools."""
    group = parser.add_argument_group("tools")
    group.add_argument("--tools", metavar="FILE.py", help="Python functions that the model may call: the public ones")
    group.add_argument("--yes", action="store_true", help="run the functions without asking")


def constraint_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the constraint that the flags ask for, as keywords.

    Raises:
        InputError: a file that cannot be read.
    """
    given: dict[str, Any] = {}
    if args.schema is not None:
        inline = args.schema.lstrip()[:1] in ("{", "[") or args.schema.strip() in ("true", "false")
        given["schema"] = args.schema if inline else read_text(args.schema, error=InputError)
    if args.regex is not None:
        given["regex"] = args.regex
    if args.choices is not None:
        given["choices"] = [choice for choice in args.choices.split(",") if choice]
    if args.grammar is not None:
        given["grammar"] = read_text(args.grammar, error=InputError)
    return given


def refuse_half(args: argparse.Namespace, last: Any) -> None:
    """Raise `IncompleteOutputError` where a constrained answer was cut; `last` is its last part."""
    if last is not None and last.response.finish_reason == "length" and constraint_options(args):
        raise IncompleteOutputError("the answer was cut before its constraint was complete. Raise --max-tokens")


def tool_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the tools that the flags name, as keywords of `ChatSession`.

    Raises:
        InputError: a file that cannot be read or run, or that has no public functions.
    """
    if getattr(args, "tools", None) is None:
        if getattr(args, "yes", False):
            raise InputError("--yes needs --tools")
        return {}
    return {"tools": load_functions(args.tools), "confirm": None if args.yes else ask_before}


def load_functions(path: str) -> list[Callable[..., Any]]:
    """Return the public functions that a Python file defines, in its order.

    Raises:
        InputError: the file cannot be read or run, or has no public functions.
    """
    read_text(path, error=InputError)
    spec = importlib.util.spec_from_file_location("mlx_qwen3_tools", Path(path).resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file. Name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # type hints are looked up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - the user's code
        reason = " ".join(str(problem).split())
        raise InputError(f"{path} cannot be run: {type(problem).__name__}: {reason}. Mend the file") from None
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == spec.name
    ]
    if not found:
        raise InputError(f"{path} has no public functions. Define one with type hints and a docstring")
    return found


def ask_before(name: str, arguments: dict[str, Any]) -> bool:
    """Ask the person whether a function may run; without a terminal it may not."""
    if not sys.stdin.isatty():
        print(f"{name} is not run: there is nobody to ask. Pass --yes to run it", file=sys.stderr)
        return False
    try:
        return input(f"Run {name}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
