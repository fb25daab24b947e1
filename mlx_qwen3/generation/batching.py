"""`batch_generate`: many prompts in, as many texts out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack, cast

import mlx.core as mx

from ..errors import InputError
from .checks import check_callable, check_list, check_whole_number, plain
from .constrained_answer import end_reason, matcher_for
from .constraint_processors import ConstraintProcessor, per_prompt
from .constraints import Constraint, chosen_constraint
from .context import tokens_left
from .continuous_batch import BatchSequence, RowToken, decode_rows
from .criteria import checked_stop_strings
from .keywords import GenerationKeywords
from .options import NOT_GIVEN, GenerationOptions, NotGiven, resolve_options
from .processors import processor_list
from .sampling import RandomSampler, Sampler
from .steps import checked_prompt
from .stop_strings import StopStrings
from .stream import (
    STREAM_ARGUMENTS,
    EndOfText,
    TextCodec,
    check_cache,
    check_model_and_tokenizer,
    checked_history,
    ending_ids,
    prompt_ids,
    prompt_tail,
    rendered_prompt,
    token_budget,
)

DEFAULT_BATCH_TOKENS = 128
"""Tokens of each answer where nobody sets a limit."""


@dataclass(frozen=True)
class BatchStats:
    """Tokens of all sequences together (prompts, and generated), with seconds and tokens per second; peak_memory in GB.

    The time of the prompts ends with the first token of all; what joins later counts as generation.
    """

    prompt_tokens: int
    prompt_time: float
    prompt_tps: float
    generation_tokens: int
    generation_time: float
    generation_tps: float
    peak_memory: float


@dataclass(frozen=True)
class BatchResponse:
    """What `batch_generate` gives, each list in the order of the prompts.

    texts: the answers. token_ids: their ids, ending tokens left out. finish_reasons: "stop" or "length".
    logprobs: the log-probability of each of `token_ids`, where they were asked for.
    """

    texts: list[str]
    token_ids: list[list[int]]
    finish_reasons: list[str]
    stats: BatchStats
    logprobs: list[list[float]] | None = None


@dataclass
class _Answer:
    """An answer that is being generated."""

    detokenizer: Any
    stops: StopStrings
    ends: EndOfText
    budget: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    reason: str = "length"
    constraint: ConstraintProcessor | None = None

    def take(self, token: int, logprobs: mx.array | None = None) -> bool:
        """Add a token; true when the answer is finished."""
        if token in self.ends.eos:
            self.reason = "stop"
            return self._close()
        reason = self.ends.reason(token)
        if self.constraint is not None:
            if self.constraint.count <= len(self.tokens):
                self.constraint.take(token)
            matcher, last = self.constraint.matcher, len(self.tokens) + 1 == self.budget
            reason = reason or end_reason(False, matcher.complete, matcher.finished, last)
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(cast(float, logprobs[token].item()))
        self.detokenizer.add_token(token)
        piece, found = self.stops.feed(self.detokenizer.last_segment)
        self.text += piece
        if found:
            self.reason = "stop"
            return True
        if reason is not None:
            self.reason = reason
            return self._close()
        return self._close() if len(self.tokens) == self.budget else False

    def _close(self) -> bool:
        self.detokenizer.finalize()
        piece, found = self.stops.feed(self.detokenizer.last_segment)
        self.text += piece if found else piece + self.stops.flush()
        return True


def batch_generate(
    model: Any,
    tokenizer: TextCodec,
    prompts: Sequence[Any],
    max_tokens: int | Sequence[int | None] | NotGiven | None = NOT_GIVEN,
    *,
    sampler: Sampler | Sequence[Sampler] | None = None,
    logits_processors: Sequence[Any] | None = (),
    stops: Sequence[str | Sequence[str] | None] | None = None,
    logprobs: bool = False,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool | None = None,
    prompt_caches: Sequence[Any] | None = None,
    histories: Sequence[Sequence[int]] | None = None,
    completion_batch_size: int = 32,
    schema: Any = None,
    regex: str | Sequence[str | None] | None = None,
    choices: Sequence[Any] | None = None,
    grammar: str | Sequence[str | None] | None = None,
    thinking_budget: int | None = None,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 0,
    **options: Unpack[GenerationKeywords],
) -> BatchResponse:
    """Return the model's answers to several prompts, computed together; each is what the prompt gives alone.

    Args:
        prompts: texts, ids or lists of messages, as in `stream_generate`.
        max_tokens: tokens to generate at most, for all or for each; None or -1 for as many as the context holds. By
            default `max_new_tokens`, else 128.
        sampler: log-probabilities (n, V) → tokens (n,), instead of the sampling options; one, or one per prompt.
        logits_processors: as in `stream_generate`, for every prompt; or a list of such lists, one per prompt.
        stops: stop strings of each prompt, instead of `stop`.
        logprobs: return the log-probability of each token.
        prompt_caches: one per prompt, or None for some: what comes before the prompt, whose ids are in `histories`.
            They are written to; prompts with one are computed one after the other.
        completion_batch_size: sequences in a pass; further prompts replace finished ones, where the cache keeps all
            tokens unpacked, and wait for all of them elsewhere.
        schema, regex, choices, grammar: at most one constraint per answer, as in `stream_generate`; for all prompts, or
            a list with one entry, or None, per prompt. Look at `finish_reasons`: "length" is an answer that was cut.
        thinking_budget: tokens of reasoning after which a constrained answer begins; None for no limit.
        max_kv_size, kv_bits, kv_group_size, quantized_kv_start: of the cache.
        **options: as in `stream_generate`. `seed`: prompt number n draws the same tokens whatever the others are;
            prompt 0 draws those of `stream_generate`.

    Raises:
        InputError: an empty prompt, lists of other lengths than `prompts`, an option that is unknown, not supported or
            out of range, no token that may follow.
        ConstraintError: a constraint that cannot be kept.
        ContextError: a prompt that fills the context.
    """
    check_model_and_tokenizer(model, tokenizer)
    check_whole_number("completion_batch_size", completion_batch_size, least=1)
    resolved = resolve_options(model, options, streaming=True, more=(*STREAM_ARGUMENTS, "stops", "prompt_caches"))
    if resolved.drafts:
        raise InputError("draft models and prompt lookup are not supported in batches. Use stream_generate")
    ids = _checked_prompts(
        model,
        tokenizer,
        prompts,
        enable_thinking=enable_thinking,
        tools=tools,
        continue_final_message=continue_final_message,
    )
    count = len(ids)
    caches = [None] * count if prompt_caches is None else _each(prompt_caches, count, "prompt_caches")
    before = [()] * count if histories is None else list(map(checked_history, _each(histories, count, "histories")))
    for cache in caches:
        check_cache("prompt_caches", cache)
    own = [id(cache) for cache in caches if cache is not None]
    if len(set(own)) < len(own):
        raise InputError("prompt_caches holds one cache twice. Give each prompt a cache of its own")
    limits: list[Any] = (
        _each(max_tokens, count, "max_tokens") if isinstance(max_tokens, list | tuple) else [max_tokens] * count
    )
    warped = sampler is None and resolved.needs_warpers
    samplers = _samplers(resolved, sampler, count, warped)
    own_stops = [resolved.stop_strings] * count if stops is None else _each(stops, count, "stops")
    custom = _custom_processors(logits_processors, count)
    constraints = _constraints(
        tokenizer, count, {"schema": schema, "regex": regex, "choices": choices, "grammar": grammar}
    )
    if thinking_budget is not None:
        check_whole_number("thinking_budget", thinking_budget, least=0)
        if None in constraints:
            raise InputError("thinking_budget needs a constraint on every answer. Leave it out")
    eos = ending_ids(resolved, tokenizer)
    answers: list[_Answer] = []
    sequences: list[BatchSequence] = []
    for i, (row, cache) in enumerate(zip(ids, caches, strict=True)):
        length, cached = len(row) + len(before[i]), 0 if cache is None else cache.offset
        budget = token_budget(resolved, limits[i], length, DEFAULT_BATCH_TOKENS)
        if budget == 0:
            raise InputError("max_tokens is 0, expected a whole number above 0, or -1 for what the context holds")
        budget = tokens_left(model.config, cached, len(row), budget)
        processors = resolved.row_processors(length, length + budget, custom[i], i, warped)
        follower, constraint = None, constraints[i]
        if constraint is not None:
            if stops is not None or "stop_strings" in resolved.given:
                raise InputError(
                    "stop and a constraint exclude each other: a constraint ends the answer. Leave one out"
                )
            own_stops[i] = []
            rendered = rendered_prompt(tokenizer, prompts[i], enable_thinking, tools, continue_final_message)
            follower = ConstraintProcessor(
                matcher_for(constraint, tokenizer, sorted(eos), rendered, enable_thinking, thinking_budget), length
            )
            processors = [*processors, follower]
        sequences.append(BatchSequence(i, row, budget, samplers[i], processors, logprobs, cache, before[i]))
        strings = checked_stop_strings(own_stops[i], "stops")
        watched = StopStrings(strings, prompt_tail(tokenizer, prompts[i], mx.array([row]), strings))
        ends = EndOfText(eos, resolved.criteria(), [*before[i], *row])
        answers.append(_Answer(tokenizer.make_detokenizer(), watched, ends, budget, constraint=follower))

    def ended(found: RowToken) -> bool:
        return answers[found.row].take(found.token, found.logprobs)

    start, first = time.perf_counter(), None
    for _ in decode_rows(
        model.for_inference() if hasattr(model, "for_inference") else model,
        sequences,
        ended,
        batch_size=completion_batch_size,
        max_kv_size=max_kv_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
    ):
        first = first or time.perf_counter()
    stats = _stats(ids, answers, start, first or time.perf_counter())
    return BatchResponse(
        [answer.text for answer in answers],
        [answer.tokens for answer in answers],
        [answer.reason for answer in answers],
        stats,
        [answer.logprobs for answer in answers] if logprobs else None,
    )


def _constraints(tokenizer: Any, count: int, given: Mapping[str, Any]) -> list[Constraint | None]:
    """Compile the constraint of each prompt; equal ones once."""
    columns = {kind: per_prompt(value, count, kind) for kind, value in given.items() if value is not None}
    compiled: dict[tuple[int, ...], Constraint | None] = {}
    found = []
    for i in range(count):
        row = {kind: values[i] for kind, values in columns.items()}
        key = tuple(map(id, row.values()))
        if key not in compiled:
            compiled[key] = chosen_constraint(tokenizer, **row)
        found.append(compiled[key])
    return found


def _samplers(
    options: GenerationOptions, sampler: Sampler | Sequence[Sampler] | None, count: int, warped: bool
) -> list[Sampler]:
    """Return one sampler per prompt; prompts that share a seed draw independently."""
    if sampler is not None and not callable(sampler):
        own = _each(sampler, count, "sampler")
        for one in own:
            check_callable("sampler", () if one is None else one, "a function of scores (n, V) for each prompt")
        return own
    shared = options.sampler(warped) if sampler is None else sampler
    return [shared.for_row(i) if isinstance(shared, RandomSampler) else shared for i in range(count)]


def _custom_processors(processors: Any, count: int) -> list[list[Any]]:
    """Return the user's processors of each prompt."""
    name = "logits_processors"
    by_row = isinstance(processors, list | tuple) and not callable(processors) and len(processors) > 0
    if by_row and all(own is None or isinstance(own, list | tuple) for own in processors):
        return [processor_list(own, name) for own in _each(processors, count, name)]
    return [processor_list(processors, name)] * count


