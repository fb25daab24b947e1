"""Resolve generation options for `model.generate`, `stream_generate`, `batch_generate`, pipelines and chats.

`resolve_options` merges keywords, the user's `GenerationConfig` and the model's generation_config into one
`GenerationOptions`, which creates the processors, samplers and stopping criteria. The precedence is the reference's
(transformers 5.23 `generation/utils.py`, `_prepare_generation_config`): keywords, then the user's configuration, then
the model's, then the reference's defaults. A field of a configuration that is None is not set. A keyword that is None
disables the field.
"""

import difflib
import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..config.fields import shown
from ..errors import ConfigError, InputError, MlxQwen3Error
from .checks import check_seed, plain
from .config import IGNORED, NOT_SUPPORTED, SAMPLING, GenerationConfig
from .criteria import Criterion, MaxTime, list_criteria, list_stop_strings
from .keywords import GenerationKeywords
from .processors import (
    LogitBias,
    LogitsProcessor,
    MinimumLength,
    PresencePenalty,
    RepetitionPenalty,
    RowProcessor,
    SuppressTokens,
    SuppressTokensAtBegin,
    row_processors,
)
from .restrictions import (
    AllowedPrefixes,
    AllowedTokens,
    ExponentialLengthPenalty,
    ForcedToken,
    NoBadWords,
    NoRepeatNGram,
    RemoveInvalidValues,
    SequenceBias,
)
from .sampling import RandomSampler, Sampler, greedy
from .warpers import Warper, log_softmax, make_warpers

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 50
"""The reference's default top_k for sampling."""

ALIASES = {"temp": "temperature", "draft_model": "assistant_model", "num_draft_tokens": "num_assistant_tokens"}
"""mlx_lm's option name → the name used here."""

ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "verbose": ((False,), "Nothing is printed; print the text of stream_generate's responses"),
    "negative_prompt_ids": ((), "Omit it"),
    "negative_prompt_attention_mask": ((), "Omit it"),
    "custom_generate": ((), "Code from checkpoints is never run; omit it"),
    "trust_remote_code": ((False,), "Code from checkpoints is never run; omit it"),
    "synced_gpus": ((False,), "Omit it"),
    "use_model_defaults": ((False, True), "Set model.generation_config = GenerationConfig() instead"),
    "model_kwargs": ((), "Pass the arguments themselves"),
    "return_prompt_caches": ((False,), "Pass prompt_caches to batch_generate; it adds the answers to them"),
    "repetition_context_size": ((), "Pass logits_processors=[RepetitionPenalty(penalty, context_size)]"),
    "xtc_probability": ((0,), "Pass a custom sampler"),
    "xtc_threshold": ((0,), "Pass a custom sampler"),
    "max_kv_size": ((), "Pass a cache with that size as past_key_values"),
    "logits_to_keep": ((0, 1), "Only the logits of the newest position are computed; omit it"),
    "return_dict": ((True,), "Pass return_dict_in_generate=False"),
    "labels": ((), "Call the model itself for a loss"),
    "device": ((), "Call mx.set_default_device instead"),
    "return_tensors": ((), "Pass it to the tokenizer"),
    "skip_special_tokens": ((), "Pass it to tokenizer.decode"),
    "add_special_tokens": ((), "Pass it to the tokenizer"),
    "padding": ((False,), "Pass it to the tokenizer"),
    "truncation": ((False,), "Pass it to the tokenizer"),
}
"""Unsupported keyword → its neutral values, which are accepted like None, and what to do instead."""

ONE_ROW: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_return_sequences": ((1,), "Pass the prompt to batch_generate several times"),
    "output_scores": ((False,), "Pass logprobs=True"),
    "output_logits": ((False,), "Pass logprobs=True"),
    "output_attentions": ((False,), "Use model.generate"),
    "output_hidden_states": ((False,), "Use model.generate"),
}
"""Fields that only `model.generate` supports, in the same format as `ELSEWHERE`."""


GENERATE_ONLY = {
    "streamer": "Iterate over the responses of stream_generate, or use model.generate",
    "logits_processor": "Pass logits_processors",
    "attention_mask": "Prompts are passed without padding; omit it",
    "token_type_ids": "Omit it",
    "position_ids": "Use model.generate",
    "cache_position": "Omit it",
    "inputs_embeds": "Use model.generate",
    "past_key_values": "Pass a cache as prompt_cache",
    "input_ids": "Pass the ids as prompt",
    "inputs": "Pass the ids as prompt",
    "input_embeddings": "Use model.generate with inputs_embeds",
    "formatter": "Format the text that is returned",
    "prefill_batch_size": "Pass completion_batch_size to batch_generate",
}
"""Argument of `model.generate` that the functions for text lack → what to do instead; None is accepted."""


