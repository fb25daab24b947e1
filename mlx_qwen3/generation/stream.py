"""`stream_generate` and `generate`: a prompt in, text out, piece by piece or whole."""

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol, cast

import mlx.core as mx

from ..distributed import stoppable
from ..errors import InputError
from .after_thinking import TokenMatcher
from .config import GenerationConfig
from .constrained_answer import constrained, end_reason, matcher_for, whole_answer
from .constraints import KINDS, chosen_constraint
from .context import new_cache, tokens_left
from .decoding import CachedModel, Chooser, Decoding, LogitsProcessor, Progress, Step
from .processors import make_processors
from .results import GenerationResponse
from .sampling import RandomSampler, Sampler, greedy, needs_logprobs
from .steps import checked_prompt, decode_steps
from .stopping import StopStrings


class TextCodec(Protocol):
    """What streaming asks of a tokenizer."""

    eos_token_id: int | None

    def encode(self, text: str, /, **options: Any) -> Any: ...

    def apply_chat_template(self, conversation: Sequence[Any], /, **options: Any) -> Any: ...

    def make_detokenizer(self) -> Any: ...


def stream_generate(
    model: CachedModel,
    tokenizer: TextCodec,
    prompt: str | Sequence[Any] | mx.array,
    max_tokens: int | None = 256,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    eos_token_ids: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
    logprobs: bool = False,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prompt_cache: Any = None,
    history: Sequence[int] = (),
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 0,
    prefill_step_size: int | None = None,
    prompt_progress_callback: Progress | None = None,
    decoding: Decoding | None = None,
    schema: Any = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
    matcher: TokenMatcher | None = None,
) -> Generator[GenerationResponse, None, None]:
    """The model's answer, a response a token. The last one has a `finish_reason`.

    Args:
        prompt: a text, taken as it is; ids (L,); or a list of messages, which goes through the chat template with
            `tools` and `enable_thinking`.
        max_tokens: tokens to generate at most; None or −1 for as many as the context holds.
        temperature, top_k, top_p, min_p: where none of them is given, the model's generation_config decides, and
            without one the answer is greedy. Temperature 0 is greedy.
        repetition_penalty: of every token so far; presence_penalty and frequency_penalty: of generated ones.
        logit_bias: token id → what to add to its score.
        seed: makes sampling repeatable.
        stop: strings that end the answer and are not part of it.
        eos_token_ids: ids that end it; by default those of the generation_config and of the tokenizer.
        sampler: log-probabilities (1, V) → token (1,), in place of the sampling arguments.
        logits_processors: functions of the tokens so far (S,) and logits (1, V), after the penalties.
        logprobs: fill `logprobs` of the responses.
        prompt_cache: holds what comes before the prompt, whose ids are `history`; it is written to.
        max_kv_size, kv_bits, kv_group_size, quantized_kv_start: of the cache that is made when none is given.
        prefill_step_size: tokens of the prompt in one pass; by default 2048.
        prompt_progress_callback: gets (tokens done, all tokens) of the prompt.
        decoding: the way to decode; one token a pass by default.
        schema: a JSON Schema (a dict, JSON text, or a pydantic model class) that the answer satisfies, as compact JSON.
        regex: a regular expression that the whole answer matches. choices: texts of which the answer is one.
        grammar: a Lark grammar, as llguidance reads it, that the answer follows.
        matcher: follows the answer under a constraint that is compiled already, in place of these four.

    A constrained answer has the finish_reason "stop" as soon as it is whole. For messages with thinking on, the
    constraint begins after `</think>`.

    Raises:
        InputError: an empty prompt, a sampling value out of range, several constraints, a constraint with `stop`.
        ConstraintError: a constraint that cannot be kept.
        ContextError: a prompt that fills the context.
        TokenizerError: messages, and no chat template.
    """
    constraint = chosen_constraint(tokenizer, schema=schema, regex=regex, choices=choices, grammar=grammar)
    config = getattr(model, "generation_config", None) or GenerationConfig()
    ends = ending_ids(config, tokenizer) if eos_token_ids is None else set(eos_token_ids)
    if constraint is not None and matcher is None:
        text = None
        if is_conversation(prompt):
            variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
            text = tokenizer.apply_chat_template(
                cast(Sequence[Any], prompt), tools=tools, add_generation_prompt=True, tokenize=False, **variables
            )
        matcher = matcher_for(constraint, tokenizer, sorted(ends), text, enable_thinking)
    if matcher is not None and stop:
        raise InputError("stop and a constraint exclude each other: a constraint ends the answer. Leave one out")
    ids = prompt_ids(tokenizer, prompt, enable_thinking=enable_thinking, tools=tools)
    ids = checked_prompt(ids, model.config.vocab_size)
    if sampler is None:
        sampler = chosen_sampler(config, temperature, top_k, top_p, min_p, seed)
    penalties = make_processors(
        ids.shape[1] + len(history),
        repetition_penalty=config.repetition_penalty if repetition_penalty is None else repetition_penalty,
        presence_penalty=config.presence_penalty if presence_penalty is None else presence_penalty,
        frequency_penalty=config.frequency_penalty if frequency_penalty is None else frequency_penalty,
        logit_bias=logit_bias,
    )
    processors: list[LogitsProcessor] = [lambda tokens, logits, p=p: p(tokens[None], logits) for p in penalties]
    cache = prompt_cache
    if cache is None:
        cache = new_cache(
            model.config,
            max_kv_size=max_kv_size,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
            quantized_kv_start=quantized_kv_start,
        )
    limit = tokens_left(model.config, cache.offset, ids.shape[1], max_tokens)
    steps = decode_steps(
        model,
        ids,
        cache,
        Chooser(sampler, [*processors, *logits_processors], logprobs, needs_logprobs(sampler)),
        max_tokens=limit,
        prefill_step_size=prefill_step_size,
        progress=prompt_progress_callback,
        decoding=decoding if matcher is None else constrained(matcher, decoding),
        history=history,
    )
    steps = stoppable(steps, getattr(model, "group", None))
    return _responses(steps, ids.shape[1], limit, tokenizer.make_detokenizer(), StopStrings(stop), ends)


