"""`batch_generate`: generate the answers to several prompts in one batch."""

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
from .continuous_batch import BatchSequence, RowToken, generate_rows
from .criteria import list_stop_strings
from .keywords import GenerationKeywords
from .options import NOT_GIVEN, GenerationOptions, NotGiven, resolve_options
from .processors import processor_list
from .prompts import TextCodec, prompt_ids, prompt_tail, render_prompt
from .sampling import RandomSampler, Sampler
from .steps import check_prompt
from .stop_strings import StopStrings
from .stream import (
    STREAM_ARGUMENTS,
    EndOfText,
    check_cache,
    check_history,
    check_model_and_tokenizer,
    ending_ids,
    token_budget,
)

DEFAULT_BATCH_TOKENS = 128
"""The default limit of tokens per answer."""


@dataclass(frozen=True)
class BatchStats:
    """Totals over all sequences of a batch.

    Prompts that join the batch after the first new token count as generation time.

    Attributes:
        prompt_tokens: tokens of all prompts.
        prompt_time: seconds until the first new token of any sequence.
        prompt_tps: prompt tokens per second.
        generation_tokens: new tokens of all sequences.
        generation_time: seconds after the first new token.
        generation_tps: new tokens per second.
        peak_memory: peak memory of MLX in GB (1e9 bytes).
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
    """Result of `batch_generate`; lists are in the order of the prompts.

    Attributes:
        texts: the answers.
        token_ids: their token ids, without ending tokens.
        finish_reasons: "stop" or "length".
        stats: token counts, times and memory of the whole batch.
        logprobs: the log-probability of each of `token_ids`, if requested, else None.
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
        """Add a token; return whether the answer is finished."""
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
    """Generate the answers to several prompts in one batch; each answer is the same as for the prompt alone.

    Args:
        prompts: texts, ids or lists of messages, as in `stream_generate`.
        max_tokens: maximum number of tokens per answer, one value or one per prompt; None or -1 to use the remaining
            context. Defaults to `max_new_tokens`, or to 128 if that is not set.
        sampler: function of log-probabilities (n, V) that returns tokens (n,), one or one per prompt; replaces the
            sampling options.
        logits_processors: as in `stream_generate`, for every prompt; or a list of such lists, one per prompt.
        stops: stop strings per prompt; replaces `stop`.
        logprobs: whether to return the log-probability of each token.
        enable_thinking, tools, continue_final_message: as in `stream_generate`, for all prompts.
        prompt_caches: one cache per prompt, or None for some prompts, with the tokens before the prompt. The caches
            are updated. Prompts with a cache are processed one after the other.
        histories: ids of the tokens in each of `prompt_caches`.
        completion_batch_size: sequences per forward pass. Further prompts replace finished sequences if the cache
            keeps all tokens unquantized; otherwise they wait until the batch is finished.
        schema, regex, choices, grammar: constraint as in `stream_generate`, at most one per answer; one value for all
            prompts, or a list with one entry or None per prompt. An answer with the finish reason "length" is
            incomplete.
        thinking_budget: maximum number of reasoning tokens before a constrained answer; None for no limit.
        max_kv_size, kv_bits, kv_group_size, quantized_kv_start: cache options.
        **options: as in `stream_generate`. With a `seed`, the tokens of prompt n do not depend on the other prompts,
            and those of prompt 0 are those of `stream_generate`.

    Raises:
        InputError: a prompt is empty; a list has another length than `prompts`; an option is unknown, not supported or
            out of range; or no token is allowed.
        ConstraintError: a constraint is invalid or not supported.
        ContextError: a prompt fills the context.
    """
    check_model_and_tokenizer(model, tokenizer)
    check_whole_number("completion_batch_size", completion_batch_size, least=1)
    resolved = resolve_options(model, options, streaming=True, more=(*STREAM_ARGUMENTS, "stops", "prompt_caches"))
    if resolved.drafts:
        raise InputError("draft models and prompt lookup are not supported in batches. Use stream_generate.")
    ids = _encode_prompts(
        model,
        tokenizer,
        prompts,
        enable_thinking=enable_thinking,
        tools=tools,
        continue_final_message=continue_final_message,
    )
    count = len(ids)
    caches = [None] * count if prompt_caches is None else _check_length(prompt_caches, count, "prompt_caches")
    before = [()] * count
    if histories is not None:
        before = list(map(check_history, _check_length(histories, count, "histories")))
    for cache in caches:
        check_cache("prompt_caches", cache)
    own = [id(cache) for cache in caches if cache is not None]
    if len(set(own)) < len(own):
        raise InputError("prompt_caches contains one cache twice. Use a separate cache for each prompt.")
    limits: list[Any] = (
        _check_length(max_tokens, count, "max_tokens") if isinstance(max_tokens, list | tuple) else [max_tokens] * count
    )
    warped = sampler is None and resolved.needs_warpers
    samplers = _make_samplers(resolved, sampler, count, warped)
    own_stops = [resolved.stop_strings] * count if stops is None else _check_length(stops, count, "stops")
    custom = _split_processors(logits_processors, count)
    constraints = _compile_constraints(
        tokenizer, count, {"schema": schema, "regex": regex, "choices": choices, "grammar": grammar}
    )
    if thinking_budget is not None:
        check_whole_number("thinking_budget", thinking_budget, least=0)
        if None in constraints:
            raise InputError("thinking_budget requires a constraint for every prompt. Omit it.")
    eos = ending_ids(resolved, tokenizer)
    answers: list[_Answer] = []
    sequences: list[BatchSequence] = []
    for i, (row, cache) in enumerate(zip(ids, caches, strict=True)):
        length, cached = len(row) + len(before[i]), 0 if cache is None else cache.offset
        budget = token_budget(resolved, limits[i], length, DEFAULT_BATCH_TOKENS)
        if budget == 0:
            raise InputError("max_tokens is 0, expected a whole number above 0, or -1 to use the remaining context.")
        budget = tokens_left(model.config, cached, len(row), budget)
        processors = resolved.row_processors(length, length + budget, custom[i], i, warped)
        follower, constraint = None, constraints[i]
        if constraint is not None:
            if stops is not None or "stop_strings" in resolved.given:
                raise InputError("stop cannot be combined with a constraint, which ends the answer itself. Omit one.")
            own_stops[i] = []
            rendered = render_prompt(tokenizer, prompts[i], enable_thinking, tools, continue_final_message)
            follower = ConstraintProcessor(
                matcher_for(constraint, tokenizer, sorted(eos), rendered, enable_thinking, thinking_budget), length
            )
            processors = [*processors, follower]
        sequences.append(BatchSequence(i, row, budget, samplers[i], processors, logprobs, cache, before[i]))
        strings = list_stop_strings(own_stops[i], "stops")
        watched = StopStrings(strings, prompt_tail(tokenizer, prompts[i], mx.array([row]), strings))
        ends = EndOfText(eos, resolved.criteria(), [*before[i], *row])
        answers.append(_Answer(tokenizer.make_detokenizer(), watched, ends, budget, constraint=follower))

    def add_token(found: RowToken) -> bool:
        return answers[found.row].take(found.token, found.logprobs)

    start, first = time.perf_counter(), None
    for _ in generate_rows(
        model.for_inference() if hasattr(model, "for_inference") else model,
        sequences,
        add_token,
        batch_size=completion_batch_size,
        max_kv_size=max_kv_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
    ):
        first = first or time.perf_counter()
    stats = _compute_stats(ids, answers, start, first or time.perf_counter())
    return BatchResponse(
        [answer.text for answer in answers],
        [answer.tokens for answer in answers],
        [answer.reason for answer in answers],
        stats,
        [answer.logprobs for answer in answers] if logprobs else None,
    )


