"""How many tokens a model can hold, and the cache for them."""

from typing import Any

from ..cache import Cache, make_cache
from ..cache.layers import step_for
from ..errors import ContextError
from ..layers.devices import variants
from .checks import check_whole_number

SLACK = 32
"""Tokens that a window which has moved on can still give back: the one computed ahead, and rejected drafts."""

MOVING_FREQUENCIES = ("dynamic", "longrope")
"""Rotary types whose frequencies follow the length of the pass."""


def context_length(config: Any) -> int:
    """Return the tokens that a model was made for: `max_position_embeddings`, or what its rotary scaling extends it
    to.
    """
    limit = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    factor = rope.get("factor")
    if rope.get("rope_type", "default") == "default" or not factor:
        return limit
    original = rope.get("original_max_position_embeddings") or limit
    return max(limit, int(original * factor))


def tokens_left(config: Any, cached: int, prompt: int, max_tokens: int | None) -> int:
    """Return how many tokens may be generated after `cached` and `prompt` tokens, at most `max_tokens`.

    Raises:
        ContextError: the prompt fills the model's context already.
        InputError: `max_tokens` is negative and not −1, which stands for no limit.
    """
    if max_tokens is not None:
        check_whole_number("max_tokens", max_tokens, least=-1, hint="-1 for what the context holds")
    limit = context_length(config)
    left = limit - cached - prompt
    if left < 1:
        raise ContextError(
            f"the prompt has {cached + prompt} tokens and the model holds {limit}, which leaves none for the answer; "
            "shorten the prompt"
        )
    return left if max_tokens is None or max_tokens < 0 else min(left, max_tokens)


def prefill_step_for(config: Any, asked: int | None) -> int | None:
    """Return the tokens of a prompt per pass: `asked`, else 2048, or all where the length changes the frequencies."""
    if asked is not None:
        check_whole_number("prefill_step_size", asked, least=1)
        return asked
    rope = getattr(config, "rope_parameters", None) or {}
    return None if rope.get("rope_type") in MOVING_FREQUENCIES else variants().prefill_step_size


def new_cache(
    config: Any,
    *,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int | None = 0,
) -> Cache:
    """Return an empty cache for a decoder of this configuration, which can take back a few tokens.

    Args:
        max_kv_size: keep the first few and this many of the newest tokens; None for all.
        kv_bits: 8 or 4 to pack keys and values, once more than `quantized_kv_start` tokens are held.
        kv_group_size: numbers that share a scale.

    Raises:
        InputError: a value that no cache can have.
    """
    quantized_kv_start = 0 if quantized_kv_start is None else quantized_kv_start
    check_whole_number("quantized_kv_start", quantized_kv_start)
    if max_kv_size is not None:
        check_whole_number("max_kv_size", max_kv_size, least=1)
    return make_cache(
        config.layer_types,
        config.sliding_window,
        max_kv_size=max_kv_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
        slack=SLACK,
        step=step_for(config),
    )
