"""The flags that `chat` and `generate` share, and loading the model that they select."""

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
    """Return an `argparse` type for whole numbers that are not below `lowest`."""

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
    """Add the flags of the model and its key/value cache."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH|ID",
        help="a folder, a Hub id, a GGUF file, org/repo:Q4_K_M, or ollama:qwen3:4b (default: the bundled small model)",
    )
    add_gguf_file_flag(group)
    group.add_argument("--adapter", metavar="PATH|ID", help="PEFT or mlx-lm adapter to apply to the model")
    add_revision_flag(group)
    group.add_argument(
        "--dtype", choices=DTYPES, help="computation dtype (default: float32 on a CPU, else that of the model)"
    )
    group.add_argument(
        "--max-kv-size", type=at_least(1), metavar="N", help="keep only the newest N tokens in the cache (default: all)"
    )
    group.add_argument(
        "--kv-bits", type=int, choices=(4, 8), help="quantize the cache to this many bits (default: not quantized)"
    )
    group.add_argument(
        "--kv-group-size", type=int, default=64, metavar="N", help="quantization group size of the cache (default: 64)"
    )
    group.add_argument(
        "--quantized-kv-start",
        type=at_least(0),
        default=0,
        metavar="N",
        help="quantize the cache once it holds more than N tokens (default: 0)",
    )
    group.add_argument(
        "--prefill-step-size", type=at_least(1), metavar="N", help="prompt tokens per forward pass (default: 2048)"
    )
    group.add_argument(
        "--prompt-cache-file",
        metavar="FILE",
        help="load the prompt cache from FILE if it exists, and save it there on exit",
    )
    group.add_argument(
        "--wired-limit", type=float, metavar="GB", help="memory that macOS keeps wired (default: no limit is set)"
    )
    group.add_argument("--force", action="store_true", help="load the model even if it does not fit into memory")
    group.add_argument("--verbose", "-v", action="store_true", help="print memory use and speed")


def add_revision_flag(group: Any) -> None:
    """Add `--revision`."""
    group.add_argument(
        "--revision", help="branch, tag or commit of the Hub repository of --model (default: its main branch)"
    )


def check_revision(args: argparse.Namespace) -> None:
    """Raise `InputError` if `--revision` is given without `--model`."""
    if args.model is None and args.revision is not None:
        raise InputError("--revision needs --model, because the bundled model has only one revision. Omit it.")


def add_gguf_file_flag(group: Any) -> None:
    """Add `--gguf-file`."""
    group.add_argument(
        "--gguf-file",
        metavar="NAME",
        help="GGUF file in the folder or repository of the model, or its type, such as Q4_K_M",
    )


def resolve_gguf_file(args: argparse.Namespace) -> None:
    """Set `args.model` to the file of `--gguf-file`: to its path, or to `org/repo:NAME` for a Hub repository.

    Raises:
        InputError: `--gguf-file` is given without `--model`.
        CheckpointError: the folder has no such file.
    """
    if args.gguf_file is None:
        return
    if args.model is None:
        raise InputError("--gguf-file needs --model. Give the folder or repository that contains the file.")
    from ..checkpoint import resolve_checkpoint

    if os.path.exists(os.path.expanduser(args.model)):
        args.model = str(resolve_checkpoint(args.model, gguf_file=args.gguf_file))
    else:
        args.model = f"{args.model}:{args.gguf_file}"


def warn_if_slow(args: argparse.Namespace) -> None:
    """Warn on standard error if `--dtype` is slow on the CPU that the verb computes on."""
    dtype = getattr(args, "dtype", None)
    if dtype in (None, "float32") or args.verb == "convert":  # convert stores the dtype and does not compute in it
        return
    import mlx.core as mx

    device = getattr(args, "device", None) or mx.default_device().type.name
    if device == "cpu":
        print(f"--dtype {dtype} is many times slower than float32 on a CPU. Leave --dtype out", file=sys.stderr)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the sampling flags. Those left out follow the recommendation for the thinking mode."""
    group = parser.add_argument_group("sampling (default: the model card's recommendation for the thinking mode)")
    group.add_argument(
        "--temp",
        "--temperature",
        type=float,
        metavar="T",
        help="temperature; 0 for greedy decoding (default: by the thinking mode)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the most likely tokens up to this total probability (default: by the thinking mode)",
    )
    group.add_argument(
        "--top-k",
        type=at_least(0),
        metavar="K",
        help="sample from the K most likely tokens; 0 for all (default: by the thinking mode)",
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="drop tokens below this fraction of the highest probability (default: by the thinking mode)",
    )
    group.add_argument(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="subtract X from the logit of every token generated so far (default: 0)",
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="penalize every earlier token by this factor (default: 1)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="random seed, for reproducible answers")
    group.add_argument(
        "--max-tokens",
        "-m",
        type=at_least(1),
        metavar="N",
        help="maximum tokens per answer (default: the remaining context)",
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop the answer at this text; may be repeated")


def add_speculation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of speculative decoding."""
    group = parser.add_argument_group("speculative decoding (does not change the output)")
    group.add_argument(
        "--prompt-lookup", action="store_true", help="prompt-lookup decoding; disables itself when it does not help"
    )
    group.add_argument("--draft-model", metavar="PATH|ID", help="draft model with the same tokenizer")
    group.add_argument(
        "--num-draft-tokens",
        type=at_least(1),
        metavar="N",
        help="maximum tokens per draft (default: depends on the method)",
    )


def choose_decoding(args: argparse.Namespace, model: Any) -> Any:
    """Return the speculative decoding method that the flags select; None for one token per pass.

    Raises:
        InputError: both methods are given, or neither with `--num-draft-tokens`, or the draft model has another
            vocabulary.
    """
    if args.draft_model is not None:
        from ..generation.draft_model import DRAFT_TOKENS, draft_with
        from ..loading import load

        if args.prompt_lookup:
            raise InputError("--prompt-lookup and --draft-model exclude each other. Leave one of them out.")
        return draft_with(load(args.draft_model, dtype=args.dtype)[0], model, args.num_draft_tokens or DRAFT_TOKENS)
    if args.prompt_lookup:
        from ..generation.prompt_lookup import prompt_lookup

        return prompt_lookup(args.num_draft_tokens)
    if args.num_draft_tokens is not None:
        raise InputError("--num-draft-tokens needs --prompt-lookup or --draft-model. Add one of them, or omit it.")
    return None


def add_thinking_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that set whether the model thinks, and how its reasoning is displayed."""
    group = parser.add_argument_group("thinking")
    group.add_argument(
        "--thinking",
        choices=THINKING_MODES,
        default="dim",
        help="dim: print reasoning dimmed (default); show: print it as plain text; hide: do not print it; off: disable "
        "thinking",
    )
    group.add_argument(
        "--thinking-budget",
        type=at_least(0),
        metavar="N",
        help="stop thinking after N tokens and answer (default: no limit)",
    )


def cache_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of the cache as keyword arguments."""
    names = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")
    return {name: getattr(args, name) for name in names}


def load_model(args: argparse.Namespace, tokens: int | None = None, show_fit: bool = False) -> tuple[Any, Any]:
    """Check that the model of the flags fits into memory, then load it and its tokenizer.

    Args:
        tokens: tokens that the cache has to hold; None for a long conversation, `CONVERSATION_TOKENS`. The context
            length of the model is the upper limit.
        show_fit: print the memory estimate even without `--verbose`.

    Raises:
        MemoryFitError: the model does not fit into memory.
        CheckpointError, HubError: the checkpoint is damaged, or cannot be found.
        UnsupportedModelError: the model does not generate text.
        InputError: flags that contradict each other.
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
        _check_unused_flags(args)
        if args.model is None and args.adapter is not None:
            args.model, args.adapter = args.adapter, None  # the adapter names its base model
        if args.model is None:
            checkpoint = _find_bundled_model()
        else:
            checkpoint = resolve_checkpoint(
                args.model, revision=args.revision, gguf_file=getattr(args, "gguf_file", None)
            )
        folder, name = base_of(checkpoint)
        source = args.model or "the bundled model"
        values = read_config_file(folder)
        kind = model_class({**values, "architectures": [name]} if name else values, source)
        if not hasattr(kind, "fill_cache"):
            raise UnsupportedModelError(
                f"{source} is a {kind.__name__}, which does not generate text. Run mlx-qwen3 --help for the other "
                "verbs."
            )
        config = kind.config_class.from_pretrained(folder)
        limit = context_length(config)
        fit = estimate_fit(
            folder,
            config,
            min(tokens or CONVERSATION_TOKENS, limit),
            dtype=args.dtype,
            processes=process_count(group),
            **cache_options(args),
        )
        if args.verbose or show_fit:
            print(f"{source}: {fit}", file=sys.stderr)
        check_fit(fit, source, force=args.force)
        if args.wired_limit is not None:
            wire_memory(args.wired_limit)
    return load(checkpoint, adapter=args.adapter, dtype=args.dtype, distributed=group or False)


def _check_unused_flags(args: argparse.Namespace) -> None:
    """Raise `InputError` for flags that would have no effect."""
    if current_group() is not None and args.prompt_cache_file is not None:
        raise InputError(
            "--prompt-cache-file does not work with several processes, each of which holds a part of the cache. Omit "
            "it."
        )
    if args.kv_bits is None and (args.kv_group_size != 64 or args.quantized_kv_start != 0):
        raise InputError("--kv-group-size and --quantized-kv-start need --kv-bits. Add it, or leave them out.")
    if args.model is None and getattr(args, "gguf_file", None) is not None:
        raise InputError("--gguf-file needs --model. Give the folder or repository that contains the file.")
    check_revision(args)
    if args.thinking == "off" and args.thinking_budget is not None:
        raise InputError("--thinking-budget needs thinking. Leave out --thinking off.")


CONVERSATION_TOKENS = 8192
"""Tokens that a conversation is assumed to reach when the memory is estimated."""


def _find_bundled_model() -> Any:
    from ..bundled import BUNDLED_NOTE, bundled_model_path

    path = bundled_model_path()
    print(BUNDLED_NOTE, file=sys.stderr)
    return path


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the generation options set by flags, as keyword arguments; the others keep the model's defaults."""
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
    """Return a `ChatSession` with the options of the flags, and load its prompt cache if the file exists."""
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
        decoding=choose_decoding(args, model),
    )
    if args.prompt_cache_file is not None and Path(args.prompt_cache_file).exists():
        count = session.load_cache(args.prompt_cache_file)
        if args.verbose:
            print(f"{args.prompt_cache_file}: {count} cached tokens", file=sys.stderr)
    return session


def save_prompt_cache(args: argparse.Namespace, session: Any) -> None:
    """Write the file of `--prompt-cache-file`, unless the cache is empty."""
    if args.prompt_cache_file is not None and session.cached_ids:
        session.save_cache(args.prompt_cache_file)
