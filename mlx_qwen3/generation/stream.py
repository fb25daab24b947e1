"""Generate text from a prompt: `stream_generate` yields it token by token, `generate` returns it as a whole."""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import mlx.core as mx

from ..distributed import check_not_forked, stoppable
from ..errors import InputError
from .after_thinking import TokenMatcher
from .checks import check_callable, check_list, check_whole_number, plain, type_name
from .constrained_answer import check_answer, constrain, end_reason, matcher_for
from .constraints import KINDS, chosen_constraint
from .context import new_cache, tokens_left
from .criteria import Criterion, MaxTime, rows_of
from .decoding import CachedModel, Chooser, Decoding, Progress, Step
from .keywords import GenerationKeywords
from .options import NOT_GIVEN, GenerationOptions, NotGiven, resolve_options
from .processors import processor_list
from .prompts import TextCodec, list_ids, prompt_ids, prompt_tail, render_prompt
from .results import GenerationResponse
from .sampling import Sampler, needs_logprobs
from .steps import check_prompt, decode_steps
from .stop_strings import StopStrings

DEFAULT_TOKENS = 256
"""The default limit of tokens per answer."""

STREAM_ARGUMENTS = (
    "max_tokens",
    "sampler",
    "logits_processors",
    "logprobs",
    "enable_thinking",
    "tools",
    "prompt_cache",
    "max_kv_size",
    "kv_bits",
    "prefill_step_size",
    "decoding",
    "schema",
    "regex",
    "choices",
    "grammar",
)


