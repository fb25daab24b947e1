"""The context length of a model, and caches for it."""

from typing import Any

from ..cache import Cache, make_cache
from ..cache.layers import step_for
from ..errors import ContextError
from ..layers.devices import variants
from .checks import check_whole_number

SLACK = 32
"""Newest tokens that a sliding-window cache can remove again: the one computed ahead, and rejected drafts."""

MOVING_FREQUENCIES = ("dynamic", "longrope")
"""RoPE types whose frequencies depend on the length of the forward pass."""


def context_length(config: Any) -> int:
    """Return the context length in tokens: `max_position_embeddings`, extended by the RoPE scaling factor if any."""
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
        ContextError: the prompt fills the model's context.
        InputError: `max_tokens` is below −1, which means no limit.
    """
    if max_tokens is not None:
        check_whole_number("max_tokens", max_tokens, least=-1, hint="-1 to use the remaining context")
    limit = context_length(config)
    left = limit - cached - prompt
    if left < 1:
        raise ContextError(
            f"the prompt has {cached + prompt} tokens and the model holds {limit}, so no token can be "
            "generated. Shorten the prompt."
        )
    return left if max_tokens is None or max_tokens < 0 else min(left, max_tokens)


def prefill_step_for(config: Any, requested: int | None) -> int | None:
    """Return the prompt tokens per forward pass, or None for all.

    The default is 2048, and None for RoPE types whose frequencies depend on the length of the pass.
    """
    if requested is not None:
        check_whole_number("prefill_step_size", requested, least=1)
        return requested
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
    """Return an empty cache for a decoder, from which the newest `SLACK` tokens can always be removed.

    Args:
        max_kv_size: keep the first few tokens and this many of the newest ones; None for all.
        kv_bits: 8 or 4 to quantize keys and values; None not to.
        kv_group_size: quantization group size.
        quantized_kv_start: quantize once the cache has more than this many tokens.

    Raises:
        InputError: a value is out of range or not supported.
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
