"""`mlx-qwen3 generate`: the answer to one prompt, streamed to the standard output."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import InputError
from .constraint_flags import add_constraint_flags, constraint_options, refuse_half
from .model_flags import (
    add_model_flags,
    add_sampling_flags,
    add_speculation_flags,
    add_thinking_flags,
    cache_options,
    decoding_asked,
    generation_options,
    keep_cache,
    load_asked,
    make_session,
)
from .printing import print_answer, speed_lines
from .standard_streams import not_utf8, utf8_input

TEMPLATE_TOKENS = 256
"""Room for what a chat template puts around a prompt, when the fit is judged."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("generate", help="answer one prompt", description=__doc__)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("text", nargs="?", metavar="TEXT", help="the prompt, in quotes; the same as --prompt")
    prompt.add_argument(
        "--prompt", "-p", metavar="TEXT", help="the prompt; - or nothing reads it from the standard input"
    )
    parser.add_argument("--plain", action="store_true", help="print the answer as it is, without rendering Markdown")
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--ignore-chat-template", action="store_true", help="go on with the prompt as it is, as a base model does"
    )
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_thinking_flags(parser)
    add_speculation_flags(parser)
    add_constraint_flags(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Stream the answer."""
    if args.ignore_chat_template and args.system_prompt:
        raise InputError("--system-prompt needs the chat template; leave out --ignore-chat-template")
    if args.ignore_chat_template and args.prompt_cache_file:
        raise InputError("--prompt-cache-file keeps conversations; leave out --ignore-chat-template")
    constraint_options(args)  # raises before anything is loaded
    prompt = read_prompt(args.prompt if args.text is None else args.text)
    tokens = None
    if args.max_tokens is not None:  # a token is at least one byte; the chat template adds some
        tokens = args.max_tokens + len(f"{prompt}{args.system_prompt or ''}".encode(errors="replace")) + TEMPLATE_TOKENS
    model, tokenizer = load_asked(args, tokens)
    if args.ignore_chat_template:
        last = print_answer(_continuation(args, model, tokenizer, prompt), args.thinking, args.plain)
        reused = 0
    else:
        session = make_session(args, model, tokenizer)
        last = print_answer(session.send(prompt), args.thinking, args.plain)
        reused = session.stats.reused_tokens if session.stats else 0
        keep_cache(args, session)
    refuse_half(args, last)
    if args.verbose and last is not None:
        print(*speed_lines(last.response, reused), sep="\n", file=sys.stderr)
    return 0


def read_prompt(given: str | None) -> str:
    """Return the prompt of the command line, or of the standard input.

    Raises:
        InputError: there is none, or it is not UTF-8.
    """
    if given is None and sys.stdin.isatty():
        raise InputError("there is no prompt: pass --prompt TEXT, or pipe one in")
    try:
        prompt = utf8_input().read().removesuffix("\n") if given is None or given == "-" else given
    except UnicodeDecodeError:
        raise not_utf8() from None
    if not prompt.strip():
        raise InputError("the prompt is empty: give a text with --prompt, or on standard input")
    return prompt


def _continuation(args: argparse.Namespace, model: Any, tokenizer: Any, prompt: str) -> Iterator[Any]:
    """Return what follows the prompt as it is, all of it answer."""
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
        decoding=decoding_asked(args, model),
        **cache_options(args),
    )
    return (ChatPart("answer", response.text, response) for response in responses)