def stream_generate(
    model: CachedModel,
    tokenizer: TextCodec,
    prompt: str | Sequence[Any] | Mapping[str, Any] | mx.array,
    max_tokens: int | NotGiven | None = NOT_GIVEN,
    *,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Any] | None = (),
    logprobs: bool = False,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool | None = None,
    prompt_cache: Any = None,
    history: Sequence[int] | None = (),
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
    **options: Unpack[GenerationKeywords],
) -> Generator[GenerationResponse, None, None]:
    """Yield the model's answer, one response per token; the last response has a `finish_reason`.

    A constrained answer (`schema`, `regex`, `choices`, `grammar` or `matcher`) has the finish_reason "stop" as soon as
    it is complete. If the prompt is a list of messages and thinking is on, the constraint begins after `</think>`.

    Args:
        prompt: a text, which is encoded without a chat template; ids (L,) or a tokenizer's output; or a list of
            messages, which is rendered by the chat template with `tools` and `enable_thinking`. If the last message is
            the assistant's, the model continues it.
        max_tokens: maximum number of tokens to generate; None or -1 to use the remaining context. Defaults to
            `max_new_tokens`, or to 256 if that is not set.
        sampler: function of log-probabilities (1, V) that returns a token id (1,); replaces the sampling options.
        logits_processors: functions of the ids so far (S,) and logits (1, V), or `LogitsProcessor`s. They are applied
            after the penalties.
        logprobs: whether to set `logprobs` in the responses.
        continue_final_message: whether the model continues the last message; by default if it is the assistant's.
        prompt_cache: cache of the tokens before the prompt. The prompt and the answer are added to it.
        history: ids of the tokens in `prompt_cache`, for penalties, drafts and stopping criteria.
        max_kv_size, kv_bits, kv_group_size, quantized_kv_start: options of the new cache if `prompt_cache` is None.
        prefill_step_size: prompt tokens per forward pass; defaults to 2048.
        prompt_progress_callback: called with (processed prompt tokens, total prompt tokens).
        decoding: decoding strategy; by default one forward pass per token.
        schema: JSON Schema (a dict, JSON text or a pydantic model class) for the answer, which is compact JSON.
        regex: regular expression that the whole answer matches.
        choices: texts; the answer is one of them.
        grammar: Lark grammar in llguidance's dialect that the answer follows.
        matcher: matcher of a compiled constraint; replaces the four arguments above.
        **options: `generation_config` and any of its fields. Options that are not set come from the model's
            generation_config. A sampling field (`temperature`, `top_k`, `top_p`, `min_p`, …) turns sampling on, and
            temperature 0 turns it off. Without sampling fields the model's generation_config decides; its default is
            greedy decoding. `repetition_penalty` applies to all tokens, `presence_penalty` and `frequency_penalty` to
            generated tokens only. Further options: `logit_bias` (token id → number to add), `stop` (strings that end
            the answer and are not part of it), `eos_token_ids`, `seed`, `stopping_criteria`,
            `prefix_allowed_tokens_fn`, `draft_model`. None disables an option.

    Raises:
        InputError: the prompt is empty; an option is unknown, not supported or out of range; several constraints are
            given, or a constraint with `stop`. During generation: no token is allowed, or the cache was changed.
        ConstraintError: the constraint is invalid or not supported.
        ContextError: the prompt fills the context.
        TokenizerError: the prompt is a list of messages and the tokenizer has no chat template.
    """
    check_model_and_tokenizer(model, tokenizer)
    custom = processor_list(logits_processors, "logits_processors")
    check_callable("sampler", sampler, "a function of scores (1, V)")
    check_callable("prompt_progress_callback", prompt_progress_callback, "a function of two numbers")
    check_callable("decoding", decoding, "the result of prompt_lookup() or draft_with()")
    if matcher is not None and not hasattr(matcher, "forced"):
        raise InputError(f"matcher is {type_name(matcher)}, expected the result of Constraint.matcher().")
    check_cache("prompt_cache", prompt_cache)
    history = check_history(history)
    resolved = resolve_options(model, options, streaming=True, more=STREAM_ARGUMENTS)
    config = resolved.config
    constraint = chosen_constraint(tokenizer, schema=schema, regex=regex, choices=choices, grammar=grammar)
    eos = ending_ids(resolved, tokenizer)
    if constraint is not None and matcher is None:
        rendered = render_prompt(tokenizer, prompt, enable_thinking, tools, continue_final_message)
        matcher = matcher_for(constraint, tokenizer, sorted(eos), rendered, enable_thinking)
    stop_strings = resolved.stop_strings
    if matcher is not None and stop_strings:
        if "stop_strings" in resolved.given:
            raise InputError("stop cannot be combined with a constraint, which ends the answer itself. Omit one.")
        stop_strings = []
    ids = prompt_ids(
        tokenizer, prompt, enable_thinking=enable_thinking, tools=tools, continue_final_message=continue_final_message
    )
    ids = check_prompt(ids, model.config.vocab_size)
    cache = prompt_cache
    if cache is None:
        cache = new_cache(
            model.config,
            max_kv_size=max_kv_size,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
            quantized_kv_start=quantized_kv_start,
        )
    prompt_length = ids.shape[1] + len(history)
    limit = tokens_left(model.config, cache.offset, ids.shape[1], token_budget(resolved, max_tokens, prompt_length))
    warped = sampler is None and resolved.needs_warpers
    processors = resolved.row_processors(prompt_length, prompt_length + limit, custom, warped=warped)
    sampler = resolved.sampler(warped) if sampler is None else sampler
    decoding = resolved.decoding(model) if decoding is None else decoding
    steps = decode_steps(
        model,
        ids,
        cache,
        Chooser(sampler, processors, logprobs, needs_logprobs(sampler)),
        max_tokens=limit,
        prefill_step_size=config.prefill_chunk_size if prefill_step_size is None else prefill_step_size,
        progress=prompt_progress_callback,
        decoding=decoding if matcher is None else constrain(matcher, decoding),
        history=history,
    )
    steps = stoppable(steps, getattr(model, "group", None))
    stops = StopStrings(stop_strings, prompt_tail(tokenizer, prompt, ids, stop_strings))
    ends = EndOfText(eos, resolved.criteria(), [*history, *list_ids(ids)])
    return _make_responses(steps, ids.shape[1], limit, tokenizer.make_detokenizer(), stops, ends)


@dataclass
class EndOfText:
    """Decides after each token of one sequence whether the text is finished.

    Args:
        eos: ids that end the text.
        criteria: stopping criteria, see `criteria.py`.
        ids: ids of the sequence so far, including the prompt.
    """

    eos: set[int]
    criteria: Sequence[Criterion] = ()
    ids: list[int] = field(default_factory=list)

    def reason(self, token: int) -> str | None:
        """Add a token and return the finish reason: "stop", "length" (time limit reached), or None to continue."""
        if token in self.eos:
            return "stop"
        if not self.criteria:
            return None
        self.ids.append(token)
        for criterion in self.criteria:
            if isinstance(criterion, MaxTime):
                if criterion.passed:
                    return "length"
            elif rows_of(criterion(mx.array([self.ids]), None), 1)[0]:
                return "stop"
        return None


