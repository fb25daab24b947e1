"""`mlx-qwen3 VERB …`: run a verb and report errors as one line and an exit status."""

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import MlxQwen3Error
from .model_flags import warn_if_slow
from .ranks import run_on_ranks
from .standard_streams import replace_closed_streams

VERBS = {
    "chat": ("chat", "chat with a model"),
    "generate": ("generate", "answer one prompt"),
    "convert": ("convert", "convert a checkpoint to another format, or quantize it"),
    "train": ("train", "fine-tune a model on your own data"),
    "merge": ("merge", "merge an adapter into its base model"),
    "info": ("info", "describe a checkpoint or an adapter without loading it"),
    "classify": ("classify", "classify texts"),
    "tag": ("tag", "label the words of texts"),
    "answer": ("answer", "find the answer to a question in a text"),
    "embed": ("embed", "compute embeddings of texts"),
    "extract": ("extract", "extract fields from texts by a JSON schema"),
    "rank": ("rank", "rank documents by their relevance to a query"),
    "fill-mask": ("fill_mask", "fill in masked words"),
    "serve": ("serve", "serve models over HTTP, with a chat page"),
    "bench": ("bench", "measure speed and memory"),
    "doctor": ("doctor", "check this machine and test every kernel"),
}
"""Verb → its module in this package, which is imported only for that verb, and its line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        0 for success, 1 if a row or a message of a piped chat failed, 2 for an error of the user, 130 after Ctrl-C.
    """
    try:
        replace_closed_streams()
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except MlxQwen3Error as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()  # the reader of the pipe has exited
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        return _fail(f"{error.filename or 'the output'}: {error.strerror}. Free some space on the disk.")
    except (MemoryError, RuntimeError) as error:
        from ..memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory. Use a smaller model, --max-kv-size, or --kv-bits 8.")


def _run(arguments: Sequence[str]) -> int:
    """Parse the arguments and run their verb; return the exit status."""
    try:
        args, rest = make_parser(arguments).parse_known_args(arguments)
        if rest:
            is_text = args.verb in ("chat", "generate") and not any(word.startswith("-") for word in rest)
            hint = ". Put a text with spaces in quotes" if is_text else ""
            args.refuse(f"unrecognized arguments: {' '.join(rest)}{hint}")
        warn_if_slow(args)
        return run_on_ranks(args.verb, lambda: args.run(args))
    except SystemExit as stop:  # argparse has printed the help or the message
        return stop.code if isinstance(stop.code, int) else 0


def _discard_output() -> None:
    """Redirect standard output to the null device, so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class HelpFormatter(argparse.HelpFormatter):
    """Append the default to the help of every flag that takes a value and does not state it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if not text or not action.option_strings or action.nargs == 0 or action.required or "default" in text:
            return text
        unset = action.default is None or action.default == []
        return f"{text} (default: {'none' if unset else str(action.default).replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are two lines: the error, and how to list the flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}{self._suggest(message)}", file=sys.stderr)
        print(f"Run {self.prog} --help for a list of the flags", file=sys.stderr)
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        (sys.stderr if file is None else file).write(message)  # argparse ignores errors, such as a full disk

    def _suggest(self, message: str) -> str:
        """Return a question that names the flag or choice that a misspelt one resembles, or ""."""
        import difflib

        found = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^\s'=]+)", message)
        known = re.findall(r"'([^']*)'", message.partition("(choose from ")[2])
        if found is None:
            return ""
        known = known or [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(found[1], known, 1, 0.7)
        return f". Did you mean {close[0]}?" if close else ""


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser. Only the verb that the arguments name is imported and has its flags."""
    parser = Parser(
        prog="mlx-qwen3",
        description="Qwen3 in MLX: chat, generate, classify, embed, fine-tune, convert and quantize.",
        epilog="Run mlx-qwen3 VERB --help for the flags of a verb.",
    )
    parser.add_argument("--version", action="version", version=f"mlx-qwen3 {__version__}")
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for verb, (module, line) in VERBS.items():
        if verb == chosen:
            verb_parser = importlib.import_module(f"{__package__}.{module}").add_parser(subparsers)
            verb_parser.set_defaults(refuse=verb_parser.error)  # names the verb in the message
        else:
            subparsers.add_parser(verb, help=line)
    return parser


def _fail(message: str) -> int:
    print(f"mlx-qwen3: {' '.join(message.split())}", file=sys.stderr)
    return 2
