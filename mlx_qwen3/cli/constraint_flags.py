"""The flags of constrained decoding and of tools."""

import argparse
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import IncompleteOutputError, InputError, one_line
from ..files import read_text


def add_constraint_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that constrain an answer."""
    group = parser.add_argument_group("constraints").add_mutually_exclusive_group()
    group.add_argument("--schema", metavar="FILE|JSON", help="JSON Schema that the answer must satisfy")
    group.add_argument("--regex", metavar="PATTERN", help="regular expression that the whole answer must match")
    group.add_argument("--choices", metavar="A,B,...", help="comma-separated texts, one of which is the answer")
    group.add_argument("--grammar", metavar="FILE", help="file with a Lark grammar that the answer must follow")


def add_tool_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of tool calling."""
    group = parser.add_argument_group("tools")
    group.add_argument("--tools", metavar="FILE.py", help="Python file whose public functions the model may call")
    group.add_argument("--yes", action="store_true", help="run the functions without asking for confirmation")


def constraint_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the constraint given by the flags, as keyword arguments.

    Raises:
        InputError: a file cannot be read.
    """
    options: dict[str, Any] = {}
    if args.schema is not None:
        inline = args.schema.lstrip()[:1] in ("{", "[") or args.schema.strip() in ("true", "false")
        options["schema"] = args.schema if inline else read_text(args.schema, error=InputError)
    if args.regex is not None:
        options["regex"] = args.regex
    if args.choices is not None:
        options["choices"] = [choice for choice in args.choices.split(",") if choice]
    if args.grammar is not None:
        options["grammar"] = read_text(args.grammar, error=InputError)
    return options


def check_complete(args: argparse.Namespace, last: Any) -> None:
    """Raise `IncompleteOutputError` if a constrained answer was cut by the token limit; `last` is its last part."""
    if last is not None and last.response.finish_reason == "length" and constraint_options(args):
        raise IncompleteOutputError(
            "the answer reached the token limit before it satisfied the constraint. Raise --max-tokens."
        )


def tool_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the tools given by the flags, as keyword arguments of `ChatSession`.

    Raises:
        InputError: the file cannot be read or run, or has no public functions.
    """
    if getattr(args, "tools", None) is None:
        if getattr(args, "yes", False):
            raise InputError("--yes needs --tools. Add --tools FILE.py, or leave --yes out.")
        return {}
    return {"tools": load_functions(args.tools), "confirm": None if args.yes else confirm_call}


def load_functions(path: str) -> list[Callable[..., Any]]:
    """Return the public functions that a Python file defines, in the order of the file.

    Raises:
        InputError: the file cannot be read or run, or has no public functions.
    """
    read_text(path, error=InputError)
    spec = importlib.util.spec_from_file_location("mlx_qwen3_tools", Path(path).resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file. Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # inspect resolves type hints in the registered module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - the user's code
        reason = one_line(problem)
        raise InputError(f"{path} cannot be run: {type(problem).__name__}: {reason}. Correct the file.") from None
    functions = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == spec.name
    ]
    if not functions:
        raise InputError(f"{path} has no public functions. Define one with type hints and a docstring.")
    return functions


def confirm_call(name: str, arguments: dict[str, Any]) -> bool:
    """Ask on the terminal whether a function may run; without a terminal, return False."""
    if not sys.stdin.isatty():
        print(f"{name} is not run: there is no terminal to confirm the call. Pass --yes to run it", file=sys.stderr)
        return False
    try:
        return input(f"Run {name}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
