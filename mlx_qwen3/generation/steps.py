"""`generate_step`: a prompt's ids in, new ids out, with the cache kept in order whatever happens."""

import weakref
from collections.abc import Generator, Sequence
from typing import Any, cast

import mlx.core as mx

from ..errors import InputError
from ..layers.arguments import as_array, check_range
from .context import new_cache, prefill_step_for, tokens_left
from .decoding import (
    CachedModel,
    Chooser,
    DecodeRun,
    Decoding,
    HasInferencePath,
    PlainDecoding,
    Progress,
    Step,
    prefill,
)
from .processors import row_processors
from .sampling import Sampler, greedy, needs_logprobs


def generate_step(
    model: CachedModel,
    ids: Any,
    cache: Any = None,
    *,
    max_tokens: int | None = 256,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Any] = (),
    prefill_step_size: int | None = None,
    prompt_progress_callback: Progress | None = None,
    decoding: Decoding | None = None,
    **cache_options: Any,
) -> Generator[int, None, None]:
    """Yield new token ids after a prompt, ending tokens among them: the caller decides when to stop.

    When the generator ends, is closed or is interrupted, the cache holds only tokens of the prompt and tokens that
    were yielded: all of them, or all but the newest. An interruption in the middle of a pass leaves it empty.

    Args:
        ids: (L,) or (1, L) ids that are not in the cache yet, at least one.
        cache: what holds the tokens before; it is written to. None for a new one, made with `cache_options`
            (`max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`).
        max_tokens: tokens to yield at most; None or −1 for as many as the model's context holds.
        sampler: logits (1, V) → token (1,); greedy by default.
        logits_processors: functions of the tokens so far (S,) and logits (1, V).
        prefill_step_size: tokens of the prompt in one pass; by default 2048.
        prompt_progress_callback: gets (tokens done, all tokens) of the prompt.
        decoding: the way to decode; one token per pass by default.

    Raises:
        InputError: no ids, ids outside the vocabulary, a cache that another generation uses or has changed.
        ContextError: a prompt that fills the context.
    """
    if not hasattr(model, "step_logits") and hasattr(ids, "step_logits"):
        raise InputError("generate_step takes (model, ids), and mlx_lm's takes (prompt, model). Swap the first two")
    chooser = Chooser(sampler or greedy, row_processors(logits_processors), normalized=needs_logprobs(sampler))
    steps = decode_steps(
        model,
        ids,
        cache if cache is not None else new_cache(model.config, **cache_options),
        chooser,
        max_tokens=max_tokens,
        prefill_step_size=prefill_step_size,
        progress=prompt_progress_callback,
        decoding=decoding,
    )
    try:
        for step in steps:
            yield step.token
    finally:
        steps.close()


def decode_steps(
    model: CachedModel,
    ids: Any,
    cache: Any,
    chooser: Chooser,
    *,
    max_tokens: int | None,
    prefill_step_size: int | None = None,
    progress: Progress | None = None,
    decoding: Decoding | None = None,
    history: Sequence[int] = (),
) -> Generator[Step, None, None]:
    """`generate_step` with all that is known of each token.

    history: the ids that the cache holds, for processors and drafts that look back.
    """
    prompt = checked_prompt(ids, model.config.vocab_size)
    length, start = prompt.shape[1], cache.offset
    left = tokens_left(model.config, start, length, max_tokens)
    if left < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected a whole number above 0")
    step_size = prefill_step_for(model.config, prefill_step_size)
    model = model.for_inference() if isinstance(model, HasInferencePath) else model
    run = DecodeRun(model, cache, prompt, [*history, *cast(list[int], prompt[0].tolist())], chooser, left, start)
    steps = None
    _claim(cache, run)
    try:
        prefill(run, step_size, progress)
        steps = iter((decoding or PlainDecoding())(run))
        for count, step in enumerate(steps, 1):
            if count == 1 and progress is not None:
                progress(length, length)
            run.known = start + length + count
            held = cache.offset
            yield step
            if cache.offset != held:
                run.lost = True
                raise InputError(
                    f"the cache held {held} tokens and holds {cache.offset} now: something else has written to it. "
                    "Give each generation a cache of its own, or finish one before the next"
                )
            if count == left:
                break
    except RuntimeError:
        run.broken = True  # out of memory, say: what the cache refers to may never be computed
        raise
    finally:
        if isinstance(steps, Generator):
            steps.close()
        run.settle()
        _running.pop(cache, None)


_running: weakref.WeakKeyDictionary[Any, weakref.ref[DecodeRun]] = weakref.WeakKeyDictionary()
"""Caches that a generation is writing to."""


def _claim(cache: Any, run: DecodeRun) -> None:
    """Note that a generation writes to a cache.

    Raises:
        InputError: another one does.
    """
    other = _running.get(cache)
    if other is not None and other() is not None:
        raise InputError(
            "the cache is in use by another generation. Read that to its end or close it, or use another cache"
        )
    _running[cache] = weakref.ref(run)


def fill_prompt(
    model: CachedModel, ids: Any, cache: Any, step: int | None = None, progress: Progress | None = None
) -> None:
    """Put ids (L,) into the cache without logits; interrupted, the cache holds whole chunks or nothing."""
    prompt = checked_prompt(ids, model.config.vocab_size)
    length = prompt.shape[1]
    size = prefill_step_for(model.config, step) or length
    run = DecodeRun(model, cache, prompt, [], Chooser(greedy), 0, cache.offset)
    try:
        prefill(run, size, progress)
        with run.passing():
            model.fill_cache(run.pending, cache)
        run.known += run.pending.shape[1]
        mx.eval(cache.arrays)
    except RuntimeError:
        run.broken = True
        raise
    finally:
        run.settle()


def checked_prompt(ids: Any, vocab_size: int) -> mx.array:
    """ids as (1, L), or `InputError`."""
    prompt = as_array(ids, "prompt")
    if prompt is None or not prompt.size:
        raise InputError("the prompt is empty: there is no token to start from")
    if prompt.ndim == 1:
        prompt = prompt[None]
    if prompt.ndim != 2 or prompt.shape[0] != 1:
        raise InputError(f"the prompt has shape {tuple(prompt.shape)}, expected (length,): one text at a time")
    check_range(prompt, 0, vocab_size, "prompt", f"the vocabulary of {vocab_size}")
    return prompt.astype(mx.int32)
