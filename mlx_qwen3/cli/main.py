"""`mlx-qwen3 VERB …`: finds the verb, runs it, and turns errors into one line and an exit status."""

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
from .standard_streams import fill_closed_streams

VERBS = {
    "chat": ("chat", "talk to a model"),
    "generate": ("generate", "answer one prompt"),
    "convert": ("convert", "turn a checkpoint into another format, or quantize it"),
    "train": ("train", "fine-tune a model on your own data"),
    "merge": ("merge", "merge an adapter into its base model"),
    "info": ("info", "describe a checkpoint without loading it"),
    "classify": ("classify", "label texts"),
    "tag": ("tag", "label the words of texts"),
    "answer": ("answer", "find the answer to a question in a text"),
    "embed": ("embed", "turn texts into vectors"),
    "extract": ("extract", "extract fields from texts by a JSON schema"),
    "rank": ("rank", "order documents by a query"),
    "fill-mask": ("fill_mask", "fill in masked words"),
    "serve": ("serve", "serve models over HTTP, with a chat page"),
    "bench": ("bench", "measure speed and memory"),
    "doctor": ("doctor", "check this machine and test every kernel"),
}
"""Verb → its module here, imported when it is asked for, and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's; the exit status.

    0 when all went well, 1 when a row or a turn of a piped chat failed, 2 for what a user can put right, 130 after
    Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        fill_closed_streams()
        args, rest = make_parser(arguments).parse_known_args(arguments)
        if rest:
            args.refuse(f"unrecognized arguments: {' '.join(rest)}")
        warn_if_slow(args)
        status = run_on_ranks(args.verb, lambda: args.run(args))
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # argparse has printed what there is to say
        return stop.code if isinstance(stop.code, int) else 0
    except MlxQwen3Error as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # whoever read has gone
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        return _fail(f"{error.filename or 'the output'}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        from ..memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory: take a smaller model, --max-kv-size, or --kv-bits 8")


def _drop_output() -> None:
    """Keep Python from complaining when it flushes at exit what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class HelpFormatter(argparse.HelpFormatter):
    """Write help in which every flag that takes a value states its default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if not text or not action.option_strings or action.nargs == 0 or action.required or "default" in text:
            return text
        ending = re.search(r" \((?!or |with |embed )([^()]+)\)$", text)  # a default that the help gives in short
        if ending is not None:
            return f"{text[: ending.start()]} (default: {ending[1]})"
        unset = action.default is None or action.default == []
        return f"{text} (default: {'none' if unset else str(action.default).replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take two lines: what is wrong, and where the flags are listed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        print(f"{self.prog} --help lists what it takes", file=sys.stderr)
        raise SystemExit(2)


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the flags of the one verb that the arguments name."""
    parser = Parser(
        prog="mlx-qwen3",
        description="Qwen3 in MLX: chat, classify, convert and quantize.",
        epilog="mlx-qwen3 VERB --help tells more.",
    )
    parser.add_argument("--version", action="version", version=f"mlx-qwen3 {__version__}")
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for verb, (module, line) in VERBS.items():
        if verb == asked:
            asked_parser = importlib.import_module(f"{__package__}.{module}").add_parser(subparsers)
            asked_parser.set_defaults(refuse=asked_parser.error)  # shows the usage of the verb
        else:
            subparsers.add_parser(verb, help=line)
    return parser


def _fail(message: str) -> int:
    print(f"mlx-qwen3: {' '.join(message.split())}", file=sys.stderr)
    return 2