class NotGiven(enum.Enum):
    """The type of `NOT_GIVEN`."""

    NOT_GIVEN = "not given"


NOT_GIVEN = NotGiven.NOT_GIVEN
"""Default of arguments for which None is a meaningful value."""


@dataclass(frozen=True)
class GenerationOptions:
    """The resolved and checked options of one generation.

    Attributes:
        config: the effective value of every field; None if it is disabled.
        given: names of the fields set by keywords or by the user's configuration, not by the model's.
    """

    config: GenerationConfig
    given: frozenset[str] = frozenset()
    logit_bias: Mapping[int, float] | None = None
    prefix_allowed_tokens_fn: AllowedTokens | None = None
    stopping_criteria: list[Criterion] = field(default_factory=list)
    assistant_model: Any = None
    seed: int | None = None

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end a text."""
        return self.config.eos_token_ids

    @property
    def pad_token_id(self) -> int | None:
        """The id that fills finished rows; defaults to the first ending id, as in the reference."""
        if self.config.pad_token_id is not None:
            return self.config.pad_token_id
        return self.eos_token_ids[0] if self.eos_token_ids else None

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled; temperature 0 means greedy decoding."""
        return bool(self.config.do_sample) and self.config.temperature != 0

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end a text."""
        return list_stop_strings(self.config.stop_strings, "stop_strings")

    def criteria(self) -> list[Criterion]:
        """Return the stopping criteria of one generation; the time of `max_time` starts now."""
        timed: list[Criterion] = [] if self.config.max_time is None else [MaxTime(self.config.max_time)]
        return [*timed, *self.stopping_criteria]

    def processors(
        self,
        prompt_length: int,
        max_length: int | None = None,
        padding: mx.array | None = None,
        min_length_offset: int = 0,
    ) -> list[LogitsProcessor]:
        """Return the processors that these options need, in the reference's order.

        Args:
            prompt_length: ids before the first new one.
            max_length: maximum number of ids, including the prompt; `forced_eos_token_id` has no effect without it.
            padding: as in `RepetitionPenalty`.
            min_length_offset: prompt positions without ids, because they were given as embeddings.
        """
        c, eos = self.config, self.eos_token_ids
        made: list[LogitsProcessor] = []
        if self.logit_bias:
            made.append(LogitBias(self.logit_bias))
        if c.sequence_bias is not None:
            made.append(SequenceBias(c.sequence_bias))
        if c.repetition_penalty is not None and c.repetition_penalty != 1:
            made.append(RepetitionPenalty(c.repetition_penalty, None, padding))
        if c.presence_penalty or c.frequency_penalty:
            made.append(PresencePenalty(c.presence_penalty or 0.0, c.frequency_penalty or 0.0, prompt_length))
        if c.no_repeat_ngram_size:
            made.append(NoRepeatNGram(c.no_repeat_ngram_size))
        if c.bad_words_ids is not None:
            made.append(NoBadWords(c.bad_words_ids, eos))
        least = max(
            (c.min_length or 0) - min_length_offset if c.min_new_tokens is None else 0,
            prompt_length + (c.min_new_tokens or 0),
        )
        if least > prompt_length and eos:
            made.append(MinimumLength(least, eos))
        if self.prefix_allowed_tokens_fn is not None:
            made.append(AllowedPrefixes(self.prefix_allowed_tokens_fn))
        if c.forced_bos_token_id is not None:
            made.append(ForcedToken(c.forced_bos_token_id, 1, "forced_bos_token_id"))
        if c.forced_eos_token_id is not None and max_length is not None:
            made.append(ForcedToken(c.forced_eos_token_id, max_length - 1, "forced_eos_token_id"))
        if c.remove_invalid_values:
            made.append(RemoveInvalidValues())
        if c.exponential_decay_length_penalty is not None:
            made.append(ExponentialLengthPenalty(c.exponential_decay_length_penalty, eos, prompt_length))
        if c.suppress_tokens is not None:
            made.append(SuppressTokens(c.suppress_tokens))
        if c.begin_suppress_tokens is not None:
            later = prompt_length <= 1 and c.forced_bos_token_id is not None
            made.append(SuppressTokensAtBegin(c.begin_suppress_tokens, prompt_length + later))
        return made

    def warpers(self) -> list[LogitsProcessor]:
        """Return the sampling settings as processors; none of them for greedy decoding."""
        made = make_warpers(self.config) if self.samples else []
        return [*made, Warper(log_softmax)] if self.config.renormalize_logits else made

    @property
    def needs_warpers(self) -> bool:
        """Whether a sampling setting is used that `RandomSampler` does not implement."""
        c = self.config
        return self.samples and (
            c.top_h is not None
            or bool(c.epsilon_cutoff or c.eta_cutoff)
            or (c.typical_p is not None and c.typical_p < 1)
        )

    def sampler(self, warped: bool = False) -> Sampler:
        """Return the sampler; with `warped`, one for scores that the warpers have already been applied to."""
        if not self.samples:
            return greedy
        c = self.config
        if warped:
            return RandomSampler(seed=self.seed)
        return RandomSampler(
            temperature=1.0 if c.temperature is None else c.temperature,
            top_k=c.top_k or 0,
            top_p=1.0 if c.top_p is None else c.top_p,
            min_p=c.min_p or 0.0,
            seed=self.seed,
        )

    def row_processors(
        self, prompt_length: int, max_length: int | None, custom: Sequence[Any] = (), row: int = 0, warped: bool = False
    ) -> list[RowProcessor]:
        """Return all processors of one sequence, as functions of its ids (S,) and logits (1, V).

        Args:
            prompt_length, max_length: as in `processors`.
            custom: the user's processors, applied after the package's own and before temperature.
            row: index of the sequence in its batch.
            warped: whether to append the sampling settings as processors.
        """
        own: list[Any] = [*self.processors(prompt_length, max_length), *custom]
        return row_processors([*own, *(self.warpers() if warped else [])], row)

    @property
    def drafts(self) -> bool:
        """Whether speculative decoding is enabled."""
        return self.assistant_model is not None or bool(self.config.prompt_lookup_num_tokens)

    def decoding(self, model: Any) -> Any:
        """Return the decoding strategy for the draft model or prompt lookup, or None if neither is set."""
        if self.assistant_model is not None:
            from .draft_model import DRAFT_TOKENS, draft_with

            return draft_with(self.assistant_model, model, self.config.num_assistant_tokens or DRAFT_TOKENS)
        if self.config.prompt_lookup_num_tokens:
            from .prompt_lookup import prompt_lookup

            return prompt_lookup(self.config.prompt_lookup_num_tokens)
        return None


def resolve_options(
    model: Any, keywords: Mapping[str, Any], *, streaming: bool = False, more: Sequence[str] = ()
) -> GenerationOptions:
    """Resolve the options of one call.

    Args:
        model: its `generation_config` supplies options that are not set otherwise.
        keywords: `GenerationKeywords`, and unsupported fields of the reference.
        streaming: use the rules of `stream_generate`, `batch_generate` and chats: a sampling keyword without
            `do_sample` enables sampling, from the whole vocabulary unless `top_k` is set, as in mlx_lm.
        more: further argument names of the caller, for suggestions in the message about an unknown one.

    Raises:
        InputError: a keyword is unknown or not supported or, if `streaming`, has an invalid value.
        ConfigError: a keyword has an invalid value and `streaming` is false, or a value of the model's
            generation_config that has an effect is invalid.
    """
    named = {ALIASES.get(name, name): value for name, value in keywords.items()}
    if "stop" in named:
        named["stop_strings"] = list_stop_strings(named.pop("stop")) or None
    if "eos_token_ids" in named:
        ids = named.pop("eos_token_ids")
        named["eos_token_id"] = list(ids) if isinstance(ids, set | frozenset | range) else ids
    user = named.pop("generation_config", None)
    if user is not None and not isinstance(user, GenerationConfig):
        kind = "the one of transformers" if hasattr(user, "to_diff_dict") else shown(user)
        values = "config.to_diff_dict()" if hasattr(user, "to_diff_dict") else "values"
        raise InputError(f"generation_config is {kind}. Pass mlx_qwen3.GenerationConfig(**{values}).")
    extra = {name: named.pop(name) for name in _NON_FIELDS if name in named}
    own = getattr(model, "generation_config", None) or GenerationConfig()
    theirs = user.to_dict() if user is not None else {}
    values = {**own.to_dict(), **theirs}
    if named.get("do_sample", values.get("do_sample")) or not streaming:
        values.setdefault("top_k", DEFAULT_TOP_K)
    elif any(named.get(name) is not None for name in SAMPLING) and "do_sample" not in named:
        values["do_sample"] = True
    given = frozenset({*theirs, *named})
    _refuse_unknown(named, more)
    values.update(named)
    _refuse_unsupported(values, given, own, streaming)
    config = GenerationConfig.unchecked(values)
    _check_fields(config, given, own, InputError if streaming else ConfigError)
    check_seed(plain(extra.get("seed")))
    if extra.get("logit_bias") is not None:
        LogitBias(extra["logit_bias"])
    assistant = extra.get("assistant_model")
    if assistant is not None and not hasattr(assistant, "config"):
        raise InputError(f"assistant_model is {shown(assistant)}, expected a loaded model.")
    options = GenerationOptions(
        config,
        given,
        extra.get("logit_bias"),
        extra.get("prefix_allowed_tokens_fn"),
        list_criteria(extra.get("stopping_criteria")),
        assistant,
        plain(extra.get("seed")),
    )
    list_stop_strings(config.stop_strings, "stop_strings")
    options.processors(1, 2)  # raises for invalid settings before anything is computed
    if options.needs_warpers:
        options.warpers()
    return options


_NON_FIELDS = ("logit_bias", "prefix_allowed_tokens_fn", "stopping_criteria", "assistant_model", "seed")


def is_option(name: str) -> bool:
    """Return whether `resolve_options` handles a keyword, supported or not."""
    return (
        GenerationConfig.knows(ALIASES.get(name, name))
        or name in _NON_FIELDS
        or name in ALIASES
        or name in ELSEWHERE
        or name in ("stop", "eos_token_ids", "generation_config")
    )


def _refuse_unknown(named: dict[str, Any], more: Sequence[str]) -> None:
    for name in list(named):
        if name in ELSEWHERE:
            neutral, advice = ELSEWHERE[name]
            value = named.pop(name)
            if not _is_neutral(value, neutral):
                raise InputError(f"{name} is not supported: {shown(value)}. {advice}.")
        elif name in GENERATE_ONLY:
            if named.pop(name) is not None:
                raise InputError(f"{name} is not supported for text. {GENERATE_ONLY[name]}.")
        elif not GenerationConfig.knows(name):
            known = [*GenerationKeywords.__annotations__, *more]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else "See stream_generate and the fields of GenerationConfig."
            raise InputError(f"unknown argument {name!r}. {hint}")


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or (isinstance(value, bool | int | float | str) and value in neutral)


def _refuse_unsupported(values: dict[str, Any], given: frozenset[str], own: GenerationConfig, streaming: bool) -> None:
    """Raise `InputError` for unsupported fields; when streaming, those set only in the model's file log a warning."""
    for name, (neutral, advice) in NOT_SUPPORTED.items():
        value = values.pop(name, None)
        if _is_neutral(value, neutral):
            continue
        if streaming and name not in given:
            logger.warning("%s sets %s = %s, which is not supported and ignored", own.source, name, shown(value))
            continue
        if name in ("length_penalty", "early_stopping") and name not in given:
            continue  # they have no effect without beam search, which has been refused above
        where = "" if name in given else f"{own.source or 'the generation_config'}: "
        raise InputError(f"{where}{name} is not supported: {shown(value)}. {advice}.")
    for name, (neutral, advice) in ONE_ROW.items() if streaming else ():
        if name in given and not _is_neutral(values.get(name), neutral):
            raise InputError(f"{name} is not supported for streamed text: {shown(values[name])}. {advice}.")
    for name in IGNORED:
        values.pop(name, None)


def _check_fields(
    config: GenerationConfig, given: frozenset[str], own: GenerationConfig, error: type[MlxQwen3Error]
) -> None:
    """Raise for the first field with an invalid value, unless the field has no effect."""
    for name in config.fields:
        expected = config.expected(name)
        without_effect = name in SAMPLING and not config.do_sample and name not in given
        if expected is None or without_effect:
            continue
        value, expected = shown(getattr(config, name)), expected.removesuffix(", or null")
        if name in given or own.source is None:
            raise error(f"{name} is {value}, expected {expected}.")
        raise ConfigError(f"{own.source}: {name} is {value}, expected {expected}. Correct the file, or pass {name}.")
