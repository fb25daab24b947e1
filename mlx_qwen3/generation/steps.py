"""`generate_step`: generate ids after the ids of a prompt, leaving the cache consistent even if interrupted."""

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
    """Yield new token ids after a prompt. Ending tokens are yielded like any other: the caller decides when to stop.

    When the generator is exhausted, closed or interrupted, the cache contains only tokens of the prompt and yielded
    tokens: all of them, or all but the newest. If a forward pass is interrupted, the cache is emptied.

    Args:
        ids: ids (L,) or (1, L) that are not in the cache yet, at least one.
        cache: cache of the tokens before `ids`, which is updated. None for a new one, created with `cache_options`
            (`max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`).
        max_tokens: maximum number of tokens to yield; None or −1 to use the remaining context.
        sampler: function of logits (1, V) that returns a token (1,); greedy by default.
        logits_processors: functions of the ids so far (S,) and logits (1, V).
        prefill_step_size: prompt tokens per forward pass; defaults to 2048.
        prompt_progress_callback: called with (processed prompt tokens, total prompt tokens).
        decoding: decoding strategy; by default one forward pass per token.

    Raises:
        InputError: there are no ids, an id is outside the vocabulary, or another generation uses or has changed the
            cache.
        ContextError: the prompt fills the context.
    """
    if not hasattr(model, "step_logits") and hasattr(ids, "step_logits"):
        raise InputError(
            "generate_step takes (model, ids), unlike mlx_lm's (prompt, model). Swap the first two arguments."
        )
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
    """Yield the steps of a generation: like `generate_step`, with log-probabilities and further data per token.

    Args:
        ids, cache, max_tokens, prefill_step_size, progress, decoding: as in `generate_step`.
        chooser: chooses tokens from logits.
        history: ids of the tokens in the cache, for processors and drafts.

    Raises:
        As in `generate_step`.
    """
    prompt = check_prompt(ids, model.config.vocab_size)
    length, start = prompt.shape[1], cache.offset
    left = tokens_left(model.config, start, length, max_tokens)
    if left < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected a whole number above 0.")
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
                    f"the cache had {held} tokens and now has {cache.offset}: something else has written to it. "
                    "Use a separate cache for each generation, or finish one before you start the next."
                )
            if count == left:
                break
    except RuntimeError:
        run.broken = True  # for example out of memory: arrays in the cache may never be computed
        raise
    finally:
        if isinstance(steps, Generator):
            steps.close()
        run.settle()
        _active_runs.pop(cache, None)


_active_runs: weakref.WeakKeyDictionary[Any, weakref.ref[DecodeRun]] = weakref.WeakKeyDictionary()
"""Cache → the generation that is writing to it."""


def _claim(cache: Any, run: DecodeRun) -> None:
    """Register the generation that writes to a cache.

    Raises:
        InputError: another generation is writing to the cache.
    """
    other = _active_runs.get(cache)
    if other is not None and other() is not None:
        raise InputError(
            "the cache is in use by another generation. Exhaust or close that generator, or use another cache."
        )
    _active_runs[cache] = weakref.ref(run)


def fill_prompt(
    model: CachedModel, ids: Any, cache: Any, step: int | None = None, progress: Progress | None = None
) -> None:
    """Add ids (L,) to the cache without computing logits; if interrupted, it has only whole chunks or is empty.

    Args:
        step: tokens per forward pass; None for the default.
        progress: called with (processed tokens, total tokens).

    Raises:
        InputError: there are no ids, or an id is outside the vocabulary.
    """
    prompt = check_prompt(ids, model.config.vocab_size)
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


def check_prompt(ids: Any, vocab_size: int) -> mx.array:
    """Return ids as an int32 array (1, L).

    Raises:
        InputError: there are no ids, the shape is wrong, or an id is outside the vocabulary.
    """
    prompt = as_array(ids, "prompt")
    if prompt is None or not prompt.size:
        raise InputError("the prompt is empty. Pass at least one token.")
    if prompt.ndim == 1:
        prompt = prompt[None]
    if prompt.ndim != 2 or prompt.shape[0] != 1:
        raise InputError(f"the prompt has shape {tuple(prompt.shape)}, expected (length,). Pass one text at a time.")
    check_range(prompt, 0, vocab_size, "prompt", f"the vocabulary of {vocab_size}")
    return prompt.astype(mx.int32)