def _responses(
    steps: Generator[Step, None, None],
    prompt_tokens: int,
    limit: int,
    detokenizer: Any,
    stops: StopStrings,
    ends: set[int],
) -> Generator[GenerationResponse, None, None]:
    start, first, count = time.perf_counter(), 0.0, 0
    last: Step | None = None

    def respond(text: str, reason: str | None = None) -> GenerationResponse:
        assert last is not None
        since = time.perf_counter() - first
        return GenerationResponse(
            text=text,
            token=last.token,
            from_draft=last.from_draft,
            prompt_tokens=prompt_tokens,
            prompt_tps=prompt_tokens / max(first - start, 1e-9),
            generation_tokens=count,
            generation_tps=(count - 1) / since if count > 1 and since > 0 else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=reason,
            logprobs=last.logprobs,
        )

    try:
        for step in steps:
            if not count:
                first = time.perf_counter()
            last, count = step, count + 1
            ended = step.token in ends
            if not ended:
                detokenizer.add_token(step.token)
            reason = end_reason(ended, step.complete, step.finished, count == limit)
            if reason is not None:
                detokenizer.finalize()
            text, found = stops.feed(detokenizer.last_segment)
            if found:
                reason = "stop"
            elif reason is not None:
                text += stops.flush()
            yield respond(text, reason)
            if reason is not None:
                return
    finally:
        steps.close()


def generate(
    model: CachedModel, tokenizer: TextCodec, prompt: Any, *args: Any, parse: bool = False, **options: Any
) -> Any:
    """The whole answer as one text; the arguments are those of `stream_generate`.

    Args:
        parse: with a pydantic model class as `schema`, return an instance; with another schema, the JSON value.

    Raises:
        IncompleteOutputError: `max_tokens` cut an answer under a constraint; `text` holds what there is.
    """
    responses = list(stream_generate(model, tokenizer, prompt, *args, **options))
    text = "".join(response.text for response in responses)
    reason = responses[-1].finish_reason if responses else "length"
    return whole_answer(text, reason, parse=parse, **{name: options.get(name) for name in (*KINDS, "matcher")})


def is_conversation(prompt: Any) -> bool:
    """Tell whether a prompt is a list of messages."""
    return (
        isinstance(prompt, Sequence) and not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)
    )


def prompt_ids(
    tokenizer: TextCodec,
    prompt: Any,
    *,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Any:
    """The ids of a prompt: a text as it is, messages through the chat template, ids unchanged."""
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("the prompt is empty: there is no token to start from")
        return tokenizer.encode(prompt)
    if is_conversation(prompt):
        variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return tokenizer.apply_chat_template(prompt, tools=tools, add_generation_prompt=True, **variables)
    return prompt


def ending_ids(config: GenerationConfig, tokenizer: Any) -> set[int]:
    """The ids that end an answer, by the generation_config and by the tokenizer."""
    known = set(config.eos_token_ids)
    if getattr(tokenizer, "eos_token_id", None) is not None:
        known.add(tokenizer.eos_token_id)
    return known


def chosen_sampler(
    config: GenerationConfig,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
) -> Sampler:
    """The sampler for what a caller asked; what was not said comes from the generation_config, if that samples."""
    asked = [value for value in (temperature, top_k, top_p, min_p) if value is not None]
    if temperature == 0 or not (config.do_sample or asked):
        return greedy
    return RandomSampler(
        temperature=_first(temperature, config.temperature, 1.0) or 1.0,
        top_k=_first(top_k, config.top_k, 0),
        top_p=_first(top_p, config.top_p, 1.0),
        min_p=_first(min_p, config.min_p, 0.0),
        seed=seed,
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
