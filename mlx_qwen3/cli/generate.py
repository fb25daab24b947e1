"""Answer one prompt and stream the answer to standard output."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import InputError
from .constraint_flags import add_constraint_flags, check_complete, constraint_options
from .model_flags import (
    add_model_flags,
    add_sampling_flags,
    add_speculation_flags,
    add_thinking_flags,
    cache_options,
    choose_decoding,
    generation_options,
    load_model,
    make_session,
    save_prompt_cache,
)
from .printing import print_answer, speed_lines
from .standard_streams import open_utf8_input, utf8_error

TEMPLATE_TOKENS = 256
"""Tokens that the chat template is assumed to add when the memory is estimated."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("generate", help="answer one prompt", description=__doc__)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("text", nargs="?", metavar="TEXT", help="the prompt, in quotes; same as --prompt")
    prompt.add_argument(
        "--prompt", "-p", metavar="TEXT", help="the prompt; - reads it from standard input (default: standard input)"
    )
    parser.add_argument("--plain", action="store_true", help="print the answer without rendering Markdown")
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--ignore-chat-template", action="store_true", help="continue the raw prompt, as for a base model"
    )
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_thinking_flags(parser)
    add_speculation_flags(parser)
    add_constraint_flags(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Stream the answer and return the exit status."""
    if args.ignore_chat_template and args.system_prompt:
        raise InputError("--system-prompt needs the chat template. Leave out --ignore-chat-template.")
    if args.ignore_chat_template and args.prompt_cache_file:
        raise InputError("--prompt-cache-file needs the chat template. Leave out --ignore-chat-template.")
    constraint_options(args)  # raises before anything is loaded
    prompt = read_prompt(args.prompt if args.text is None else args.text)
    tokens = None
    if args.max_tokens is not None:  # upper bound: a token has at least one byte
        tokens = args.max_tokens + len(f"{prompt}{args.system_prompt or ''}".encode(errors="replace")) + TEMPLATE_TOKENS
    model, tokenizer = load_model(args, tokens)
    if args.ignore_chat_template:
        last = print_answer(_continuation(args, model, tokenizer, prompt), args.thinking, args.plain)
        reused = 0
    else:
        session = make_session(args, model, tokenizer)
        last = print_answer(session.send(prompt), args.thinking, args.plain)
        reused = session.stats.reused_tokens if session.stats else 0
        save_prompt_cache(args, session)
    check_complete(args, last)
    if args.verbose and last is not None:
        print(*speed_lines(last.response, reused), sep="\n", file=sys.stderr)
    return 0


def read_prompt(given: str | None) -> str:
    """Return the prompt of the command line, or read it from standard input if it is None or "-".

    Raises:
        InputError: there is no prompt, or it is not UTF-8.
    """
    if given is None and sys.stdin.isatty():
        raise InputError("there is no prompt. Pass --prompt TEXT, or pipe one in.")
    try:
        prompt = open_utf8_input().read().removesuffix("\n") if given is None or given == "-" else given
    except UnicodeDecodeError:
        raise utf8_error() from None
    if not prompt.strip():
        raise InputError("the prompt is empty. Give a text with --prompt, or on standard input.")
    return prompt


def _continuation(args: argparse.Namespace, model: Any, tokenizer: Any, prompt: str) -> Iterator[Any]:
    """Stream the continuation of a prompt without the chat template, as parts of kind "answer"."""
    from ..chat import ChatPart
    from ..generation import stream_generate

    responses = stream_generate(
        model,
        tokenizer,
        prompt,
        args.max_tokens,
        **generation_options(args),
        **constraint_options(args),
        prefill_step_size=args.prefill_step_size,
        decoding=choose_decoding(args, model),
        **cache_options(args),
    )
    return (ChatPart("answer", response.text, response) for response in responses)