def _compile_constraints(tokenizer: Any, count: int, given: Mapping[str, Any]) -> list[Constraint | None]:
    """Compile the constraint of each prompt; a value shared by several prompts is compiled once."""
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


def _make_samplers(
    options: GenerationOptions, sampler: Sampler | Sequence[Sampler] | None, count: int, warped: bool
) -> list[Sampler]:
    """Return one sampler per prompt; samplers with the same seed draw independently."""
    if sampler is not None and not callable(sampler):
        own = _check_length(sampler, count, "sampler")
        for one in own:
            check_callable("sampler", () if one is None else one, "a function of scores (n, V) for each prompt")
        return own
    shared = options.sampler(warped) if sampler is None else sampler
    return [shared.for_row(i) if isinstance(shared, RandomSampler) else shared for i in range(count)]


def _split_processors(processors: Any, count: int) -> list[list[Any]]:
    """Return the user's logits processors per prompt."""
    name = "logits_processors"
    by_row = isinstance(processors, list | tuple) and not callable(processors) and len(processors) > 0
    if by_row and all(own is None or isinstance(own, list | tuple) for own in processors):
        return [processor_list(own, name) for own in _check_length(processors, count, name)]
    return [processor_list(processors, name)] * count


def _encode_prompts(model: Any, tokenizer: Any, prompts: Sequence[Any], **template: Any) -> list[list[int]]:
    if isinstance(prompts, str | Mapping):
        kind = "a text" if isinstance(prompts, str) else "a mapping"
        raise InputError(f"prompts is {kind}, expected a list of prompts. Pass [prompt] for one.")
    prompts = plain(prompts)
    check_list("prompts", prompts, "a list of texts, ids or conversations")
    if prompts and all(isinstance(prompt, int) for prompt in prompts):
        raise InputError("prompts is a list of ids, expected a list of prompts. Pass [ids] for one.")
    if prompts and all(isinstance(prompt, Mapping) and "role" in prompt for prompt in prompts):
        raise InputError("prompts is one conversation, expected a list of prompts. Pass [messages] for one.")
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            found = check_prompt(prompt_ids(tokenizer, prompt, **template), model.config.vocab_size)
        except InputError as error:
            raise type(error)(f"prompt {number}: {error}") from None
        rows.append(found[0].tolist())
    return rows


def _check_length(values: Any, count: int, name: str) -> list[Any]:
    check_list(name, values, "a list with one entry per prompt")
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} entries for {count} prompts. Pass one per prompt, or one for all.")
    return list(values)


def _compute_stats(ids: list[list[int]], answers: list[_Answer], start: float, first: float) -> BatchStats:
    stop = time.perf_counter()
    prompt, generated = sum(map(len, ids)), sum(len(answer.tokens) for answer in answers)
    before, after = max(first - start, 1e-9), max(stop - first, 1e-9)
    return BatchStats(prompt, before, prompt / before, generated, after, generated / after, mx.get_peak_memory() / 1e9)
