"""The flags that `chat` and `generate` share, and the model that they ask for."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from ..errors import InputError
from .ranks import current_group

THINKING_MODES = ("dim", "show", "hide", "off")
DTYPES = ("float32", "bfloat16", "float16")


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a type for `argparse`: a whole number from `lowest` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} is too small, expected {lowest} or more")
        return value

    return parse


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, in what form, with which cache."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH|ID",
        help="a folder, a Hub id, a GGUF file, org/repo:Q4_K_M, or ollama:qwen3:4b (default: the bundled small model)",
    )
    add_gguf_file_flag(group)
    group.add_argument("--adapter", metavar="PATH|ID", help="put a PEFT or mlx-lm adapter into the model")
    add_revision_flag(group)
    group.add_argument("--dtype", choices=DTYPES, help="what to compute in (default: float32 on a CPU, else its own)")
    group.add_argument(
        "--max-kv-size", type=at_least(1), metavar="N", help="keep the newest N tokens of the conversation (all)"
    )
    group.add_argument(
        "--kv-bits", type=int, choices=(4, 8), help="quantize the cache to this many bits (not quantized)"
    )
    group.add_argument("--kv-group-size", type=int, default=64, metavar="N", help="numbers that share a scale (64)")
    group.add_argument(
        "--quantized-kv-start", type=at_least(0), default=0, metavar="N", help="quantize from N tokens on (0)"
    )
    group.add_argument(
        "--prefill-step-size", type=at_least(1), metavar="N", help="tokens of a prompt in one pass (2048)"
    )
    group.add_argument(
        "--prompt-cache-file", metavar="FILE", help="load the cache from this file, and save it there afterwards"
    )
    group.add_argument("--wired-limit", type=float, metavar="GB", help="memory that macOS may not page out (none)")
    group.add_argument("--force", action="store_true", help="load the model although it does not fit into memory")
    group.add_argument("--verbose", "-v", action="store_true", help="show what is loaded and how fast it runs")


def add_revision_flag(group: Any) -> None:
    """Add the flag that names a revision of the Hub repository."""
    group.add_argument("--revision", help="a branch, tag or commit of the Hub repository of --model (its main branch)")


def check_revision(args: argparse.Namespace) -> None:
    """Raise `InputError` for a revision of a model that is no repository."""
    if args.model is None and args.revision is not None:
        raise InputError("--revision needs --model: the bundled model has one revision")


def add_gguf_file_flag(group: Any) -> None:
    """Add the flag that names a GGUF file in a folder or repository."""
    group.add_argument(
        "--gguf-file",
        metavar="NAME",
        help="the GGUF file in that folder or repository, or its type, such as Q4_K_M",
    )


def name_gguf_file(args: argparse.Namespace) -> None:
    """Put --gguf-file into --model: the path of the file, or `org/repo:NAME` for a repository.

    Raises:
        InputError: no --model. CheckpointError: the folder has no such file.
    """
    if args.gguf_file is None:
        return
    if args.model is None:
        raise InputError("--gguf-file needs --model, the folder or repository that has the file")
    from ..checkpoint import resolve_checkpoint

    if os.path.exists(os.path.expanduser(args.model)):
        args.model = str(resolve_checkpoint(args.model, gguf_file=args.gguf_file))
    else:
        args.model = f"{args.model}:{args.gguf_file}"


def warn_if_slow(args: argparse.Namespace) -> None:
    """Says it in a line where a verb was asked to compute in a type that is slow on the CPU."""
    asked = getattr(args, "dtype", None)
    if asked in (None, "float32") or args.verb == "convert":  # that one only stores the type
        return
    import mlx.core as mx

    device = getattr(args, "device", None) or mx.default_device().type.name
    if device == "cpu":
        print(f"--dtype {asked} is many times slower than float32 on a CPU; leave --dtype out", file=sys.stderr)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How tokens are drawn; what is left out follows the mode of the model."""
    group = parser.add_argument_group("sampling (default: what the model card recommends for the mode)")
    group.add_argument(
        "--temp",
        "--temperature",
        type=float,
        metavar="T",
        help="temperature; 0 always takes the best token (by the mode)",
    )
    group.add_argument(
        "--top-p", type=float, metavar="P", help="keep the best tokens up to this probability (by the mode)"
    )
    group.add_argument("--top-k", type=at_least(0), metavar="K", help="keep the K best tokens; 0 for all (by the mode)")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="drop tokens below this share of the best one (by the mode)"
    )
    group.add_argument(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="subtract this from the logit of a token that was generated already (0)",
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="divide logits of earlier tokens by this (1)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="make the answer repeatable")
    group.add_argument(
        "--max-tokens", "-m", type=at_least(1), metavar="N", help="of one answer (default: what the context holds)"
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer at this text; may be given several times"
    )


def add_speculation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of speculative decoding."""
    group = parser.add_argument_group("speculative decoding (the answer stays the same)")
    group.add_argument(
        "--prompt-lookup", action="store_true", help="draft tokens from the text itself, where that pays"
    )
    group.add_argument("--draft-model", metavar="PATH|ID", help="a smaller model of the same family that drafts tokens")
    group.add_argument(
        "--num-draft-tokens",
        type=at_least(1),
        metavar="N",
        help="tokens drafted at once, at most (chosen by the method)",
    )


def decoding_asked(args: argparse.Namespace, model: Any) -> Any:
    """Return the way to decode that the flags ask for; None for one token per pass.

    Raises:
        InputError: both ways at once, a number below 1, another vocabulary.
    """
    if args.draft_model is not None:
        from ..generation.draft_model import DRAFT_TOKENS, draft_with
        from ..loading import load

        if args.prompt_lookup:
            raise InputError("--prompt-lookup and --draft-model exclude each other; leave one out")
        return draft_with(load(args.draft_model, dtype=args.dtype)[0], model, args.num_draft_tokens or DRAFT_TOKENS)
    if args.prompt_lookup:
        from ..generation.prompt_lookup import prompt_lookup

        return prompt_lookup(args.num_draft_tokens)
    if args.num_draft_tokens is not None:
        raise InputError("--num-draft-tokens needs --prompt-lookup or --draft-model")
    return None


def add_thinking_flags(parser: argparse.ArgumentParser) -> None:
    """Whether the model thinks, and whether one sees it."""
    group = parser.add_argument_group("thinking")
    group.add_argument(
        "--thinking",
        choices=THINKING_MODES,
        default="dim",
        help="dim: shown dimmed on a terminal (default); show: as plain text; hide: unseen; off: no thinking",
    )
    group.add_argument(
        "--thinking-budget",
        type=at_least(0),
        metavar="N",
        help="demand the answer after N tokens of thinking (no limit)",
    )


def cache_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of the cache."""
    names = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")
    return {name: getattr(args, name) for name in names}


def load_asked(args: argparse.Namespace, tokens: int | None = None, tell: bool = False) -> tuple[Any, Any]:
    """Return the model and the tokenizer that the flags ask for, once it is clear that they fit.

    Args:
        tokens: what the cache has to hold; None for a long conversation, up to the context.
        tell: say how it fits even when nobody asked for details.

    Raises:
        MemoryFitError, CheckpointError, UnsupportedModelError, HubError, InputError.
    """
    from ..checkpoint import resolve_checkpoint
    from ..config.pretrained import read_config_file
    from ..distributed import process_count, same_outcome
    from ..errors import UnsupportedModelError
    from ..generation.context import context_length
    from ..loading import base_of, load
    from ..memory import check_fit, estimate_fit, wire_memory
    from ..models.registry import model_class

    group = current_group()
    with same_outcome(group):
        _check_ignored(args)
        if args.model is None and args.adapter is not None:
            args.model, args.adapter = args.adapter, None  # an adapter names its base
        if args.model is None:
            asked = _bundled()
        else:
            asked = resolve_checkpoint(args.model, revision=args.revision, gguf_file=getattr(args, "gguf_file", None))
        folder, name = base_of(asked)
        source = args.model or "the bundled model"
        values = read_config_file(folder)
        kind = model_class({**values, "architectures": [name]} if name else values, source)
        if not hasattr(kind, "fill_cache"):
            raise UnsupportedModelError(f"{source} is a {kind.__name__}, which writes no text; see mlx-qwen3 --help")
        config = kind.config_class.from_pretrained(folder)
        limit = context_length(config)
        fit = estimate_fit(
            folder,
            config,
            min(tokens or CONVERSATION, limit),
            dtype=args.dtype,
            processes=process_count(group),
            **cache_options(args),
        )
        if args.verbose or tell:
            print(f"{source}: {fit}", file=sys.stderr)
        check_fit(fit, source, force=args.force)
        if args.wired_limit is not None:
            wire_memory(args.wired_limit)
    return load(asked, adapter=args.adapter, dtype=args.dtype, distributed=group or False)


def _check_ignored(args: argparse.Namespace) -> None:
    """Raise `InputError` for flags that would change nothing."""
    if current_group() is not None and args.prompt_cache_file is not None:
        raise InputError("--prompt-cache-file: each of several processes has a part of the cache. Leave it out")
    if args.kv_bits is None and (args.kv_group_size != 64 or args.quantized_kv_start != 0):
        raise InputError("--kv-group-size and --quantized-kv-start need --kv-bits")
    if args.model is None and getattr(args, "gguf_file", None) is not None:
        raise InputError("--gguf-file needs --model: the bundled model is no GGUF file")
    check_revision(args)
    if args.thinking == "off" and args.thinking_budget is not None:
        raise InputError("--thinking-budget needs thinking. Leave out --thinking off")


CONVERSATION = 8192
"""Tokens that a conversation is assumed to reach when the fit is judged."""


def _bundled() -> Any:
    from ..bundled import BUNDLED_NOTE, bundled_model_path

    path = bundled_model_path()
    print(BUNDLED_NOTE, file=sys.stderr)
    return path


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the generation options that the flags set; the others are left to the model."""
    flags = {
        "temperature": args.temp,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "presence_penalty": args.presence_penalty,
        "repetition_penalty": args.repetition_penalty,
        "stop": args.stop,
        "seed": args.seed,
    }
    return {name: value for name, value in flags.items() if value is not None}


def make_session(args: argparse.Namespace, model: Any, tokenizer: Any) -> Any:
    """Return a conversation as the flags ask for it, with the cache of the last one if there is a file of it."""
    from pathlib import Path

    from ..chat import ChatSession
    from .constraint_flags import constraint_options, tool_options

    session = ChatSession(
        model,
        tokenizer,
        system=args.system_prompt,
        thinking=False if args.thinking == "off" else None,
        thinking_budget=args.thinking_budget,
        max_tokens=args.max_tokens,
        **generation_options(args),
        **constraint_options(args),
        **tool_options(args),
        cache_options=cache_options(args),
        prefill_step_size=args.prefill_step_size,
        decoding=decoding_asked(args, model),
    )
    if args.prompt_cache_file is not None and Path(args.prompt_cache_file).exists():
        count = session.load_cache(args.prompt_cache_file)
        if args.verbose:
            print(f"{args.prompt_cache_file}: {count} cached tokens", file=sys.stderr)
    return session


def keep_cache(args: argparse.Namespace, session: Any) -> None:
    """Write the cache file that the flags name, if there is something to keep."""
    if args.prompt_cache_file is not None and session.cached_ids:
        session.save_cache(args.prompt_cache_file)