def _make_responses(
    steps: Generator[Step, None, None],
    prompt_tokens: int,
    limit: int,
    detokenizer: Any,
    stops: StopStrings,
    ends: EndOfText,
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
            reason = ends.reason(step.token) or end_reason(False, step.complete, step.finished, count == limit)
            if step.token not in ends.eos:
                detokenizer.add_token(step.token)
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
    model: CachedModel, tokenizer: TextCodec, prompt: Any, *arguments: Any, parse: bool = False, **options: Any
) -> Any:
    """Return the whole answer as one text. Takes the arguments of `stream_generate`.

    Args:
        parse: return an instance of the pydantic model class given as `schema`, or the JSON value for other schemas.

    Raises:
        IncompleteOutputError: a constrained answer was cut off by `max_tokens`; the error's `text` is the partial
            answer.
    """
    responses = list(stream_generate(model, tokenizer, prompt, *arguments, **options))
    text = "".join(response.text for response in responses)
    reason = responses[-1].finish_reason if responses else "length"
    return check_answer(text, reason, parse=parse, **{name: options.get(name) for name in (*KINDS, "matcher")})


def check_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raise `InputError` unless these are a causal model and a tokenizer of this package."""
    check_not_forked()
    # no method is called: nothing may be computed before all arguments are checked
    generates = hasattr(model, "for_inference") or hasattr(model, "step_logits")
    if not (generates and hasattr(model, "config")):
        raise InputError(
            f"model is {type_name(model)}, expected a causal language model. Load one with mlx_qwen3.load."
        )
    if not hasattr(tokenizer, "make_detokenizer"):
        raise InputError(
            f"tokenizer is {type_name(tokenizer)}, expected one of this package. "
            "Take it from mlx_qwen3.load or AutoTokenizer.from_pretrained."
        )


def check_cache(name: str, cache: Any) -> None:
    """Raise `InputError` unless `cache` is None or a cache."""
    if cache is not None and not (hasattr(cache, "offset") and hasattr(cache, "layers")):
        raise InputError(f"{name} is {type_name(cache)}, expected a cache. Make one with model.make_cache().")


def check_history(history: Any) -> Sequence[int]:
    """Return the ids in a cache as a sequence, empty for None; raise `InputError` if it is not a list."""
    history = () if history is None else plain(history)
    check_list("history", history, "the list of token ids in prompt_cache")
    return history


def ending_ids(options: GenerationOptions, tokenizer: Any) -> set[int]:
    """Return the ids that end an answer: the call's `eos_token_id`, else the configuration's and the tokenizer's."""
    known = set(options.eos_token_ids)
    if "eos_token_id" not in options.given and getattr(tokenizer, "eos_token_id", None) is not None:
        known.add(tokenizer.eos_token_id)
    return known


def token_budget(
    options: GenerationOptions, max_tokens: int | NotGiven | None, prompt_length: int, default: int = DEFAULT_TOKENS
) -> int | None:
    """Return the maximum number of new tokens of a call; None or -1 to use the remaining context.

    The first that is set applies: `max_tokens`, `max_new_tokens`, a `max_length` given by the call, the default.

    Raises:
        InputError: the prompt fills `max_length`, or `max_tokens` is not a whole number of at least -1.
    """
    config = options.config
    if not isinstance(max_tokens, NotGiven):
        limit: int | None = plain(max_tokens)
        if limit is not None:
            check_whole_number("max_tokens", limit, least=-1, hint="-1 or None to use the remaining context")
        return limit
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if "max_length" in options.given and config.max_length is not None:
        if prompt_length >= config.max_length:
            raise InputError(
                f"the prompt has {prompt_length} tokens and max_length is {config.max_length}, so no token can be "
                "generated. Increase max_length or pass max_tokens."
            )
        return config.max_length - prompt_length
    return default