def _checked_prompts(model: Any, tokenizer: Any, prompts: Sequence[Any], **template: Any) -> list[list[int]]:
    if isinstance(prompts, str | Mapping):
        kind = "a text" if isinstance(prompts, str) else "a mapping"
        raise InputError(f"prompts is {kind}, expected a list of prompts. Pass [prompt] for one")
    prompts = plain(prompts)
    check_list("prompts", prompts, "a list of texts, ids or conversations")
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            found = checked_prompt(prompt_ids(tokenizer, prompt, **template), model.config.vocab_size)
        except InputError as error:
            raise type(error)(f"prompt {number}: {error}") from None
        rows.append(found[0].tolist())
    return rows


def _each(values: Any, count: int, name: str) -> list[Any]:
    check_list(name, values, "a list with one entry per prompt")
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} entries for {count} prompts. Give one for each, or one for all")
    return list(values)


def _stats(ids: list[list[int]], answers: list[_Answer], start: float, first: float) -> BatchStats:
    stop = time.perf_counter()
    prompt, generated = sum(map(len, ids)), sum(len(answer.tokens) for answer in answers)
    before, after = max(first - start, 1e-9), max(stop - first, 1e-9)
    return BatchStats(prompt, before, prompt / before, generated, after, generated / after, mx.get_peak_memory() / 1e9)
